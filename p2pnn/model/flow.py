"""Flow: who reads and writes each value of a graph, which ops a mode runs, and along which edges gradients flow."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Final

from p2pnn.model import ops
from p2pnn.model.graph import Graph, Op

READ_BACK: Final[Mapping[str, Mapping[int, tuple[int, ...]]]] = {
    "Gemm": {0: (1,), 1: (0,)},
    "MatMul": {0: (1,), 1: (0,)},
    "Conv": {1: (0,)},
    "BatchNormalization": {1: (0, 1)},
    "Add": {},
    "Sub": {},
    "Gather": {},
}
"""Kind → input position → the inputs whose gradients are made from it. Of these kinds no other input is read in a backward
pass (a product's bias, say); of kinds that are not here any may be."""


class Flow:
    """Who reads and writes each value, and along which edges gradients flow. Computed once per graph.

    training ops are those that a loss or a metric needs; with `outputs=True` those that any named output needs too.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.producer: dict[str, int] = {}
        self.consumers: dict[str, list[int]] = {}
        for index, op in enumerate(graph.ops):
            for name in op.outputs:
                self.producer[name] = index
            for name in dict.fromkeys(op.inputs):
                if name:
                    self.consumers.setdefault(name, []).append(index)

    def needed(self, *values: str) -> frozenset[int]:
        """The ops that the named values need, directly or not."""
        wanted: set[int] = set()
        stack = [self.producer[v] for v in values if v in self.producer]
        while stack:
            index = stack.pop()
            if index not in wanted:
                wanted.add(index)
                stack.extend(self.producer[v] for v in self.graph.ops[index].inputs if v in self.producer)
        return frozenset(wanted)

    @cached_property
    def training(self) -> frozenset[int]:
        """Ops that run in training: what losses and metrics need."""
        return self.needed(*self.graph.losses, *(m.value for m in self.graph.metrics))

    @cached_property
    def inference(self) -> frozenset[int]:
        """Ops that run to produce the named outputs."""
        return self.needed(*self.graph.outputs.values())

    @cached_property
    def with_gradient(self) -> frozenset[int]:
        """Ops through which gradients flow: a loss needs them, and a parameter lies at or before them."""
        parameters = {p.name for p in self.graph.parameters}
        trained: set[int] = set()
        for index, op in enumerate(self.graph.ops):
            if any(v in parameters or self.producer.get(v, -1) in trained for v in op.inputs):
                trained.add(index)
        return frozenset(trained & self.needed(*self.graph.losses))

    def read_back(self, parameter: str) -> bool:
        """Whether backward passes read a parameter, and not only forward passes and updates: conservative, so True for an
        input of a kind that nothing is said about."""
        for index in self.consumers.get(parameter, ()):
            if index not in self.with_gradient:
                continue
            op = self.graph.ops[index]
            readers = READ_BACK.get(op.kind)
            if readers is None:
                return True
            for position, name in enumerate(op.inputs):
                if name == parameter and any(self._has_gradient(op.inputs[p]) for p in readers.get(position, ())):
                    return True
        return False

    def _has_gradient(self, value: str) -> bool:
        return self.producer.get(value, -1) in self.with_gradient or any(p.name == value for p in self.graph.parameters)

    def gradient_consumers(self, value: str) -> list[int]:
        """The ops, in graph order, that send a gradient back to `value`'s producer; empty where none flows."""
        if self.producer.get(value, -1) not in self.with_gradient:
            return []
        return [
            c for c in self.consumers.get(value, ()) if c in self.with_gradient and passes(self.graph.ops[c], value)
        ]


def passes(op: Op, value: str) -> bool:
    """Whether a gradient flows through `op` to this input: not to labels, shapes or indices."""
    row = ops.TABLE[op.kind]
    return any(name == value and row.differentiable(position) for position, name in enumerate(op.inputs))
