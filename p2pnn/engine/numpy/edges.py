"""What crosses a segment's border, and which inputs want a gradient.

Everything here follows from (graph, ops, mode). Gradients are named by edge, (value, consuming op): each consumer's
arrives by itself, and the value's producer sums them in graph order, wherever the consumers run.
"""

from __future__ import annotations

from collections.abc import Sequence

from p2pnn.engine.base import Edge, Mode
from p2pnn.model import ops as table
from p2pnn.model.flow import Flow
from p2pnn.model.graph import Graph


class Edges:
    """One segment in one mode. `ops` are its active ops, ascending."""

    def __init__(self, graph: Graph, ops: Sequence[int], mode: Mode) -> None:
        self.graph, self.flow, self.mode = graph, Flow(graph), mode
        self._all_active = self.flow.inference if mode == "predict" else self.flow.training
        self.ops = tuple(sorted(set(ops) & self._all_active))
        self._own = frozenset(self.ops)
        self.parameters = {p.name for p in graph.parameters}
        self.held = self.parameters | {s.name for s in graph.state}
        self.values_in = self._values_in()
        self.values_out = tuple(v for i in self.ops for v in graph.ops[i].outputs if self._leaves(v))
        training = mode == "train"
        self.trained = tuple(i for i in self.ops if training and any(self.wants(i)))
        self.gradients_in = tuple(
            (v, c) for v in self.values_out if training for c in self.flow.gradient_consumers(v) if c not in self._own
        )
        self.gradients_out = tuple(
            (v, c) for v in self.values_in if training for c in self.flow.gradient_consumers(v) if c in self._own
        )

    def local(self, value: str) -> bool:
        """Whether an op of this segment makes the value."""
        return self.flow.producer.get(value, -1) in self._own

    def owns(self, index: int) -> bool:
        """Whether the op runs in this segment and mode."""
        return index in self._own

    def wants(self, index: int) -> tuple[bool, ...]:
        """Per input of an op: whether training computes a gradient for it."""
        op = self.graph.ops[index]
        if self.mode != "train" or index not in self.flow.with_gradient:
            return (False,) * len(op.inputs)
        row = table.TABLE[op.kind]
        return tuple(
            row.differentiable(position)
            and (name in self.parameters or self.flow.producer.get(name, -1) in self.flow.with_gradient)
            for position, name in enumerate(op.inputs)
        )

    def sources(self, value: str) -> list[Edge]:
        """The edges whose gradients a value's producer sums, in graph order."""
        return [(value, consumer) for consumer in self.flow.gradient_consumers(value)]

    def readers(self, value: str) -> list[int]:
        """The ops of this segment that read the value."""
        return [c for c in self.flow.consumers.get(value, ()) if c in self._own]

    def _values_in(self) -> tuple[str, ...]:
        names = (name for i in self.ops for name in self.graph.ops[i].inputs)
        return tuple(dict.fromkeys(n for n in names if n not in self.held and not self.local(n)))

    def _leaves(self, value: str) -> bool:
        if any(c in self._all_active and c not in self._own for c in self.flow.consumers.get(value, ())):
            return True
        if self.mode == "predict":
            return value in self.graph.outputs.values()
        return value in self.graph.losses or any(m.value == value for m in self.graph.metrics)


def accumulators(graph: Graph, ops: Sequence[int]) -> list[Edge]:
    """(parameter, op) for every gradient that these ops accumulate in training, in graph order."""
    edges = Edges(graph, ops, "train")
    found = [
        (name, i)
        for i in edges.trained
        for name, wanted in zip(graph.ops[i].inputs, edges.wants(i), strict=True)
        if wanted and name in edges.parameters
    ]
    return list(dict.fromkeys(found))
