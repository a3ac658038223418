"""What a node records of one start of a job: its executors' rings and its own, and what their numbers mean.

All rings are of fixed size (`job.spans`). The daemon's holds tensors, pushes and values: sent, from the executor's word until
their memory is free again, and received, from the first frame until the whole body lies in its place. An executor's lies in its
arena; a view of it is held here, so that it can still be read when that process is gone.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

from p2pnn.job import spans
from p2pnn.job.plan import Plan
from p2pnn.job.segment import segments, transfers
from p2pnn.job.spans import Kind
from p2pnn.job.spec import JobSpec
from p2pnn.job.trace import NodePart, Passage
from p2pnn.model.graph import Graph
from p2pnn.plan.pins import layer
from p2pnn.ps.layout import shardings_of
from p2pnn.train.frames import nbytes
from p2pnn.types import JobId, NodeId

clock: Final = time.perf_counter
"""Of all spans here and in the executor: monotonic, and one for all processes of a machine."""


DRIFT: Final = 1e-4
"""By how much two clocks may run apart, per second; quartz keeps to half of it."""


@dataclass(frozen=True, slots=True)
class Offset:
    """What to add to this node's clock to have another's, and how far that was wrong at most when it was measured.

    error_s is 0.0 for the own clock and −1.0 where nothing is known. measured_s: when, by this node's clock.
    """

    offset_s: float = 0.0
    error_s: float = -1.0
    measured_s: float = 0.0

    def error_at(self, now: float) -> float:
        """The most by which it is wrong at another moment; −1.0 where nothing is known."""
        return self.error_s if self.error_s <= 0 else self.error_s + DRIFT * abs(now - self.measured_s)

    def better(self, other: Offset, now: float) -> Offset:
        """The one that errs less at `now`."""
        mine, theirs = self.error_at(now), other.error_at(now)
        return other if theirs >= 0 and (mine < 0 or theirs < mine) else self

    @staticmethod
    def of_trip(left: float, came: float, theirs: float) -> Offset:
        """From one round trip: when it left and came back here, and what the other's clock was in between."""
        return Offset(theirs - (left + came) / 2, (came - left) / 2, came)


class Recording:
    """From the executor's start until the part ends. offset: to the coordinator's clock; whoever measures it sets it.

    Of a data-parallel plan, what the node's own model replica does, and what its server does for each push.
    """

    def __init__(self, job: JobId, generation: int, coordinator: NodeId, index: int, spec: JobSpec, plan: Plan) -> None:
        self.job = job
        self.generation = generation
        self.coordinator = coordinator
        self.offset = Offset()
        self._index = index
        self._names = tuple(share.name for share in plan.nodes)
        number = plan.worker_of(index)
        nodes = plan.replicas[max(0, number)].nodes if plan.replicas else range(len(plan.nodes))
        assignment = plan.assignment if number >= 0 else ()
        self._segments = (
            tuple(_layers(spec.graph, s.ops) for s in segments(spec.graph, assignment)) if assignment else ()
        )
        sizes = {value.name: nbytes(value, spec.rows_per_micro_batch) for value in spec.graph.values}
        maker = {value: op for op, made in enumerate(spec.graph.ops) for value in made.outputs}
        self._transfers = tuple(
            Passage(layer(spec.graph, maker[t.value]), sizes[t.value], nodes[t.source], nodes[t.target], t.backward)
            for t in (transfers(spec.graph, assignment) if assignment else ())
        )
        self._computed: memoryview | bytearray = bytearray(spans.HEAD_BYTES + spans.RECORD.size)
        self._moved = bytearray(spans.RING_BYTES)
        self._ring = spans.Ring(self._moved)
        self._served: memoryview | bytearray = bytearray(spans.HEAD_BYTES + spans.RECORD.size)
        self._homes = tuple(home.nodes[0] for home in plan.shards)
        self._workers = tuple(replica.nodes[0] for replica in plan.replicas)
        self._speakers: tuple[tuple[int, ...], ...] = ()
        if spec.data is not None and any(len(replica.nodes) > 1 for replica in plan.replicas):
            parts = shardings_of(spec, plan)[0].segments
            self._speakers = tuple(tuple(replica.nodes[part] for replica in plan.replicas) for part in parts)
        self._begun: dict[tuple[int, ...], float] = {}
        self._closed_s: float | None = None

    def watch(self, memory: memoryview | None) -> None:
        """The executor's ring; None where that is gone already."""
        if memory is not None:
            self._computed = memory

    def watch_server(self, memory: memoryview | None) -> None:
        """The ring of the executor that serves shards; None where that is gone already."""
        if memory is not None:
            self._served = memory

    def begins(self, transfer: int, micro_batch: int) -> None:
        """A tensor begins to come."""
        self._begun[transfer, micro_batch] = clock()

    def received(self, transfer: int, micro_batch: int) -> None:
        """It lies in its place. One that never does is bounded by the frames, as is what is remembered of it here."""
        start = self._begun.pop((transfer, micro_batch), None)
        if start is not None:
            self._ring.add(start, clock(), micro_batch, -1, Kind.RECEIVE, transfer)

    def sent(self, transfer: int, micro_batch: int, start: float) -> None:
        """A tensor's memory is free again; start: when the executor had it sent, by `clock`."""
        self._ring.add(start, clock(), micro_batch, -1, Kind.SEND, transfer)

    def push_begins(self, shard: int, worker: int, sequence: int, part: int) -> None:
        """A part of a push begins to come."""
        self._begun[shard, worker, sequence, part] = clock()

    def push_received(self, shard: int, worker: int, sequence: int, part: int) -> None:
        """It lies in its slot."""
        start = self._begun.pop((shard, worker, sequence, part), None)
        if start is not None:
            self.exchanged(Kind.RECEIVE_PUSH, shard, worker, sequence, start)

    def exchanged(self, kind: Kind, shard: int, worker: int, sequence: int, start: float) -> None:
        """A part of a push, or values, were sent or came, since `start` by `clock`."""
        self._ring.add(start, clock(), sequence, -1, kind, spans.of_push(shard, worker))

    def part(self) -> NodePart:
        """What is recorded by now; its copy of the rings is its own."""
        computed, moved, served = map(spans.read, (self._computed, self._moved, self._served))
        now = clock() if self._closed_s is None else self._closed_s
        return NodePart(
            job=self.job,
            generation=self.generation,
            index=self._index,
            name=self._names[self._index],
            nodes=self._names,
            segments=self._segments,
            transfers=self._transfers,
            computed=computed.spans,
            moved=moved.spans,
            computed_lost=computed.lost,
            moved_lost=moved.lost,
            since=computed.since,
            taken_s=now,
            clock_offset_s=self.offset.offset_s,
            clock_error_s=self.offset.error_at(now),
            served=served.spans,
            served_lost=served.lost,
            homes=self._homes,
            workers=self._workers,
            speakers=self._speakers,
        )

    def close(self) -> None:
        """The executors write no more: let their memory go, and keep what is in it."""
        self._computed, self._served = bytearray(self._computed), bytearray(self._served)
        self._closed_s = clock()


def _layers(graph: Graph, ops: tuple[int, ...]) -> str:
    """`conv1 … fc2`: a segment by its first and last op."""
    first, last = layer(graph, ops[0]), layer(graph, ops[-1])
    return first if first == last else f"{first} … {last}"
