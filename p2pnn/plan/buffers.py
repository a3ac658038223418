"""Which values an op's neighbours keep alive, and for how long: the planner's view of an engine's memory.

While a job trains, a frame keeps from forward to backward only what some gradient needs again (KEEPS). Everything else, the
other values and all gradients between ops, lies in memory that the frames share and lives from the op that makes it to the
last one that reads it; positions count n ops forward, then the same n backward. An op that works in place hands its
input's memory on. An evaluation keeps nothing.

Computed for the graph as a whole. In a part of it fewer buffers are alive at any op, and what crosses the part's border
is counted with the border, so the figures stay upper bounds for every cut.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from p2pnn.model import ops as table
from p2pnn.model.flow import Flow
from p2pnn.model.graph import Graph, Op, elements

Floats = NDArray[np.float64]

FACTORS: Final = frozenset({"Gemm", "MatMul", "Conv", "Mul"})
"""Kinds whose gradient for one factor needs the other one."""

INPUTS_KEPT: Final = {
    "BatchNormalization": (0,),
    "LayerNormalization": (0,),
    "MaxPool": (0,),
    "ReduceMax": (0,),
    "Log": (0,),
    "Div": (1,),
    "Pow": (0, 1),
    "Where": (0,),
    "Gather": (1,),
    "Attention": (0, 1, 2),
    "SoftmaxCrossEntropyLoss": (1,),
}
"""The inputs that the other kinds' backward passes read."""

OUTPUT_KEPT: Final = frozenset({"Relu", "Sigmoid", "Tanh", "Softmax", "MaxPool", "Exp", "Sqrt", "ReduceMax"})
"""Kinds whose backward pass reads their output."""

OUTPUT_KEPT_FOR_SECOND: Final = frozenset({"Div", "Pow"})
"""Kinds whose backward pass reads it where their second input gets a gradient."""

_ELEMENTWISE: Final = frozenset({"Exp", "Log", "Sqrt", "Neg", "Identity", "Clip", "Erf", "Gelu", "LayerNormalization"})
IN_PLACE: Final = _ELEMENTWISE | {
    *("Relu", "Sigmoid", "Tanh", "Softmax", "Dropout", "BatchNormalization"),
    *("Add", "Sub", "Mul", "Div", "Pow"),
}
IN_PLACE_BACKWARD: Final = _ELEMENTWISE | {"Relu", "Dropout", "BatchNormalization", "Add", "Sub"}
VIEWS: Final = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
"""In place in both directions between values that are not of rank 4; those lie channels last and are copied."""

GAPS: Final = 1.15
"""Buffers that live for different times do not always fit without gaps."""


@dataclass(slots=True, eq=False)
class _Buffer:
    nbytes: float
    start: int
    end: int
    kept: bool


