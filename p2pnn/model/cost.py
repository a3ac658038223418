"""What one forward pass of an op costs: floating-point operations, and bytes moved.

The rules count what the arithmetic needs (a multiply and an add are two operations), as the literature does for
convolutions and dense layers; they take concrete shapes, the batch filled in. A planner divides them by the rates that
it measured per kind, so a constant factor per kind does not matter, but growth with the shapes does. A backward pass is
about twice a forward pass for Gemm, MatMul and Conv, and about once for the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from p2pnn.model.graph import Op, Shape, elements

ITEM_BYTES = 4
"""Nearly everything is float32; labels (int64) and metrics (float64) are too small to count apart."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one forward pass: floating-point operations, and bytes read and written."""

    flops: float
    bytes: float


def moved(inputs: Sequence[Shape], outputs: Sequence[Shape]) -> float:
    """Bytes of all inputs read once and all outputs written once."""
    return float(ITEM_BYTES * sum(elements(s) for s in (*inputs, *outputs)))


def per_output(flops: float) -> Callable[[Op, list[Shape], list[Shape]], Cost]:
    """A rule: so many operations per element of the output."""

    def rule(op: Op, inputs: list[Shape], outputs: list[Shape]) -> Cost:
        return Cost(flops * elements(outputs[0]), moved(inputs, outputs))

    return rule


def per_input(flops: float) -> Callable[[Op, list[Shape], list[Shape]], Cost]:
    """A rule: so many operations per element of the first input."""

    def rule(op: Op, inputs: list[Shape], outputs: list[Shape]) -> Cost:
        return Cost(flops * elements(inputs[0]), moved(inputs, outputs))

    return rule


def gemm(op: Op, inputs: list[Shape], outputs: list[Shape]) -> Cost:
    """2·rows·in·out, and one add per output for the bias."""
    rows_out = elements(outputs[0])
    return Cost(2.0 * rows_out * inputs[0][-1] + (rows_out if len(inputs) > 2 else 0), moved(inputs, outputs))


def matmul(op: Op, inputs: list[Shape], outputs: list[Shape]) -> Cost:
    """2·k per output element."""
    return Cost(2.0 * elements(outputs[0]) * inputs[0][-1], moved(inputs, outputs))


def conv(op: Op, inputs: list[Shape], outputs: list[Shape]) -> Cost:
    """2·(input channels / group)·kernel area per output element, and the bias."""
    made = elements(outputs[0])
    flops = 2.0 * made * elements(inputs[1][1:])
    return Cost(flops + (made if len(inputs) > 2 else 0), moved(inputs, outputs))


def pool(op: Op, inputs: list[Shape], outputs: list[Shape]) -> Cost:
    """One operation per element of each window."""
    return Cost(float(elements(outputs[0]) * elements(op.integers("kernel_shape"))), moved(inputs, outputs))


def gather(op: Op, inputs: list[Shape], outputs: list[Shape]) -> Cost:
    """Nothing is computed; the rows that are chosen move, not the whole table. Indices are int64."""
    return Cost(0.0, 8.0 * elements(inputs[1]) + 2 * ITEM_BYTES * elements(outputs[0]))


def attention(op: Op, inputs: list[Shape], outputs: list[Shape]) -> Cost:
    """Per head two products of n·m·size; the scores, n·m per head, pass through some 10 operations each.

    What a causal mask leaves out is not counted: engines may or may not skip it.
    """
    heads, (batch, n, width), m = op.integer("q_num_heads"), outputs[0], inputs[1][1]
    scores = batch * heads * n * m
    flops = 2.0 * batch * n * m * (inputs[0][2] + width) + 10.0 * scores
    return Cost(flops, moved(inputs, outputs) + ITEM_BYTES * scores)


def view(op: Op, inputs: list[Shape], outputs: list[Shape]) -> Cost:
    """Nothing is computed and, the rows being contiguous, nothing is moved."""
    return Cost(0.0, 0.0)
