"""The traces of jobs: this node's recordings, kept when a part ends, and those of other nodes, gathered for who asks.

Recording is always on. While a part runs its recording is in memory; when it has ended, by whatever way, it is stored, and the
newest are kept (`node.storage`). Whoever wants a job's trace asks each node of its plan. A node that has nothing, or
does not answer, is named, and the others' parts are given.

Every part says how far its clock is from the coordinator's: a few short round trips over the control link when the
recording begins, and again when it is asked for or ends, because clocks run apart.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Final, NamedTuple

import msgspec

from p2pnn.errors import CheckpointError, NotFoundError, P2pnnError, UsageError
from p2pnn.job import trace
from p2pnn.job.plan import NodeShare
from p2pnn.job.records import JobRecord
from p2pnn.job.trace import PART_BYTES_MAX, NodePart
from p2pnn.node import parcels
from p2pnn.node.asking import Asking
from p2pnn.node.blobs import BlobExchange
from p2pnn.node.links import Post
from p2pnn.node.recording import Offset, Recording, clock
from p2pnn.node.storage import Storage
from p2pnn.node.tasks import Tasks, in_thread
from p2pnn.types import JobId, NodeId
from p2pnn.wire import messages as wire

log = logging.getLogger("p2pnn.jobs")

TRIPS: Final = 8
"""Round trips per measurement of a clock; the quickest counts."""

MEASURE_TIMEOUT_S: Final = 1.0
AT_ONCE: Final = 4
"""Parts that are fetched, and held in memory, at the same time."""

FETCH_TIMEOUT_S: Final = 60.0
"""How long a part that is too large for a message waits in the store to be fetched."""

PARCELS_MAX: Final = 16
"""Parts that wait so, 2 MB each; who asks for more is refused until one is gone."""


class Missing(NamedTuple):
    """A node's part that cannot be had, and why, in one sentence."""

    name: str
    reason: str


class Traces:
    """Ends with `close`, after which parts that end are still kept; `asking` is told what to answer."""

    def __init__(self, post: Post, storage: Storage, exchange: BlobExchange, asking: Asking) -> None:
        self._post = post
        self._storage = storage
        self._exchange = exchange
        self._asking = asking
        self._live: dict[JobId, Recording] = {}
        self._parcels = 0
        self._closed = False
        self._tasks = Tasks()
        asking.offer("clock", self._answer_clock)
        asking.offer("trace", self._answer_trace)

    def begin(self, recording: Recording) -> None:
        """A part has an executor; `end` follows."""
        self._live[recording.job] = recording
        self._tasks.spawn(self._measure(recording))

    async def end(self, recording: Recording) -> None:
        """The part has ended and the recording is closed: keep it, unless another start of the job has begun meanwhile."""
        await self._measure(recording)
        if self._live.get(recording.job) is not recording:
            return
        try:
            await in_thread(self._storage.save_trace, recording.job, msgspec.msgpack.encode(recording.part()))
        except (OSError, P2pnnError) as error:
            log.warning("trace not stored job=%s reason=%s", recording.job, error)
        finally:
            if self._live.get(recording.job) is recording:
                del self._live[recording.job]

    async def collect(self, record: JobRecord) -> AsyncIterator[NodePart | Missing]:
        """The part of each node of the job's plan, in its order, or why it is missing; none where nothing is planned yet."""
        shares = list(enumerate(_shares(record)))
        for start in range(0, len(shares), AT_ONCE):
            asked = (self._of(record, index, share) for index, share in shares[start : start + AT_ONCE])
            for found in await asyncio.gather(*asked):
                yield found

    async def close(self) -> None:
        self._closed = True
        await self._tasks.close()

    # --- how

    async def _of(self, record: JobRecord, index: int, share: NodeShare) -> NodePart | Missing:
        try:
            data = await (self._own(record.job) if share.node == self._post.node else self._fetch(record.job, share))
            part = trace.decode(data, f"what node {share.name} recorded")
            if (part.job, part.index, part.nodes) != (record.job, index, tuple(s.name for s in _shares(record))):
                raise CheckpointError("what it recorded is of other nodes than the job's")
            if part.generation != record.generation:
                raise CheckpointError(f"it recorded start {part.generation} of the job, not start {record.generation}")
        except P2pnnError as error:
            return Missing(share.name, str(error))
        return part

    async def _fetch(self, job: JobId, share: NodeShare) -> bytes:
        if not self._post.reachable(share.node):
            raise UsageError("it is not connected")
        answer = await self._asking.inquire(share.node, share.name, wire.Ask(0, job, "trace"))
        if not isinstance(answer, wire.Traced):
            raise UsageError("it answered something else")
        data = await parcels.unpack(answer.part, self._exchange, [share.node], PART_BYTES_MAX)
        await asyncio.to_thread(parcels.forget, data, self._exchange.blobs)
        return data

    async def _own(self, job: JobId) -> bytes:
        """This node's part, of a part that runs or of the storage. Raises NotFoundError, StorageError."""
        recording = self._live.get(job)
        if recording is not None:
            await self._measure(recording)
            return msgspec.msgpack.encode(recording.part())
        data = await in_thread(self._storage.load_trace, job)
        if data is None:
            raise NotFoundError("it has recorded nothing of the job, or no longer keeps it")
        return data

    async def _answer_clock(self, node: NodeId, message: wire.Ask) -> wire.Traced:
        return wire.Traced(message.request, _now_ns())

    async def _answer_trace(self, node: NodeId, message: wire.Ask) -> wire.Traced:
        if self._parcels >= PARCELS_MAX:
            raise UsageError("it gives enough traces to others already; ask again in a minute")
        self._parcels += 1
        packed = b""
        try:
            data = await self._own(JobId(message.job))
            packed = await in_thread(parcels.pack, data, self._exchange.blobs)
        finally:
            if not parcels.is_name(packed):
                self._parcels -= 1
        if parcels.is_name(packed):
            self._tasks.spawn(self._forget_later(data))
        return wire.Traced(message.request, _now_ns(), packed)

    async def _forget_later(self, data: bytes) -> None:
        try:
            await asyncio.sleep(FETCH_TIMEOUT_S)
        finally:
            self._parcels -= 1
            with contextlib.suppress(P2pnnError):
                parcels.forget(data, self._exchange.blobs)

    async def _measure(self, recording: Recording) -> None:
        """Make the best of some round trips to the coordinator, if it answers."""
        node = recording.coordinator
        if node == self._post.node:
            recording.offset = Offset(0.0, 0.0, clock())
        elif not self._closed and self._post.reachable(node):
            with contextlib.suppress(TimeoutError, UsageError):
                async with asyncio.timeout(MEASURE_TIMEOUT_S):
                    for _ in range(TRIPS):
                        left = clock()
                        answer = await self._asking.inquire(
                            node, self._post.name_of(node), wire.Ask(0, recording.job, "clock")
                        )
                        came = clock()
                        if isinstance(answer, wire.Traced):
                            trip = Offset.of_trip(left, came, answer.clock_ns / 1e9)
                            recording.offset = recording.offset.better(trip, came)


def _shares(record: JobRecord) -> tuple[NodeShare, ...]:
    return record.plan.nodes if record.plan else ()


def _now_ns() -> int:
    return int(clock() * 1e9)
