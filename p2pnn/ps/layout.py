"""Where pushes and values lie in the arenas that a daemon shares with its executors: pure functions of (spec, plan, node).

Memory is static, as in `train.frames`: what comes from a peer has one place, which daemon and executor compute alike, so a body
is received straight into it. In a server's arena each shard has `window` slots per worker; push number n lies in slot n mod
window, part behind part. Its worker makes push n only when push n − WINDOW is acknowledged, so the slot is free. In a worker's
arena each shard has LANDINGS places for values, which are used in turn. What only the executor writes lies behind them: versions
and compressed answers of a server, push bodies of a worker. It is handed out front to back (`Bump`), and travels as (offset,
bytes) in commands.

A model replica is one worker; its number is its place in `Plan.replicas`. Where it is cut over several nodes, each has a space
and shards of its own (`sharding.cut_segments`): of each replica one node speaks to a shard, so a shard needs not know how
many it has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

import numpy as np

from p2pnn.errors import LocalProtocolError, PlanError
from p2pnn.job.plan import Plan
from p2pnn.job.spec import DataParallel, JobSpec
from p2pnn.ps.compression import Bytes, codec
from p2pnn.ps.consistency import Settings, settings
from p2pnn.ps.messages import Worker
from p2pnn.ps.sharding import Sharding, ShardRange, cut_segments
from p2pnn.ps.space import Space
from p2pnn.ps.versions import buffers
from p2pnn.train.schedule import owned_parameters

WINDOW: Final = 2
"""Pushes of a worker under way: one is on its way in while the one before is decided."""

LANDINGS: Final = 2
"""Values of a shard that a worker's arena holds: while it computes, or takes the last ones over, the next come in behind them."""

ALIGNMENT_BYTES: Final = 64

Run = tuple[int, int]
"""(offset, bytes)."""


def window(copies: int) -> int:
    """Slots per worker of a shard that lives in so many processes.

    Alone, those of the pushes under way: push n comes when n − WINDOW is applied. A backup holds a push before it is applied,
    and hears only with later ones that it is. But n has its place in the log when n − WINDOW has been acknowledged, and says so:
    whoever holds n has applied n − WINDOW. So that is applied everywhere when n is acknowledged and n + WINDOW comes: twice the
    window is enough.
    """
    return WINDOW if copies == 1 else 2 * WINDOW


def shardings_of(spec: JobSpec, plan: Plan) -> tuple[Sharding, tuple[Sharding, ...]]:
    """How all parameters lie in the plan's shards, and how those of each node of a replica do, by its position there. Raises
    PlanError for what cannot be cut so."""
    data, nodes = _data(spec), max((len(replica.nodes) for replica in plan.replicas), default=1)
    space = Space.of(spec.graph)
    names = owned_parameters(spec.graph, plan.assignment, nodes) if nodes > 1 else [[e.name for e in space.entries]]
    return cut_segments(space, names, len(plan.shards), data.cut)


def workers_of(plan: Plan) -> tuple[Worker, ...]:
    """Each worker's name to the cores, by its number in the plan; one for all nodes of a replica."""
    return tuple(Worker(plan.nodes[replica.nodes[0]].node) for replica in plan.replicas)


def part_sizes(shard: ShardRange, push: str) -> tuple[int, ...]:
    """The bytes of each part of a push to this shard, with the compression `push`."""
    how = codec(push)
    return tuple(how.byte_count(part.size) for part in shard.parts)


@dataclass(frozen=True, slots=True)
class Slots:
    """Where the pushes to one shard lie: worker w's number n at start + (w · window + n mod window) · stride.

    parts: (offset within the slot, bytes). window: slots of a worker.
    """

    start: int
    stride: int
    workers: int
    parts: tuple[Run, ...]
    window: int = WINDOW

    @classmethod
    def of(cls, sizes: Sequence[int], workers: int, start: int = 0, window: int = WINDOW) -> Slots:
        starts = list(accumulate(sizes, initial=0))
        return cls(start, _aligned(starts[-1]), workers, tuple(zip(starts, sizes, strict=False)), window)

    @property
    def stop(self) -> int:
        return self.start + self.workers * self.window * self.stride

    @property
    def nbytes(self) -> int:
        """Of one push."""
        return self.parts[-1][0] + self.parts[-1][1]

    def offset(self, worker: int, number: int) -> int:
        """Where a worker's slot number `number` begins."""
        return self.start + (worker * self.window + number) * self.stride

    def place(self, worker: int, sequence: int, part: int) -> Run:
        """(offset, bytes) of a part of a push. The caller has checked that there are such a worker and part."""
        offset, nbytes = self.parts[part]
        return self.offset(worker, sequence % self.window) + offset, nbytes


