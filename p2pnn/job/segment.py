"""Segments and transfers: what an assignment of ops to nodes means for each node.

depth(op) = max over its producers of depth(producer) + (1 if the producer is on another node). The ops of one node and
one depth, by weakly connected component, form a *segment*. Depth never falls along an edge and rises along every edge
between nodes, so the graph of segments has no cycle, whatever the assignment: the branches of one block may lie on
different nodes.

A *transfer* is a value that crosses between nodes: forward once to each consuming node, and backward once per consuming
op, because sums of three or more gradients depend on their order and are made by the producer, in graph order. Transfers
are numbered alike on every node; the wire carries only that number.

With several mini-batches in flight (`async:K`) each node has a fixed *delay*: mini-batch t is computed with the parameters
after max(0, t − delay) updates. Delays, too, follow from graph and assignment alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from p2pnn.model.flow import Flow, passes
from p2pnn.model.graph import Graph

__all__ = ["Flow", "Segment", "Transfer", "delays", "passes", "segments", "transfers"]


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


def delays(graph: Graph, assignment: Sequence[int], in_flight: int, node_count: int) -> tuple[int, ...]:
    """Per node, how many updates behind its mini-batches run when `in_flight` of them are in flight.

    ⌈(in_flight − 1) · L(n) / L⌉, where L(n) is how many depths lie between node n's first segment that trains and the last
    one of all, and L the greatest of them: in_flight − 1 where mini-batches enter, 0 where they turn around. () for
    in_flight = 0, where every step ends before the next begins. (PipeDream, Narayanan et al. 2019, §3.3, has the same
    for stages in a row; here branches may go several ways.)
    """
    if in_flight < 1:
        return ()
    training = Flow(graph).training
    parts = [part for part in segments(graph, assignment) if not training.isdisjoint(part.ops)]
    last = max((part.depth for part in parts), default=0)
    first = [min((part.depth for part in parts if part.node == node), default=last) for node in range(node_count)]
    longest = max((last - depth for depth in first), default=0)
    return tuple(-(-(in_flight - 1) * (last - depth) // longest) if longest else 0 for depth in first)
