"""What this node remembers of all jobs: kept on disk, told to the members, learnt from them.

Every node has the record of every job, so any of them can show and resume it. Of two versions the higher (generation,
revision) counts. A large record travels as a parcel.

The disk is written by threads, one record at a time, and of a job that changes faster only the newest is. What a record no
longer names is removed after the record that gave it up is safe.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Callable
from typing import Final

import msgspec

from p2pnn.data.blobs import blob_id
from p2pnn.errors import CheckpointError, P2pnnError, StorageError
from p2pnn.job import records
from p2pnn.job.records import JobRecord
from p2pnn.node import parcels
from p2pnn.node.blobs import BlobExchange
from p2pnn.node.leftovers import leftovers
from p2pnn.node.links import Post
from p2pnn.node.storage import Storage, valid_job_id
from p2pnn.node.tasks import Tasks, in_thread
from p2pnn.types import BlobId, JobId, NodeId
from p2pnn.wire import messages as wire

log = logging.getLogger("p2pnn.jobs")

JOBS_MAX: Final = 10_000
"""Records in memory; a new job is refused beyond it."""

QUEUED_MAX: Final = 32
"""Records that wait on one link while a peer is told of all: a new peer must not overflow the queue that it is told by."""

QUEUE_PAUSE_S: Final = 0.01
LEARNING_MAX: Final = 64
"""Parcels being fetched at once; what comes beyond is dropped, and comes again with the next change or link."""


class Records:
    """changed: set, and replaced by a new one, when any record changes. listeners: called with each record that changes.

    members: name by node id of every living member.

    led_here: whether this node leads the job, so that nobody else's word counts. learnt: told of each record that a peer
    brought.
    """

    def __init__(
        self,
        post: Post,
        storage: Storage,
        exchange: BlobExchange,
        members: Callable[[], dict[NodeId, str]],
        led_here: Callable[[JobRecord], bool],
        learnt: Callable[[JobRecord], None],
    ) -> None:
        self.all: dict[JobId, JobRecord] = storage.load_records()
        self.listeners: list[Callable[[JobRecord], None]] = []
        self._post = post
        self._storage = storage
        self._exchange = exchange
        self._members = members
        self._led_here = led_here
        self._learnt = learnt
        self.changed = asyncio.Event()
        self._telling: set[NodeId] = set()
        self._learning = 0
        self._unsaved: dict[JobId, JobRecord] = {}
        self._dropped: dict[JobId, set[BlobId]] = {}  # by the job whose record gave them up
        self._untold: set[JobId] = set()
        self._saving = False
        self._saver = Tasks()
        self._sweeping = self._sweep_again = False
        self._tasks = Tasks()

    def remember(self, record: JobRecord) -> None:
        """Store the record here and send it to the members; a large one as soon as it lies in the store."""
        record = msgspec.structs.replace(record, updated_s=time.time())
        self.commit(record)
        data = records.encode(record)
        if len(data) <= parcels.INLINE_BYTES_MAX:
            self._send(_message(record, data))
        else:
            self._untold.add(record.job)

    def commit(self, record: JobRecord) -> None:
        """Have the record stored here, and what it no longer names removed; `flush` waits for both."""
        before = self.all.get(record.job)
        self.all[record.job] = record
        self.changed.set()
        self.changed = asyncio.Event()
        self._unsaved[record.job] = record
        for tell in self.listeners:
            tell(record)
        if not self._saving:
            self._saving = True
            self._saver.spawn(self._save())
        if before is not None and before != record:
            dropped = self._dropped.setdefault(record.job, set())
            dropped |= before.part_blobs() - record.part_blobs()
            data = records.encode(before)
            if len(data) > parcels.INLINE_BYTES_MAX:
                dropped.add(blob_id(data))
        if record.is_over and (before is None or before.state != record.state):
            self.sweep()

    def new_id(self, name: str) -> JobId:
        """An id for a new job of this name that no job here has."""
        base = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "job"
        while True:
            job = JobId(f"{base}-{secrets.token_hex(2)}")
            if job not in self.all:
                return job

    async def flush(self) -> None:
        """Wait until all that was remembered so far is on the disk, or the log says why not."""
        await self._saver.drain()

    def receive(self, node: NodeId, message: wire.Message) -> None:
        match message:
            case wire.Record() if not parcels.is_name(message.record):
                self._decode(node, message, message.record)
            case wire.Record() if self._learning < LEARNING_MAX and not self._is_old(node, message):
                self._learning += 1
                self._tasks.spawn(self._fetch(node, message))
            case wire.RecordRequest() if node not in self._telling:
                self._telling.add(node)
                self._tasks.spawn(self._tell(node))

    def sweep(self) -> None:
        """Remove what checkpoints and parcels have left in the store, as soon as no job is at work."""
        self._sweep_again = True
        if not self._sweeping:
            self._sweeping = True
            self._tasks.spawn(self._sweep())

    async def close(self) -> None:
        await self._tasks.close()
        await self.flush()
        await self._saver.close()

    # --- how

    async def _save(self) -> None:
        try:
            while self._unsaved:
                await self._save_one(next(iter(self._unsaved)))
        finally:
            self._saving = False

    async def _save_one(self, job: JobId) -> None:
        record = self._unsaved.pop(job)
        dropped = self._dropped.pop(job, set())
        try:
            await in_thread(self._storage.save_record, record)
        except (OSError, P2pnnError) as error:
            log.warning("record not stored job=%s reason=%s", job, error)
            if dropped:  # the record on the disk still names them
                self._dropped.setdefault(job, set()).update(dropped)
                dropped = set()
        if job in self._untold and job not in self._unsaved:
            self._untold.discard(job)
            self._send(await self._pack(record))
        for blob in dropped - self._named():
            try:
                await in_thread(self._storage.blobs.remove, blob)
            except P2pnnError as error:
                log.warning("old checkpoint not removed job=%s reason=%s", job, error)

    def _send(self, message: wire.Record | None) -> None:
        if message is not None:
            for node in self._members():
                if node != self._post.node:
                    self._post.send(node, message)

    async def _sweep(self) -> None:
        try:
            while self._sweep_again and not self._at_work():
                self._sweep_again = False
                known, given = list(self.all.values()), self._exchange.given
                for blob in await in_thread(lambda: list(leftovers(self._storage.blobs, known, time.time()))):  # noqa: B023
                    if self._at_work():
                        break
                    if blob not in given and not any(blob in dropped for dropped in self._dropped.values()):
                        await in_thread(self._storage.blobs.remove, blob)
        except StorageError as error:
            log.warning("leftovers not removed reason=%s", error)
        finally:
            self._sweeping = False

    def _at_work(self) -> bool:
        return any(not record.is_over and record.state != "queued" for record in self.all.values())

    async def _fetch(self, node: NodeId, message: wire.Record) -> None:
        try:
            data = await parcels.unpack(message.record, self._exchange, [node])
            self._decode(node, message, data)
            known = self.all.get(JobId(message.job))
            if known is None or records.encode(known) != data:
                await asyncio.to_thread(parcels.forget, data, self._storage.blobs)
        except P2pnnError as error:
            log.warning("record not fetched job=%s node=%s reason=%s", message.job, node[:8], error)
        finally:
            self._learning -= 1

    def _is_old(self, node: NodeId, message: wire.Record) -> bool:
        """Whether a parcel need not be fetched: what it holds is known here, or would not count."""
        known = self.all.get(JobId(message.job))
        if known is None:
            return False
        stale = (message.generation, message.revision) < known.version
        return stale or msgspec.msgpack.decode(message.record) == blob_id(records.encode(known))

    def _decode(self, node: NodeId, message: wire.Record, data: bytes) -> None:
        try:
            record = records.decode(data, f"the record of job {message.job} from node {node[:8]}")
        except CheckpointError as error:
            log.warning("record refused reason=%s", error)
            return
        if record.job != message.job or not valid_job_id(record.job):
            log.warning("record refused node=%s reason=it names another job than its message", node[:8])
            return
        if record.version != (message.generation, message.revision):
            log.warning("record refused node=%s reason=it names another version than its message", node[:8])
            return
        self._learn(record)

    def _learn(self, record: JobRecord) -> None:
        known = self.all.get(record.job)
        news = len(self.all) < JOBS_MAX if known is None else record.replaces(known)
        if news and not self._led_here(record):
            self.commit(record)
            self._learnt(record)

    async def _tell(self, node: NodeId) -> None:
        """Send all records, no faster than the link takes it."""
        try:
            for job in list(self.all):
                record = self.all.get(job)
                if record is None:
                    continue
                while self._post.queued(node) >= QUEUED_MAX:  # noqa: ASYNC110 - a link tells no event of its queue
                    await asyncio.sleep(QUEUE_PAUSE_S)
                packed = await self._pack(record)
                if packed is not None:
                    self._post.send(node, packed)
        except P2pnnError as error:
            log.warning("records not sent node=%s reason=%s", node[:8], error)
        finally:
            self._telling.discard(node)

    async def _pack(self, record: JobRecord) -> wire.Record | None:
        """None where a full disk leaves no way to tell it."""
        data = records.encode(record)
        try:
            data = await in_thread(parcels.pack, data, self._storage.blobs)
        except StorageError as error:
            # A full disk: let the members know at least the state. Not without the checkpoints: they would remove theirs.
            data = records.encode(msgspec.structs.replace(record, history=(), plan=None))
            if len(data) > wire.RECORD_BYTES_MAX:
                log.warning("record not sent job=%s reason=%s", record.job, error)
                return None
            log.warning("record sent without its history and plan job=%s reason=%s", record.job, error)
        return _message(record, data)

    def _named(self) -> set[BlobId]:
        """The blobs that records need: specs and checkpoint parts."""
        return {blob for record in self.all.values() for blob in (record.spec, *record.part_blobs())}


def _message(record: JobRecord, packed: bytes) -> wire.Record:
    return wire.Record(record.job, record.generation, record.revision, packed)
