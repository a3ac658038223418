"""A new coordinator takes up what the charter says there is: it goes on with starts that run, and begins the others anew.

The old coordinator may have died between any two messages. So the nodes of a start are asked how far they are, under the new
term, after which they obey the old one no more; what they told is put together by `job.takeover`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import msgspec

from p2pnn.errors import CheckpointError, P2pnnError, PlanError
from p2pnn.job import records, takeover, work
from p2pnn.job.assignment import Assignment, initial
from p2pnn.job.part_log import PartState
from p2pnn.job.records import JobRecord
from p2pnn.job.spec import JobSpec
from p2pnn.job.takeover import Takeover
from p2pnn.node import parcels, recovering, specs
from p2pnn.node.blobs import BlobExchange
from p2pnn.node.keeping import NotKept
from p2pnn.node.links import Post
from p2pnn.node.records import Records
from p2pnn.node.supervision import Supervision
from p2pnn.node.tasks import Tasks
from p2pnn.node.work import NotDecided
from p2pnn.types import JobId, NodeId
from p2pnn.wire import messages as wire

log = logging.getLogger("p2pnn.jobs")

ANSWER_S: Final = 2.0
"""For the nodes of a start to tell how far they are; then it begins anew."""

GATHER_S: Final = 5.0
"""After a power cut the nodes of a job come back one after the other: wait so long for those that it ran on."""

TELL_S: Final = 3.0
"""For the members to tell a new coordinator what they remember of jobs."""

HELD_BACK_MAX: Final = 4096
"""Messages of a start's nodes that come before all have told how far they are."""

_parts: Final = msgspec.msgpack.Decoder(PartState)


@dataclass(slots=True)
class _Asking:
    generation: int
    nodes: set[NodeId]
    parts: dict[NodeId, PartState] = field(default_factory=dict)
    lost: set[NodeId] = field(default_factory=set)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    held_back: list[tuple[NodeId, wire.Message]] = field(default_factory=list)


