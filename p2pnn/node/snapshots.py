"""The keeper of snapshots: what this node's own parts copied into their arenas, and what others' parts sent here.

Each part of a running job hands over its cuts (`own`); the newest of them goes to a buddy, the next living node of the plan or
else any other member, on the data link and behind everything else. One at a time: a cut that comes while another is still being
sent waits, and gives way to a newer one. Of each part the newest few are kept here (`train.cuts.Places.kept`, at least two): its
own in the slots of the arena, which outlives its executor, another's in this process.

They go when the job has ended or a newer start of it runs: that start began from a checkpoint, which the cut has become. They
go when it is parked, too: what it goes on from is chosen by then, and their memory may be what it waits for. To go on from a
cut, its holders write the parts into their stores as a checkpoint's, as the node that coordinates says (`PartWanted`).

What others send is bounded before memory is taken: only for a start that this node knows of by its record, from the node that
has that part, no more than the plan says that part takes there, within what this machine has free.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from p2pnn.data.blobs import BlobStore
from p2pnn.errors import P2pnnError, PeerGone, StorageError
from p2pnn.executor import parts
from p2pnn.executor.memory import available_bytes
from p2pnn.job import life
from p2pnn.job.checkpoint import Part, version_name
from p2pnn.job.plan import Plan
from p2pnn.job.records import JobRecord
from p2pnn.job.spec import JobSpec
from p2pnn.node.blobs import BlobExchange
from p2pnn.node.holdings import Holding, Spare
from p2pnn.node.links import Post, Priority
from p2pnn.node.specs import SPEC_BYTES_MAX, load
from p2pnn.node.tasks import Tasks, in_thread
from p2pnn.train.cuts import Entry, Places, places
from p2pnn.types import BlobId, JobId, NodeId
from p2pnn.wire import messages as wire

log = logging.getLogger("p2pnn.snapshots")

HOLDINGS_MAX: Final = 256
"""Parts of others that are kept here; more are dropped."""

WRITERS: Final = 4
"""Parts that are written at once."""

Key = tuple[JobId, int, int]
"""Job, generation, index of the part."""


class Own:
    """What a part of this node gives to be kept and sent; `close` it when the part ends."""

    def __init__(
        self,
        keeper: Snapshots,
        key: Key,
        holding: Holding,
        counter: memoryview | None,
        freed: Callable[[int], None],
    ) -> None:
        self.seconds = 0.0
        self._keeper = keeper
        self._key = key
        self._holding = holding
        self._freed = freed
        self._slots: dict[int, int] = {}
        self._sending: int | None = None
        self._reading: list[int] = []
        self._sent = -1
        self._counter = counter
        self._open = True
        holding.release = self._released

    @property
    def step(self) -> int:
        """Updates that the executor has done."""
        return 0 if self._counter is None else int(struct.unpack_from("=q", self._counter)[0])

    def snapped(self, step: int, slot: int, data: memoryview) -> None:
        """A slot holds the state after `step` updates."""
        self._slots[step] = slot
        self._holding.add(step, data)
        if self._sending is None:
            self._send(step)

    def take_seconds(self) -> float:
        """How long sending has taken since the last call."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds

    @contextlib.contextmanager
    def pinned(self, step: int) -> Iterator[None]:
        """While a cut is read, its slot is not given back to the executor, which would write the next into it."""
        self._reading.append(step)
        try:
            yield
        finally:
            self._reading.remove(step)
            if step not in self._holding.cuts:
                self._released(step)

    def close(self) -> None:
        """The part has ended: nothing more comes, and what is there stays for a while."""
        self._open = False

    def _send(self, step: int) -> None:
        """Send a cut, and behind it the newest that came meanwhile."""
        while self._open:
            self._sending, start = step, time.perf_counter()
            rest = self._keeper.start_sending(self._key, self._holding.plan, step, self._holding.cuts[step])
            if rest is not None:
                self._keeper.spawn(self._wait(rest, step, start))
                return
            if (newer := self._sent_until(step, start)) is None:
                return
            step = newer

    async def _wait(self, rest: Any, step: int, start: float) -> None:
        try:
            await rest
        except PeerGone as error:
            log.debug("snapshot not sent job=%s reason=%s", self._key[0], error)
        newer = self._sent_until(step, start)
        if newer is not None:
            self._send(newer)

    def _sent_until(self, step: int, start: float) -> int | None:
        """A cut has left; the newest that waits to be sent."""
        self.seconds += time.perf_counter() - start
        self._sending, self._sent = None, max(self._sent, step)
        if step not in self._holding.cuts:
            self._released(step)
        newest = max(self._holding.cuts, default=-1)
        return newest if newest > self._sent else None

    def _released(self, step: int, data: memoryview | None = None) -> None:
        if step == self._sending or step in self._reading:
            return
        if (slot := self._slots.pop(step, None)) is not None and self._open:
            self._freed(slot)


