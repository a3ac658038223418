"""What proves a process gone: a reset, two refusals apart, and as many witnesses as the cluster's size asks for."""

from __future__ import annotations

import pytest

from p2pnn.cluster.proof import Proof
from tests.simulator.mesh import node_id


@pytest.mark.parametrize(
    ("reset", "refusals", "seen"),
    [
        (True, [0.0, 0.1], True),
        (True, [0.0, 0.05], False),
        (True, [0.0, 0.05, 0.1], True),
        (True, [0.0], False),
        (False, [0.0, 1.0, 2.0], False),
    ],
)
def test_a_witness_has_seen_a_reset_and_two_refusals_apart(reset: bool, refusals: list[float], seen: bool) -> None:
    proof = Proof()
    if reset:
        proof.link_reset()
    assert [proof.refused(at) for at in refusals][-1] is seen


@pytest.mark.parametrize(
    ("members", "witnesses", "enough"),
    [(2, 0, False), (2, 1, True), (3, 1, True), (4, 1, False), (4, 2, True), (1000, 1, False), (1000, 2, True)],
)
def test_how_many_witnesses_are_enough(members: int, witnesses: int, enough: bool) -> None:
    proof = Proof()
    proof.witnesses.update(node_id(number) for number in range(witnesses))
    assert proof.suffices(members) is enough