class Succession:
    """restart(record, reason) begins the next start of a job that has not ended. members: names by id of the living."""

    def __init__(
        self,
        post: Post,
        blobs: BlobExchange,
        records: Records,
        supervision: Supervision,
        members: Callable[[], dict[NodeId, str]],
        restart: Callable[[JobRecord, str], Awaitable[None]],
    ) -> None:
        self._post = post
        self._blobs = blobs
        self._records = records
        self._supervision = supervision
        self._members = members
        self._restart = restart
        self._asking: dict[JobId, _Asking] = {}
        self._term = 0
        self._looking = False
        self._started_at = asyncio.get_running_loop().time()
        self._tasks = Tasks()

    @property
    def busy(self) -> bool:
        """Whether some start is still being taken up."""
        return bool(self._asking)

    def begin(self, entries: dict[JobId, work.Entry], term: int) -> None:
        """This node coordinates, in this term, and these are all starts that there are."""
        self.let_go()
        self._term = term
        for job, entry in entries.items():
            if job not in self._supervision.led:
                self._asking[job] = asking = _Asking(entry.generation, set())
                self._tasks.spawn(self._take_up(job, entry, asking, term))
        for node in self._members():
            if node != self._post.node:
                self._post.send(node, wire.RecordRequest())
        self.look_for_orphans(entries)

    def look_for_orphans(self, entries: dict[JobId, work.Entry]) -> None:
        """A record of a job that goes on, says somebody, and of which the cluster knows nothing, is of another time.

        entries: as they are at any time. Does nothing where this node does not coordinate.
        """
        if self._term and not self._looking:
            self._looking = True
            self._tasks.spawn(self._end_orphans(entries))

    def let_go(self) -> None:
        """This node coordinates no more."""
        self._term = 0
        self._asking.clear()

    def receive(self, node: NodeId, message: wire.Message) -> bool:
        """Whether the message belongs to a start that is being taken up, and was taken here."""
        asking = self._asking.get(JobId(getattr(message, "job", "")))
        if asking is None or getattr(message, "generation", -1) != asking.generation or node not in asking.nodes:
            return isinstance(message, wire.Adopted)
        if isinstance(message, wire.Adopted):
            self._tasks.spawn(self._told(node, message, asking))
        elif isinstance(message, wire.Report) and 0 < message.term < self._term:
            pass  # said when this node coordinated before: it is in what the node tells now, and must not count twice
        elif len(asking.held_back) < HELD_BACK_MAX:
            asking.held_back.append((node, message))
        return True

    def member_lost(self, node: NodeId) -> None:
        for asking in self._asking.values():
            if node in asking.nodes:
                asking.lost.add(node)
                asking.parts.setdefault(node, PartState("absent", text="it is lost"))
                asking.changed.set()

    async def close(self) -> None:
        self.let_go()
        await self._tasks.close()

    # --- how

    async def _end_orphans(self, entries: dict[JobId, work.Entry]) -> None:
        """Once the members have told what they remember: somebody may know that a job has ended."""
        try:
            term = 0
            while term != self._term:
                term = self._term
                await asyncio.sleep(TELL_S)
        finally:
            self._looking = False
        if term:
            for record in list(self._records.all.values()):
                self._end_if_orphan(record, entries)

    def _end_if_orphan(self, record: JobRecord, entries: dict[JobId, work.Entry]) -> None:
        if record.job not in entries and record.job not in self._supervision.led and not record.is_over:
            text = f"the cluster does not know of this start; go on with `p2pnn jobs resume {record.job}`"
            self._supervision.end(records.ended(record, "fail", text))

    async def _take_up(self, job: JobId, entry: work.Entry, asking: _Asking, term: int) -> None:
        try:
            record = self._newest(job, entry)
            if record.is_over:
                self._supervision.retire(job)
                return
            found: Takeover | str = f"it was {record.state} when its coordinator was lost"
            if record.kind == "train" and record.plan is not None and record.state != "queued":
                held = entry.assigned() or initial(record.plan, entry.generation)
                await self._ask(record, held, asking, term)
                record = max([record, *self._told_records(asking, record)], key=lambda one: one.version)
                found = takeover.of(record, asking.parts, held)
            if self._asking.get(job) is not asking:
                return  # deposed meanwhile
            if isinstance(found, Takeover):
                await self._go_on(record, found, asking, term)
            else:
                log.info("job=%s begins anew reason=%s", job, found)
                await self._wait_for_nodes(record)
                if self._asking.get(job) is not asking:
                    return
                if record.state in ("queued", "preparing") and not self._boots(record):
                    del self._asking[job]
                    await self._begin_anew(record, found, asking, term)
                else:
                    await self._recover(record, found, asking, term)
        except NotDecided as error:
            log.info("job=%s left to the next coordinator reason=%s", job, error)
        except P2pnnError as error:
            log.warning("job=%s not taken up reason=%s", job, error)
            if self._term == term and job not in self._supervision.led:
                self._give_up(job, entry, str(error))
        finally:
            if self._asking.get(job) is asking:
                del self._asking[job]

    async def _go_on(self, record: JobRecord, found: Takeover, asking: _Asking, term: int) -> None:
        await self._blobs.fetch(record.spec, found.nodes, size_max=specs.SPEC_BYTES_MAX)
        spec = await asyncio.to_thread(specs.load, self._blobs.blobs, record.spec)
        if self._asking.get(record.job) is not asking:
            return
        del self._asking[record.job]
        mine = records.taken_over(record, self._post.node, self._post.name, term)
        try:
            self._supervision.take_over(mine, spec, found, asking.lost)
        except msgspec.MsgspecError as error:
            self._lead_from_a_cut(record, spec, f"what its nodes told cannot be read: {error}", asking, term)
            return
        log.info("job=%s taken over step=%d", record.job, found.state.step_done)
        for node, message in asking.held_back:
            self._supervision.receive(node, message)

    async def _begin_anew(self, record: JobRecord, reason: str, asking: _Asking, term: int) -> None:
        """The start did not come to run. What it needs may be away now: then it waits for that, like one that ran."""
        try:
            known = self._records.all.get(record.job)
            if record.plan is None and known is not None:  # by which the next one may be cut alike
                record = msgspec.structs.replace(record, plan=known.plan)
            await self._restart(record, reason)
        except (PlanError, CheckpointError, NotKept) as error:
            log.info("job=%s cannot begin anew yet reason=%s", record.job, error)
            await self._recover(record, str(error), asking, term)

    async def _recover(self, record: JobRecord, reason: str, asking: _Asking, term: int) -> None:
        """The start cannot be gone on with: a node of it was lost, mostly together with its coordinator."""
        job = record.job
        await self._blobs.fetch(record.spec, size_max=specs.SPEC_BYTES_MAX)
        spec = await asyncio.to_thread(specs.load, self._blobs.blobs, record.spec)
        if self._asking.get(job) is asking:
            del self._asking[job]
        known = self._records.all.get(job)
        if self._term == term and job not in self._supervision.led and not (known and known.is_over):
            self._lead_from_a_cut(record, spec, reason, asking, term)

    def _lead_from_a_cut(self, record: JobRecord, spec: JobSpec, reason: str, asking: _Asking, term: int) -> None:
        record, limit = takeover.known(record, spec, asking.parts)
        mine = records.taken_over(record, self._post.node, self._post.name, term)
        self._supervision.recover(mine, spec, reason, limit)

    def _give_up(self, job: JobId, entry: work.Entry, reason: str) -> None:
        """The job can neither be gone on with nor begun anew."""
        with contextlib.suppress(CheckpointError):  # nobody here can read its record: a newer p2pnn will
            record = self._newest(job, entry)
            if not record.is_over:
                self._supervision.end(records.ended(record, "fail", reason))

    def _newest(self, job: JobId, entry: work.Entry) -> JobRecord:
        """The newest record that is known here. A large one's history is not in the charter, but that of the start before is."""
        known = self._records.all.get(job)
        if known is not None and known.generation >= entry.generation:
            return known
        began = entry.began()
        if known is not None and began.newest is not None and not began.history:
            began = msgspec.structs.replace(began, history=known.history[: began.newest.epoch])
        return began

    async def _ask(self, record: JobRecord, held: Assignment, asking: _Asking, term: int) -> None:
        """Ask the nodes that take part in the start until all have told, or time is up."""
        assert record.plan is not None
        nodes = {share.node for index, share in enumerate(record.plan.nodes) if index not in held.gone}
        asking.nodes |= nodes
        for node in nodes:
            if self._post.reachable(node):
                self._post.send(node, wire.Adopt(record.job, record.generation, term))
            else:
                asking.parts[node] = PartState("absent", text="it is not connected")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_S):
                while nodes - asking.parts.keys():
                    asking.changed.clear()
                    await asking.changed.wait()

    async def _told(self, node: NodeId, message: wire.Adopted, asking: _Asking) -> None:
        try:
            data = await parcels.unpack(message.part, self._blobs, [node])
            part = _parts.decode(data)
            if parcels.is_name(message.part):
                await asyncio.to_thread(parcels.forget, data, self._blobs.blobs)
            answers = [(number, await parcels.unpack(answer, self._blobs, [node])) for number, answer in part.answers]
            part = msgspec.structs.replace(part, answers=tuple(answers))
        except (msgspec.MsgspecError, UnicodeError, RecursionError, P2pnnError) as error:
            part = PartState("absent", text=f"what it told cannot be read: {error}")
        asking.parts[node] = part
        asking.changed.set()

    def _told_records(self, asking: _Asking, record: JobRecord) -> list[JobRecord]:
        found = []
        for node, part in asking.parts.items():
            if part.record:
                try:
                    told = records.decode(part.record, f"what node {node[:8]} knows of job {record.job}")
                except CheckpointError as error:
                    log.warning("%s", error)
                    continue
                if told.job == record.job and told.generation == record.generation:
                    found.append(told)
        return found

    async def _wait_for_nodes(self, record: JobRecord) -> None:
        """For those that the job ran on and that nobody has seen die since this daemon began."""
        wanted = {share.node for share in record.plan.nodes} if record.plan else set()
        loop = asyncio.get_running_loop()
        while wanted - self._members().keys() and loop.time() < self._started_at + GATHER_S:  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    def _boots(self, record: JobRecord) -> bool:
        """Whether nodes that hold parts of the newest checkpoint may still come after a power cut."""
        is_early = asyncio.get_running_loop().time() < self._started_at + recovering.BACK_S
        return is_early and record.newest is not None and bool(recovering.absent(record, self._members()))