@dataclass(frozen=True, slots=True)
class ServerLayout:
    """The arena of a node's server. slots: by shard, from the first byte on. rest: where the executor's own part begins."""

    sharding: Sharding
    slots: Mapping[int, Slots]
    rest: int
    arena_bytes: int

    @classmethod
    def of(
        cls, sharding: Sharding, served: Iterable[int], settings: Settings, workers: int, copies: int = 1
    ) -> ServerLayout:
        """For the shards with these numbers, none for an empty arena. copies: processes that each of them lives in."""
        slots: dict[int, Slots] = {}
        end = own = 0
        for number in served:
            shard = sharding.shards[number]
            slots[number] = Slots.of(part_sizes(shard, settings.push), workers, end, window(copies))
            end = slots[number].stop
            own += _served_bytes(shard, settings, workers)
        return cls(sharding, slots, end, end + own)

    def slot(self, shard: int, worker: int, sequence: int, part: int) -> Run:
        """(offset, bytes) of a part of a push. Raises LocalProtocolError where it has no place here."""
        found = self.slots.get(shard)
        if found is None or not 0 <= worker < found.workers or not 0 <= part < len(found.parts):
            raise LocalProtocolError(
                f"part {part} of a push of worker {worker} to shard {shard} has no place on this node"
            )
        return found.place(worker, sequence, part)


@dataclass(frozen=True, slots=True)
class WorkerLayout:
    """What the arena of a worker's node holds for its shards, from `start` on. landings: by shard, the first of its LANDINGS
    places; bodies: where push bodies begin.

    values: by shard, the bytes of values that are whole, and of those that are a difference.
    """

    sharding: Sharding
    start: int
    landings: Mapping[int, Run]
    values: Mapping[int, tuple[int, int]]
    bodies: int
    stop: int

    @classmethod
    def of(cls, sharding: Sharding, settings: Settings, start: int = 0) -> WorkerLayout:
        """start: the first byte of the arena that is free."""
        start = end = _aligned(start)
        landings: dict[int, Run] = {}
        values: dict[int, tuple[int, int]] = {}
        for shard in sharding.shards:
            values[shard.index] = shard.byte_count, _difference_bytes(shard, settings)
            landings[shard.index] = end, max(values[shard.index])
            end += LANDINGS * _aligned(landings[shard.index][1])
        bodies = sum(_aligned(sum(part_sizes(shard, settings.push))) for shard in sharding.shards)
        return cls(sharding, start, landings, values, end, end + WINDOW * bodies)

    def landing(self, shard: int, turn: int = 0) -> Run:
        """(offset, bytes) of the place for a shard's values number `turn`: places are used in turn. Raises LocalProtocolError
        for a shard that there is not."""
        if shard not in self.landings:
            raise LocalProtocolError(f"there is no shard {shard}")
        first, nbytes = self.landings[shard]
        return first + turn % LANDINGS * _aligned(nbytes), nbytes

    @property
    def nbytes(self) -> int:
        return self.stop - self.start


def server_layout(spec: JobSpec, plan: Plan, index: int) -> ServerLayout:
    """Of node `index`, which holds some of the plan's shards. A backup has all that it would need as the primary."""
    served, workers = plan.served_by(index), len(plan.replicas)
    return ServerLayout.of(shardings_of(spec, plan)[0], served, settings(_data(spec)), workers, plan.copies)


def worker_layout(spec: JobSpec, plan: Plan, index: int, start: int = 0) -> WorkerLayout:
    """Of node `index`, a replica's, or one of its nodes. start: the first byte of the arena that is free."""
    return WorkerLayout.of(shardings_of(spec, plan)[1][plan.position(index)], settings(_data(spec)), start)


def _served_bytes(shard: ShardRange, settings: Settings, workers: int) -> int:
    """Versions, and per worker the buffers from which compressed values are sent."""
    whole, difference = _aligned(shard.byte_count), _difference_bytes(shard, settings)
    streams = workers * (whole + _aligned(difference)) if difference else 0
    return whole * buffers(settings.consistency) + streams


def _difference_bytes(shard: ShardRange, settings: Settings) -> int:
    """Of compressed values; 0 where they are sent as they are."""
    return codec(settings.pull).byte_count(shard.size) if settings.pull != "float32" else 0


class Bump:
    """Hands out bytes [start, stop) of an arena from front to back, aligned; nothing is given back.

    A `buffer` for `ps.Shard`, `ps.Replica`: called with a count it returns uint8[count].
    """

    def __init__(self, view: memoryview, start: int, stop: int) -> None:
        self._all: Bytes = np.frombuffer(view, np.uint8)
        self._at, self._stop = start, stop

    def __call__(self, nbytes: int) -> Bytes:
        """Raises LocalProtocolError where the layout has left too little for it."""
        at = _aligned(self._at)
        if at + nbytes > self._stop:
            raise LocalProtocolError(f"the layout leaves {max(0, self._stop - at):,} bytes where {nbytes:,} are needed")
        self._at = at + nbytes
        return self._all[at : at + nbytes]

    def run(self, data: Bytes) -> Run:
        """(offset, bytes) in the arena of what lies there."""
        return data.ctypes.data - self._all.ctypes.data, data.nbytes


def slot_of(view: memoryview, slots: Slots, worker: int, number: int) -> Bytes:
    """The bytes of one slot, uint8[the whole push]."""
    start = slots.offset(worker, number)
    return np.frombuffer(view, np.uint8, slots.nbytes, start)


def _data(spec: JobSpec) -> DataParallel:
    if spec.data is None:
        raise PlanError("the job is not data-parallel: it has no parameter server")
    return spec.data


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
