"""What each node does for one micro-batch: the static side of the segment machine.

For each mode a node has a list of *tasks*, one per segment with active ops. A task waits for tensors from other nodes
and for other segments of its own node, and leaves tensors to be sent. All of that is known before the job starts, so it
is written down as bits of one integer per frame: a bit for each transfer (it arrived here, or it has left), one for each
segment's forward, one for each segment's backward. A task may run when `needs & ~have` is 0; a micro-batch is retired
when `have` holds all bits of `complete`.

Train and evaluate run the ops that losses and metrics need, predict those that the named outputs need. A forward
transfer is active in a mode if an active op on its target reads it, a backward one only in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from p2pnn.job.segment import Segment, Transfer, segments, transfers
from p2pnn.model.flow import Flow
from p2pnn.model.graph import Graph

Mode = Literal["train", "evaluate", "predict"]
MODES: Final[tuple[Mode, ...]] = ("train", "evaluate", "predict")


@dataclass(frozen=True, slots=True)
class Task:
    """One segment in one mode. position: its number among this node's segments; ops: the active ones, ascending.

    needs, makes: bits that the forward pass waits for and sets; sends: transfers it leaves. The same for backward, which
    is absent (has_backward False) outside training and where no gradient flows.
    """

    position: int
    segment: int
    ops: tuple[int, ...]
    needs: int
    makes: int
    sends: tuple[int, ...]
    has_backward: bool = False
    backward_needs: int = 0
    backward_makes: int = 0
    backward_sends: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ModeTasks:
    """All of a node's work on one micro-batch. inputs: the graph inputs that its active ops read."""

    tasks: tuple[Task, ...]
    complete: int
    computations: int
    inputs: tuple[str, ...]


class Routes:
    """One node's part of an assignment: its segments, transfers and tasks by mode, and who owns which parameter."""

    def __init__(self, graph: Graph, assignment: Sequence[int], node_index: int, node_count: int) -> None:
        self.graph = graph
        self.node_index = node_index
        self.flow = Flow(graph)
        self.transfers: tuple[Transfer, ...] = tuple(transfers(graph, assignment))
        self.segments: tuple[Segment, ...] = tuple(s for s in segments(graph, assignment) if s.node == node_index)
        self.ops: tuple[int, ...] = tuple(i for i, node in enumerate(assignment) if node == node_index)
        self.owned: tuple[tuple[str, ...], ...] = owned_parameters(graph, assignment, node_count)
        self._by_edge = {(t.value, t.consumer, t.target if t.consumer < 0 else 0): t for t in self.transfers}
        self._home = {op: position for position, s in enumerate(self.segments) for op in s.ops}
        self._assignment = tuple(assignment)
        self.modes: dict[Mode, ModeTasks] = {mode: self._tasks(mode) for mode in MODES}

    def active(self, mode: Mode) -> frozenset[int]:
        """The ops that run in a mode, on any node."""
        return self.flow.inference if mode == "predict" else self.flow.training

    def _tasks(self, mode: Mode) -> ModeTasks:
        active = self.active(mode)
        tasks: list[Task] = []
        complete = 0
        inputs: dict[str, None] = {}
        for position, segment in enumerate(self.segments):
            ops = tuple(op for op in segment.ops if op in active)
            if not ops:
                continue
            task = self._task(mode, position, segment, ops, active)
            tasks.append(task)
            complete |= task.needs | task.makes | task.backward_needs | task.backward_makes
            for transfer in (*task.sends, *task.backward_sends):
                complete |= 1 << transfer
            inputs.update((v, None) for op in ops for v in self.graph.ops[op].inputs)
        names = tuple(value.name for value in self.graph.inputs if value.name in inputs)
        computations = len(tasks) + sum(task.has_backward for task in tasks)
        return ModeTasks(tuple(tasks), complete, computations, names)

    def _task(self, mode: Mode, position: int, segment: Segment, ops: tuple[int, ...], active: frozenset[int]) -> Task:
        needs, sends = 0, []
        for op in ops:
            for value in self.graph.ops[op].inputs:
                producer = self.flow.producer.get(value, -1)
                if producer < 0 or self._home.get(producer) == position:
                    continue
                if self._assignment[producer] == self.node_index:
                    needs |= self._forward_bit(self._home[producer])
                else:
                    needs |= 1 << self._by_edge[value, -1, self.node_index].index
            for value in self.graph.ops[op].outputs:
                targets = {self._assignment[c] for c in self.flow.consumers.get(value, ()) if c in active}
                sends += [self._by_edge[value, -1, t].index for t in sorted(targets - {self.node_index})]
        makes = self._forward_bit(position)
        if mode != "train" or not any(op in self.flow.with_gradient for op in ops):
            return Task(position, segment.index, ops, needs, makes, tuple(sends))
        back_needs, back_sends = self._backward(position, ops)
        back_makes = makes << 1
        return Task(
            position, segment.index, ops, needs, makes, tuple(sends), True, makes | back_needs, back_makes, back_sends
        )

    def _backward(self, position: int, ops: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
        """The gradients that a segment waits for, as bits, and the transfers that carry those it makes."""
        needs, sends = 0, []
        for op in ops:
            for value in self.graph.ops[op].outputs:
                for consumer in self.flow.gradient_consumers(value):
                    if self._assignment[consumer] != self.node_index:
                        needs |= 1 << self._by_edge[value, consumer, 0].index
                    elif self._home[consumer] != position:
                        needs |= self._forward_bit(self._home[consumer]) << 1
        mine = set(ops)
        sends = [t.index for t in self.transfers if t.consumer in mine]
        return needs, tuple(sends)

    def _forward_bit(self, position: int) -> int:
        """Bits above the transfers': forward and backward of each of this node's segments, side by side."""
        return 1 << (len(self.transfers) + 2 * position)


def owned_parameters(graph: Graph, assignment: Sequence[int], node_count: int) -> tuple[tuple[str, ...], ...]:
    """Per node, the parameters that its ops read, in graph order. Ops that share a parameter lie on one node."""
    owner: dict[str, int] = {}
    for index, op in enumerate(graph.ops):
        for name in op.inputs:
            owner.setdefault(name, assignment[index])
    return tuple(tuple(p.name for p in graph.parameters if owner.get(p.name) == node) for node in range(node_count))
