"""The gate lets in what is expected, once, within the window; everything else gets a reason."""

from __future__ import annotations

import pytest

from p2pnn.job.segment import transfers
from p2pnn.model.graph import BATCH, Graph, Initializer, Op, Parameter, Value
from p2pnn.train.frames import layout
from p2pnn.train.gate import Gate
from tests.train.graphs import plan_for

GRAPH = Graph(
    inputs=(Value("x", "float32", (BATCH, 3)),),
    parameters=(Parameter("w", (3,), Initializer("constant")),),
    state=(),
    ops=(Op("Add", "a", ("x", "w"), ("va",)), Op("Relu", "b", ("va",), ("vb",))),
    values=(Value("va", "float32", (BATCH, 3)), Value("vb", "float32", (BATCH, 3))),
    outputs={"out": "vb"},
    losses=("vb",),
)
PLAN = plan_for([0, 1], 2, 2)
FORWARD = next(t.index for t in transfers(GRAPH, PLAN.assignment) if not t.backward)
BACKWARD = next(t.index for t in transfers(GRAPH, PLAN.assignment) if t.backward)
BYTES = 4 * 3 * 4


@pytest.fixture
def gate() -> Gate:
    return Gate(GRAPH, PLAN, 1, layout(GRAPH, PLAN, 1, 4))


def test_each_expected_tensor_comes_in_once(gate: Gate) -> None:
    assert gate.senders == (0,)
    assert gate.refusal(FORWARD, 0, 0, BYTES) == ""
    offset, size = gate.take(FORWARD, 0)
    assert (offset % 64, size) == (0, BYTES)
    assert "came twice" in gate.refusal(FORWARD, 0, 0, BYTES)
    assert gate.refusal(FORWARD, 1, 0, BYTES) == ""


@pytest.mark.parametrize(
    ("transfer", "micro_batch", "source", "nbytes", "reason"),
    [
        (FORWARD, 2, 0, BYTES, "outside the window 0 … 1"),
        (FORWARD, -1, 0, BYTES, "outside the window"),
        (FORWARD, 0, 1, BYTES, "not expected from node 1"),
        (BACKWARD, 0, 0, BYTES, "not expected from node 0"),
        (999, 0, 0, BYTES, "not expected"),
        (FORWARD, 0, 0, BYTES + 1, "49 bytes instead of 48"),
    ],
)
def test_anything_else_is_refused(
    gate: Gate, transfer: int, micro_batch: int, source: int, nbytes: int, reason: str
) -> None:
    assert reason in gate.refusal(transfer, micro_batch, source, nbytes)


def test_the_window_moves_with_what_is_retired(gate: Gate) -> None:
    gate.take(FORWARD, 0)
    gate.retired(1)
    assert gate.refusal(FORWARD, 2, 0, BYTES) == ""
    assert "outside the window 1 … 2" in gate.refusal(FORWARD, 0, 0, BYTES)
