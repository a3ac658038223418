from __future__ import annotations

import pytest

from p2pnn.model import ops
from p2pnn.model.graph import concrete
from tests.model.cases import CASES, B, Case

MOVES = ("Concat", "Transpose", "Gather", "Split", "Slice", "Identity")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_cost_grows_with_the_batch_and_counts_bytes(case: Case) -> None:
    op, row = case.op(), ops.TABLE[case.kind]

    def cost(batch: int) -> ops.Cost:
        return row.cost(
            op, [concrete(s, batch) for s in case.inputs], [concrete(s, batch) for s in (case.output, *case.more)]
        )

    one, eight = cost(1), cost(8)
    if op.kind in ("Reshape", "Flatten", "Squeeze", "Unsqueeze"):
        assert eight == ops.Cost(0.0, 0.0)
    else:
        assert one.bytes < eight.bytes <= 8 * one.bytes
        assert eight.flops >= 8 * one.flops
        assert (eight.flops > 0) is (op.kind not in MOVES)


def test_costs_of_the_heavy_kinds_are_the_known_formulas() -> None:
    conv = Case("Conv", ((B, 6, 8, 8), (4, 3, 3, 3)), (B, 4, 6, 6), {"group": 2})
    assert ops.TABLE["Conv"].cost(conv.op(), [(2, 6, 8, 8), (4, 3, 3, 3)], [(2, 4, 6, 6)]).flops == 2 * 2 * 4 * 36 * 27
    gemm = Case("Gemm", ((B, 5), (3, 5), (3,)), (B, 3))
    assert ops.TABLE["Gemm"].cost(gemm.op(), [(7, 5), (3, 5), (3,)], [(7, 3)]) == ops.Cost(
        2 * 7 * 5 * 3 + 21, 4 * (35 + 15 + 3 + 21)
    )
