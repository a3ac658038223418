from __future__ import annotations

import pytest

from p2pnn.model import ops, rearranging
from p2pnn.model.graph import elements
from tests.model.cases import CASES, Case

MOVES = [case for case in CASES if ops.TABLE[case.kind].infer.__module__ == rearranging.__name__]


@pytest.mark.parametrize("case", [c for c in MOVES if c.kind not in ("Gather", "Slice", "Concat")], ids=str)
def test_no_element_is_lost_or_made(case: Case) -> None:
    made = sum(elements(shape[1:]) for _, shape in ops.infer(case.op(), case.values()))
    assert made == elements(case.inputs[0][1:])


@pytest.mark.parametrize("case", MOVES, ids=str)
def test_the_batch_stays_in_front(case: Case) -> None:
    assert all(shape[0] == -1 and min(shape[1:], default=1) > 0 for _, shape in ops.infer(case.op(), case.values()))