class Snapshots:
    """members: name by node id of every living member; record: the newest record of a job. obeys: whether this node does what
    another says as the coordinator."""

    def __init__(
        self,
        post: Post,
        blobs: BlobExchange,
        members: Callable[[], dict[NodeId, str]],
        record: Callable[[JobId], JobRecord | None],
        obeys: Callable[[NodeId], bool],
    ) -> None:
        self._post = post
        self._blobs = blobs
        self._members = members
        self._record = record
        self._obeys = obeys
        self._making = 0
        self._writers = asyncio.Semaphore(WRITERS)
        self._holdings: dict[Key, Holding] = {}
        self._owns: dict[Key, Own] = {}
        self._spares: dict[Key, Spare] = {}
        self._arriving: dict[tuple[NodeId, Key], tuple[int, memoryview]] = {}
        self._tasks = Tasks()

    def begin(
        self,
        key: Key,
        spec: BlobId,
        plan: Plan,
        found: Places,
        counter: memoryview | None,
        freed: Callable[[int], None],
    ) -> Own:
        """A part begins here that takes snapshots. counter: where its executor counts updates; freed: a slot is free again."""
        holding = self._holdings[key] = Holding(plan, spec, found.kept)
        self._owns[key] = own = Own(self, key, holding, counter, freed)
        return own

    def start_sending(self, key: Key, plan: Plan, step: int, data: memoryview) -> Any:
        """Send a cut to the part's buddy; None where it has left already or there is nobody, else what to await."""
        buddy = self._buddy(plan)
        if buddy is None:
            return None
        try:
            return self._post.start_body(buddy, wire.Snapshot(*key, step), data, Priority.SNAPSHOT)
        except PeerGone as error:
            log.debug("snapshot not sent job=%s node=%s reason=%s", key[0], buddy[:8], error)
            return None

    def spawn(self, work: Any) -> None:
        self._tasks.spawn(work)

    @property
    def held_bytes(self) -> int:
        """Of all cuts that are kept here."""
        return sum(data.nbytes for holding in self._holdings.values() for data in holding.cuts.values())

    # --- messages

    def body_for(self, node: NodeId, message: wire.Snapshot, nbytes: int) -> memoryview | None:
        """Room for a part that comes; None for one that nobody asked this node to keep."""
        key = (JobId(message.job), message.generation, message.index)
        holding = self._holdings.get(key) or self._admit(node, key, nbytes)
        if holding is None or key in self._owns or (node, key) in self._arriving:
            return None
        if holding.plan.nodes[message.index].node != node or any(len(c) != nbytes for c in holding.cuts.values()):
            return None
        room = self._spares[key].take(nbytes)
        self._arriving[node, key] = (message.step, room)
        return room

    def body(self, node: NodeId, message: wire.Snapshot) -> None:
        """It has come whole."""
        key = (JobId(message.job), message.generation, message.index)
        step, data = self._arriving.pop((node, key), (-1, None))
        holding = self._holdings.get(key)
        if data is not None and holding is not None:
            holding.add(step, data)

    def receive(self, node: NodeId, message: wire.Message) -> None:
        match message:
            case wire.CutsWanted():
                self._tell(node, message)
            case wire.PartWanted():
                self._want(node, message)

    def member_lost(self, node: NodeId) -> None:
        """What was on its way from there does not come."""
        for key in [key for key in self._arriving if key[0] == node]:
            del self._arriving[key]

    def record_changed(self, record: JobRecord) -> None:
        """Drop what a job needs no more: it has ended, waits for room, or a newer start of it runs."""
        for key in [key for key in self._holdings if key[0] == record.job]:
            newer = record.generation > key[1] and record.state in life.RUNNING
            if newer or record.state == "parked" or record.is_over:
                self._forget(key)

    async def close(self) -> None:
        await self._tasks.close()
        for key in list(self._holdings):
            self._forget(key)

    # --- how

    def _buddy(self, plan: Plan) -> NodeId | None:
        nodes = [share.node for share in plan.nodes]
        here = nodes.index(self._post.node) if self._post.node in nodes else 0
        others = sorted(set(self._members()) - set(nodes))
        living = self._members()
        for node in (*nodes[here + 1 :], *nodes[:here], *others):
            if node != self._post.node and node in living and self._post.reachable(node):
                return node
        return None

    def _admit(self, node: NodeId, key: Key, nbytes: int) -> Holding | None:
        """Begin to keep a part of another node, where this start is known and there is memory for it."""
        record = self._record(key[0])
        if record is None or record.generation != key[1] or record.plan is None or record.is_over:
            return None
        shares = record.plan.nodes
        if key[2] >= len(shares) or shares[key[2]].node != node or nbytes > shares[key[2]].memory_bytes:
            return None
        kept = Places((), (), nbytes // 4).kept
        if len(self._holdings) >= HOLDINGS_MAX or (kept + 1) * nbytes > available_bytes():
            log.warning("no room for a snapshot job=%s node=%s bytes=%d", key[0], node[:8], nbytes)
            return None
        self._spares[key] = Spare()
        self._holdings[key] = Holding(record.plan, record.spec, kept, release=self._spares[key].release)
        return self._holdings[key]

    def _forget(self, key: Key) -> None:
        self._owns.pop(key, None)
        self._spares.pop(key, None)
        holding = self._holdings.pop(key)
        for step in list(holding.cuts):
            holding.drop(step)

    def _tell(self, node: NodeId, message: wire.CutsWanted) -> None:
        found, step = [], 0
        for key, holding in self._holdings.items():
            if key[:2] == (message.job, message.generation):
                found += [(key[2], at) for at in holding.cuts]
                step = max(step, self._owns[key].step if key in self._owns else 0)
        found = found[: wire.CUTS_MAX]
        indices, steps = tuple(index for index, _ in found), tuple(at for _, at in found)
        about = (message.job, message.generation, message.request)
        self._post.send(node, wire.CutsHeld(*about, step, indices, steps))

    def _want(self, node: NodeId, message: wire.PartWanted) -> None:
        """Only the coordinator has parts written, and no more than there are to be had."""
        if not self._obeys(node):
            why = f"another node coordinates, as far as node {self._post.name} knows"
        elif self._making >= HOLDINGS_MAX:
            why = f"node {self._post.name} writes {HOLDINGS_MAX} parts already; try again when they are done"
        else:
            self._making += 1
            self._tasks.spawn(self._make(node, message))
            return
        log.info("no part of a cut job=%s reason=%s", message.job, why)
        self._post.send(node, wire.PartMade(message.job, message.generation, message.request, b"", why))

    async def _make(self, node: NodeId, message: wire.PartWanted) -> None:
        about = (message.job, message.generation, message.request)
        try:
            async with self._writers:
                part = await self._write((JobId(message.job), message.generation, message.index), message.step, node)
            self._post.send(node, wire.PartMade(*about, msgspec.msgpack.encode(part)))
        except P2pnnError as error:
            self._post.send(node, wire.PartMade(*about, b"", str(error)))
        finally:
            self._making -= 1

    async def _write(self, key: Key, step: int, node: NodeId) -> Part:
        """Write a cut's part into the store. Raises StorageError where it cannot be, or is not here any more."""
        holding = self._holdings.get(key)
        data = holding.cuts.get(step) if holding else None
        if holding is None or data is None:
            raise StorageError(f"it does not hold part {key[2]} of the cut after step {step} any more")
        own = self._owns.get(key)
        with own.pinned(step) if own else self._spares[key].pinned():
            await self._blobs.fetch(holding.spec, [node], size_max=SPEC_BYTES_MAX)
            return await in_thread(self._write_now, holding, key[2], step, data)

    def _write_now(self, holding: Holding, index: int, step: int, data: memoryview) -> Part:
        blobs = self._blobs.blobs
        return write(blobs, load(blobs, holding.spec), holding.plan, index, step, data)


def write(blobs: BlobStore, spec: JobSpec, plan: Plan, index: int, step: int, data: memoryview) -> Part:
    """Write node `index`'s part of the cut after `step` updates into the store, as an executor writes a checkpoint's.

    Raises StorageError for a part of another size than the plan's, or a disk that takes it not.
    """
    found = places(spec, plan, index)
    if len(data) != found.nbytes:
        raise StorageError(f"the snapshot has {len(data):,} bytes, but the plan says {found.nbytes:,}")
    numbers: NDArray[np.float32] = np.frombuffer(data, "<f4")

    def entry(e: Entry) -> parts.Entry:
        name = version_name(step - e.behind, e.parameter.name) if e.behind else e.name
        shape = e.parameter.shape
        return name, shape, lambda: numbers[e.offset : e.offset + e.count].reshape(shape)

    named = [entry(e) for e in found.named]
    more = [entry(e) for e in found.more if e.behind <= step]
    return parts.write(blobs, named, more)
