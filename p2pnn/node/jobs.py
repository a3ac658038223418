"""The jobs that this node knows of, and what a person asks of them.

One node coordinates all jobs: the one that the cluster has elected. Whoever is asked passes it on to that one, and tells what
comes of it. On the coordinator `node.supervision` leads the jobs; when it is elected, `node.succession` takes up those that
another has led.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, Protocol

import msgspec

from p2pnn.cluster.charter import Charter, Version
from p2pnn.errors import CheckpointError, NotFoundError, StorageError, UsageError
from p2pnn.job import life, records
from p2pnn.job.plan import Plan
from p2pnn.job.records import JobRecord
from p2pnn.job.spec import JobSpec
from p2pnn.node import recovering, specs, starts, told
from p2pnn.node.asking import AskAgain, Asking
from p2pnn.node.blobs import BlobExchange
from p2pnn.node.bulletin import Bulletin
from p2pnn.node.coordinator import Coordinator, Once
from p2pnn.node.journal import Journal, Journals
from p2pnn.node.keeping import Keeping
from p2pnn.node.links import Post
from p2pnn.node.planning import Planning
from p2pnn.node.records import JOBS_MAX, Records
from p2pnn.node.recovering import alone
from p2pnn.node.storage import Storage, valid_job_id
from p2pnn.node.succession import Succession
from p2pnn.node.supervision import Supervision
from p2pnn.node.tasks import Tasks
from p2pnn.node.work import Work
from p2pnn.types import BlobId, JobId, NodeId
from p2pnn.wire import messages as wire

log = logging.getLogger("p2pnn.jobs")

KNOWN_S: Final = 10.0
"""For the record of a job to come that the coordinator has begun."""


class ClusterState(Protocol):
    """The charter, as far as jobs need it (`node.charter.ClusterCharter`)."""

    @property
    def coordinator(self) -> NodeId | None: ...

    @property
    def coordinates(self) -> bool: ...

    @property
    def term(self) -> int: ...

    @property
    def alarm(self) -> str: ...

    def voters(self) -> tuple[NodeId, ...]: ...

    def propose_work(self, make: Callable[[int], bytes]) -> Version: ...


class Jobs:
    """members: name by node id of every living member, this node included."""

    def __init__(
        self,
        post: Post,
        storage: Storage,
        blobs: BlobExchange,
        planning: Planning,
        members: Callable[[], dict[NodeId, str]],
        cluster: ClusterState,
    ) -> None:
        self._post = post
        self._storage = storage
        self._blobs = blobs
        self._planning = planning
        self._members = members
        self._cluster = cluster
        self.work = Work(cluster)
        self._records = Records(post, storage, blobs, members, self._is_led_here, self._learnt)
        self._journals = Journals(storage, self.work.entries)
        self._bulletin = Bulletin(post, self._journals, lambda: cluster.coordinator, members)
        self.keeping = Keeping(post, cluster.voters)
        self._supervision = Supervision(
            post,
            blobs,
            planning,
            self._records,
            self._bulletin,
            self.work,
            self.keeping,
            members,
            lambda: cluster.term,
            lambda: cluster.alarm,
        )
        self._succession = Succession(post, blobs, self._records, self._supervision, members, self._restart)
        self._leading = 0
        self.asking = Asking(post)
        self.coordinator = Coordinator(
            post, cluster, self.asking, members, lambda: bool(self._leading) and not self._succession.busy
        )
        for verb in ("submit", "cancel", "pause", "resume", "drain"):
            self.asking.offer(verb, self._answer)
        self._once = Once()
        self._tasks = Tasks()

    @property
    def records(self) -> dict[JobId, JobRecord]:
        """What is remembered of every job; `get` knows more of those that this node coordinates."""
        return self._records.all

    def when_changed(self, tell: Callable[[JobRecord], None]) -> None:
        """Have `tell` called with each record that changes from now on."""
        self._records.listeners.append(tell)

    def start(self) -> None:
        """Remove what earlier jobs have left in the store."""
        self._records.sweep()

    # --- what a person asks for

    async def submit(self, spec_blob: BlobId) -> JobId:
        """Have the job planned, decided and queued. The spec and its data are in this node's blob store.

        Raises UsageError (PlanError, ModelError, DataError) before anything has started.
        """
        spec = await asyncio.to_thread(specs.load, self._storage.blobs, spec_blob)
        missing = await asyncio.to_thread(specs.absent, spec, self._storage.blobs)
        if missing:
            raise UsageError(f"{len(missing)} data chunks of the job are not in this node's store; submit it again")
        job = self._records.new_id(spec.name)
        await self.coordinator.have_done(
            wire.Ask(0, job, "submit", spec_blob), lambda: self._submit(job, spec_blob, spec, self._post.node)
        )
        await self._known(job)
        return job

    async def plan(self, data: bytes) -> Plan:
        """The plan of a spec, without submitting it."""
        return await self._planning.plan(await asyncio.to_thread(specs.decode_spec, data))

    async def ask(self, job: str, verb: str) -> str:
        """Cancel, pause or resume a job, whoever coordinates; returns its state.

        Raises UsageError where it cannot be, CheckpointError where what a resume needs is nowhere, NotFoundError.
        """
        record = self.get(job)
        life.after(record.state, verb)
        return await self.coordinator.have_done(wire.Ask(0, job, verb), lambda: self._carry_out(record.job, verb))

    def get(self, job: str) -> JobRecord:
        """The newest record of a job. NotFoundError where nobody knows it."""
        supervisor = self._supervision.led.get(JobId(job))
        record = supervisor.record if supervisor else self.records.get(JobId(job))
        if record is None:
            raise NotFoundError(f"no job {job!r}; `p2pnn jobs ls` shows those that this node knows")
        return record

    def journal(self, job: JobId) -> Journal:
        return self._journals.of(job)

    def events(self, job: str, after: int) -> AsyncIterator[dict[str, Any]]:
        """Follow a job: by the journal here where that knows all of it, otherwise as its record tells.

        Raises NotFoundError where nobody knows it.
        """
        record = self.get(job)
        if self._bulletin.knows_all_of(record) and after < told.PER_START:  # who began with the record goes on with it
            return self._bulletin.follow(record.job, after)
        return told.follow(lambda: self.get(job), lambda: self._records.changed, after)

    # --- what peers say, and what becomes of the cluster

    def receive(self, node: NodeId, message: wire.Message) -> None:
        match message:
            case wire.Record() | wire.RecordRequest():
                self._records.receive(node, message)
            case wire.Ask() | wire.Answered() | wire.Traced():
                self.asking.receive(node, message)
            case wire.Happened() | wire.Follow():
                self._bulletin.receive(node, message)
            case _:
                if not self._succession.receive(node, message):
                    self._supervision.receive(node, message)

    def member_usable(self, node: NodeId, name: str) -> None:
        self._supervision.member_usable(node, name)
        self._post.send(node, wire.RecordRequest())

    def member_lost(self, node: NodeId, reason: str) -> None:
        """It is gone, or lives but what was on its way to and from it is lost."""
        self._succession.member_lost(node)
        self._supervision.member_lost(node, reason)
        self.asking.member_lost(node, reason)

    def member_failed(self, node: NodeId, reason: str) -> None:
        """It is dead, or has left."""
        self._supervision.member_failed(node, reason)

    def charter_committed(self, charter: Charter) -> None:
        """The cluster has decided."""
        self.work.committed(charter)
        if self._cluster.coordinates and self._leading != self._cluster.term:
            self._leading = self._cluster.term
            if not self.work.unreadable:
                self._succession.begin(self.work.entries, self._leading)
        self.coordinator.changed()

    def coordinator_changed(self, coordinator: NodeId | None) -> None:
        """Another node coordinates, or nobody."""
        if coordinator != self._post.node and self._leading:
            self._leading = 0
            self._succession.let_go()
            self._supervision.let_go()
            self.work.deposed()
        self.coordinator.changed()

    def recorded(self, job: JobId) -> bytes:
        """The job's record as this node knows it, as bytes; none where it does not."""
        record = self.records.get(job)
        return records.encode(record) if record is not None else b""

    async def close(self) -> None:
        """The daemon stops: what it coordinates goes on, or is begun again when a coordinator is there."""
        self.coordinator.close()
        await self._tasks.close()
        await self._succession.close()
        await self._supervision.close()
        self.work.deposed()
        await self.asking.close()
        await self._records.close()

    # --- as the coordinator

    async def _answer(self, node: NodeId, message: wire.Ask) -> wire.Answered:
        """A peer passes on what a person asked for there."""
        if await self.coordinator.elected() != self._post.node:
            raise AskAgain(f"node {self._post.name} does not coordinate any more")
        job = JobId(message.job)
        if message.verb == "drain":
            await self._supervision.vacate(node)
            return wire.Answered(message.request, "draining")
        if message.verb != "submit":
            return wire.Answered(message.request, await self._carry_out(job, message.verb))
        if not valid_job_id(job):
            raise UsageError(f"{job!r} cannot be the id of a job; submit it again with a p2pnn of the same version")
        blob = BlobId(message.blob)
        await self._blobs.fetch(blob, [node], size_max=specs.SPEC_BYTES_MAX)
        spec = await asyncio.to_thread(specs.load, self._storage.blobs, blob)
        return wire.Answered(message.request, await self._submit(job, blob, spec, node))

    async def _submit(self, job: JobId, blob: BlobId, spec: JobSpec, holder: NodeId) -> str:
        """Returns the state. holder: a member that has all data of the job, and has named it."""
        known = self.records.get(job)
        if known is not None and known.spec == blob:
            return known.state  # asked again, because the answer was lost with the last coordinator
        if known is not None:
            raise UsageError(f"there is a job {job} already; submit it again")
        return await self._once.do((job, blob), lambda: self._begin(job, blob, spec, holder))

    async def _begin(self, job: JobId, blob: BlobId, spec: JobSpec, holder: NodeId) -> str:
        if len(self.records) >= JOBS_MAX:
            raise UsageError(f"this mesh remembers {JOBS_MAX} jobs already; remove old state before submitting more")
        await self._blobs.fetch_all(dict.fromkeys(spec.initial), [holder])
        record = records.queued(job, blob, spec, self._post.node, self._post.name, time.time())
        plan = await recovering.planned(spec, self._planning, self._planning.usable)
        await self._supervision.begin(record, spec, plan, alone(spec, plan, holder, set(), len(self._members())), [])
        await self._records.flush()
        return self.get(job).state

    async def _carry_out(self, job: JobId, verb: str) -> str:
        record = self.get(job)
        if life.is_after(record.state, verb, moves=bool(record.vacating)):
            return record.state  # asked again: the answer was lost with the last coordinator
        if verb == "resume":
            life.after(record.state, "resume")
            return await self._once.do((job, verb), lambda: self._resume_asked(record))
        if job in self._supervision.led:
            if verb == "cancel":
                self._supervision.act(job, lambda supervisor, now: supervisor.cancel("cancelled", now))
            else:
                self._supervision.act(job, lambda supervisor, now: supervisor.pause(now))
        elif verb == "cancel":
            self._supervision.end(records.ended(record, "cancel", "cancelled"))
        else:
            life.after(record.state, verb)
            raise UsageError(f"job {job} does not run")
        return self.get(job).state

    async def _resume_asked(self, record: JobRecord) -> str:
        await self._resume(record, records.resumed, "")
        return self.get(record.job).state

    async def _resume(
        self, record: JobRecord, begin: Callable[[JobRecord, NodeId, str], JobRecord], remark: str
    ) -> None:
        """Begin the next start, from the newest checkpoint that can be had, over who is there now. begin makes its record."""
        job, known = record.job, self.records.get(record.job)
        try:
            await self._blobs.fetch(record.spec, size_max=specs.SPEC_BYTES_MAX)
        except StorageError as error:
            raise CheckpointError(f"job {job} cannot be resumed: its specification is gone ({error})") from error
        spec = await asyncio.to_thread(specs.load, self._storage.blobs, record.spec)
        if spec.kind == "sample":
            raise UsageError(
                f"job {job} wrote a text for who asked for it, and nothing of it is kept; run p2pnn predict again"
            )
        if spec.kind == "train" and record.newest is None:
            log.warning("job=%s resumed without a checkpoint: it begins again", job)
        await self._blobs.fetch_all(dict.fromkeys(spec.initial), ())
        whole = await starts.whole_checkpoints(record, self._blobs)
        absent = await asyncio.to_thread(specs.absent, spec, self._storage.blobs)
        plan = records.same_plan(record.plan, whole, spec, self._planning.usable())
        remarks = [remark] if remark else []
        if plan is None:
            plan, dropped = await recovering.planned_without_the_lost(
                spec, self._planning, self._planning.usable, anew=record.newest is None
            )
            remarks += dropped
        if (now := self.records.get(job)) is not None and now is not known and now.is_over:
            raise UsageError(f"job {job} was {now.state} while it was to be started again")
        left = begin(msgspec.structs.replace(record, checkpoints=whole), self._post.node, self._post.name)
        data = alone(spec, plan, self._post.node, absent, len(self._members()))
        await self._supervision.begin(left, spec, plan, data, remarks)

    async def _restart(self, record: JobRecord, reason: str) -> None:
        """Begin anew what could not be gone on with."""
        step = record.newest.step if record.newest else 0
        remark = f"the job begins anew from step {step} under another coordinator: {reason}"
        await self._resume(record, records.begun_anew, remark)

    # --- small things

    def _is_led_here(self, record: JobRecord) -> bool:
        return record.job in self._supervision.led

    def _learnt(self, record: JobRecord) -> None:
        self._bulletin.learnt(record)
        if not record.is_over and record.job not in self.work.entries:
            self._succession.look_for_orphans(self.work.entries)

    async def _known(self, job: JobId) -> None:
        """Wait for the record of a job that the coordinator has just begun; it was sent before the answer, but may be large."""
        try:
            async with asyncio.timeout(KNOWN_S):
                while job not in self.records:
                    await self._records.changed.wait()
        except TimeoutError:
            raise UsageError(
                f"job {job} was submitted, but its record has not come; look with `p2pnn jobs ls`"
            ) from None