class Lifetimes:
    """One mode of a job. kept: bytes per frame of each op's output that backward needs; live: of the shared memory while
    the op runs, forward or backward, whichever is more. float64[ops] each, 0 for ops that do not run. alone: a step has one
    micro-batch, whose gradients of parameters are made in their accumulators."""

    def __init__(
        self,
        graph: Graph,
        flow: Flow,
        active: Collection[int],
        value_bytes: Mapping[str, int],
        *,
        training: bool,
        alone: bool = False,
    ) -> None:
        self._alone = alone
        self._graph, self._flow, self._bytes, self._training = graph, flow, value_bytes, training
        self._order = sorted(active)
        self._position = {index: n for n, index in enumerate(self._order)}
        self._ranks = {v.name: len(v.shape) for v in (*graph.inputs, *graph.values)}
        self._parameters = {p.name: 4 * elements(p.shape) for p in graph.parameters}
        self._of: dict[str | tuple[str, int], _Buffer] = {}
        self._buffers: list[_Buffer] = []
        self.kept = np.zeros(len(graph.ops))
        for index in self._order:
            self._forward(index)
        for index in reversed(self._order):
            if training and index in flow.with_gradient:
                self._backward(index)
        self.live = self._alive()

    def _forward(self, index: int) -> None:
        op = self._graph.ops[index]
        position = self._position[index]
        for value in op.outputs:
            readers = [r for r in self._flow.consumers.get(value, ()) if r in self._position]
            end = max([position, *(self._position[r] for r in readers)])
            kept = self._kept(index, value, readers)
            over = self._of.get(op.inputs[0]) if self._in_place(op, IN_PLACE) else None
            if over and not over.kept and over.end == position and over.nbytes == self._bytes[value]:
                over.end, over.kept = end, kept
                self._of[value] = over
            else:
                self._of[value] = self._new(self._bytes[value], position, end, kept)
            self.kept[index] += self._bytes[value] if kept else 0

    def _in_place(self, op: Op, kinds: frozenset[str]) -> bool:
        if op.kind in VIEWS:
            return all(self._ranks.get(v, 0) != 4 for v in (op.inputs[0], op.outputs[0]))
        return op.kind in kinds

    def _kept(self, index: int, value: str, readers: list[int]) -> bool:
        if not self._training:
            return False
        kind = self._graph.ops[index].kind
        if index in self._flow.with_gradient and kind in OUTPUT_KEPT:
            return True
        if kind in OUTPUT_KEPT_FOR_SECOND and wants(self._graph, self._flow, index)[1]:
            return True
        return any(value in keeps(self._graph, self._flow, r) for r in readers)

    def _backward(self, index: int) -> None:
        op = self._graph.ops[index]
        position = 2 * len(self._order) - 1 - self._position[index]
        sources = [(op.outputs[0], c) for c in self._flow.gradient_consumers(op.outputs[0])]
        dy = self._of.get(sources[0]) if len(sources) == 1 else None
        if len(sources) > 1:
            dy = self._new(self._bytes[op.outputs[0]], position, position)
        seen: set[str] = set()
        for n, (name, wanted) in enumerate(zip(op.inputs, wants(self._graph, self._flow, index), strict=True)):
            if not wanted:
                continue
            nbytes = self._parameters.get(name) or self._bytes[name]
            if self._alone and name in self._parameters:
                continue
            if name in self._parameters or name in seen:
                self._new(nbytes, position, position)
            else:
                producer = self._flow.producer[name]
                end = 2 * len(self._order) - 1 - self._position[producer]
                if n == 0 and dy is not None and dy.nbytes == nbytes and self._in_place(op, IN_PLACE_BACKWARD):
                    dy.end = end
                    self._of[name, index] = dy
                else:
                    self._of[name, index] = self._new(nbytes, position, end)
            seen.add(name)

    def _new(self, nbytes: float, start: int, end: int, kept: bool = False) -> _Buffer:
        self._buffers.append(_Buffer(nbytes, start, end, kept))
        return self._buffers[-1]

    def _alive(self) -> Floats:
        count = len(self._order)
        change = np.zeros(2 * count + 1)
        for buffer in self._buffers:
            if not buffer.kept:
                change[buffer.start] += buffer.nbytes + 64
                change[buffer.end + 1] -= buffer.nbytes + 64
        alive = np.cumsum(change)[: 2 * count]
        found = np.zeros(len(self._graph.ops))
        found[self._order] = GAPS * np.maximum(alive[:count], alive[count:][::-1])
        return found


def wants(graph: Graph, flow: Flow, index: int) -> tuple[bool, ...]:
    """Per input of an op: whether training computes a gradient for it."""
    op = graph.ops[index]
    if index not in flow.with_gradient:
        return (False,) * len(op.inputs)
    trained = {p.name for p in graph.parameters}
    row = table.TABLE[op.kind]
    return tuple(
        row.differentiable(n) and (v in trained or flow.producer.get(v, -1) in flow.with_gradient)
        for n, v in enumerate(op.inputs)
    )


def keeps(graph: Graph, flow: Flow, index: int) -> set[str]:
    """The inputs that an op's backward pass reads again."""
    op, wanted = graph.ops[index], wants(graph, flow, index)
    if op.kind in FACTORS:
        return {op.inputs[n] for n in range(2) if wanted[1 - n]}
    if not any(wanted):
        return set()
    return {op.inputs[n] for n in INPUTS_KEPT.get(op.kind, ())}
