"""Segments and transfers: what an assignment of ops to nodes means for each node.

depth(op) = max over its producers of depth(producer) + (1 if the producer is on another node). The ops of one node and
one depth, by weakly connected component, form a *segment*. Depth never falls along an edge and rises along every edge
between nodes, so the graph of segments has no cycle, whatever the assignment: the branches of one block may lie on
different nodes.

A *transfer* is a value that crosses between nodes: forward once to each consuming node, and backward once per consuming
op, because sums of three or more gradients depend on their order and are made by the producer, in graph order. Transfers
are numbered alike on every node; the wire carries only that number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from p2pnn.model import ops
from p2pnn.model.graph import Graph, Op


@dataclass(frozen=True, slots=True)
class Segment:
    """ops: indices into the graph, ascending. Segments are numbered by (depth, first op)."""

    index: int
    node: int
    depth: int
    ops: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Transfer:
    """consumer is −1 for a forward transfer of `value`; else the op whose gradient for `value` travels back."""

    index: int
    value: str
    consumer: int
    source: int
    target: int

    @property
    def backward(self) -> bool:
        return self.consumer >= 0


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


def segments(graph: Graph, assignment: Sequence[int]) -> list[Segment]:
    """Cut the graph by depth. assignment: one node number per op. Returns segments in (depth, first op) order."""
    flow = Flow(graph)
    depth: list[int] = []
    parent = list(range(len(graph.ops)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    for index, op in enumerate(graph.ops):
        producers = [flow.producer[v] for v in op.inputs if v in flow.producer]
        depth.append(max((depth[p] + (assignment[p] != assignment[index]) for p in producers), default=0))
        for p in producers:
            if assignment[p] == assignment[index] and depth[p] == depth[index]:
                parent[root(index)] = root(p)
    groups: dict[int, list[int]] = {}
    for index in range(len(graph.ops)):
        groups.setdefault(root(index), []).append(index)
    ordered = sorted(groups.values(), key=lambda ops: (depth[ops[0]], ops[0]))
    return [Segment(n, assignment[ops[0]], depth[ops[0]], tuple(ops)) for n, ops in enumerate(ordered)]


def transfers(graph: Graph, assignment: Sequence[int]) -> list[Transfer]:
    """Everything that crosses between nodes, numbered by (producing op, output, forward first, target or consumer)."""
    flow = Flow(graph)
    found: list[Transfer] = []
    for index, op in enumerate(graph.ops):
        for value in op.outputs:
            source = assignment[index]
            remote = [c for c in flow.consumers.get(value, ()) if assignment[c] != source]
            for target in sorted({assignment[c] for c in remote}):
                found.append(Transfer(len(found), value, -1, source, target))
            backwards = set(flow.gradient_consumers(value))
            for consumer in remote:
                if consumer in backwards:
                    found.append(Transfer(len(found), value, consumer, assignment[consumer], source))
    return found
