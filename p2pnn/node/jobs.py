"""The jobs that this node knows of, and those that it coordinates: the adapter of `job.supervisor`.

The node that takes a submission coordinates the job. What it decides is carried out by messages; the commit of a decision
(`_commit`) returns at once here, and is the one place where a replicated log would have to be asked first.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import msgspec

from p2pnn.errors import CheckpointError, NotFoundError, P2pnnError, StorageError, UsageError
from p2pnn.job import life, records, script
from p2pnn.job.actions import (
    Action,
    AskCuts,
    KeepBlobs,
    MakePart,
    Order,
    PrepareNode,
    Publish,
    ReleaseNode,
    Remember,
    Replan,
    ReserveNode,
)
from p2pnn.job.plan import Plan
from p2pnn.job.records import JobRecord
from p2pnn.job.spec import JobSpec
from p2pnn.job.supervisor import Supervisor
from p2pnn.node import parcels, recovering, specs, starts, told
from p2pnn.node.asking import Asking
from p2pnn.node.blobs import BlobExchange
from p2pnn.node.journal import Journal, Journals
from p2pnn.node.links import Post
from p2pnn.node.planning import Planning
from p2pnn.node.records import JOBS_MAX, Records
from p2pnn.node.storage import Storage
from p2pnn.node.tasks import Tasks
from p2pnn.types import BlobId, JobId, NodeId
from p2pnn.wire import messages as wire

log = logging.getLogger("p2pnn.jobs")

LATE_S: Final = 1.0  # a timer that fires later than this says that the process stood still

_reports = msgspec.msgpack.Decoder(script.Report)


class Jobs:
    """members: name by node id of every living member, this node included."""

    def __init__(
        self,
        post: Post,
        storage: Storage,
        blobs: BlobExchange,
        planning: Planning,
        members: Callable[[], dict[NodeId, str]],
    ) -> None:
        self._post = post
        self._storage = storage
        self._blobs = blobs
        self._planning = planning
        self._members = members
        self._records = Records(post, storage, blobs, members, self._runs_here)
        self._supervisors: dict[JobId, Supervisor] = {}
        self._timers: dict[JobId, asyncio.TimerHandle] = {}
        self._journals = Journals(storage, self._supervisors)
        self.asking = Asking(post, lambda job, verb: self.cancel(job) if verb == "cancel" else self.pause(job))
        self._tasks = Tasks()

    @property
    def records(self) -> dict[JobId, JobRecord]:
        """What is remembered of every job; `get` knows more of those that this node coordinates."""
        return self._records.all

    def when_changed(self, tell: Callable[[JobRecord], None]) -> None:
        """Have `tell` called with each record that changes from now on."""
        self._records.listeners.append(tell)

    # --- what a person asks for

    async def submit(self, spec_blob: BlobId) -> JobId:
        """Plan the job and queue it. The spec and its data are in this node's blob store.

        Raises UsageError (PlanError, ModelError, DataError) before anything has started.
        """
        spec = await asyncio.to_thread(specs.load, self._storage.blobs, spec_blob)
        if len(self.records) >= JOBS_MAX:
            raise UsageError(f"this mesh remembers {JOBS_MAX} jobs already; remove old state before submitting more")
        missing = await asyncio.to_thread(specs.absent, spec, self._storage.blobs)
        if missing:
            raise UsageError(f"{len(missing)} data chunks of the job are not in this node's store; submit it again")
        plan = await self._planning.plan(spec)
        job = self._records.new_id(spec.name)
        record = records.queued(job, spec_blob, spec, self._post.node, self._post.name, time.time())
        self._begin(record, spec, plan, set())
        await self._records.flush()
        return job

    async def plan(self, data: bytes) -> Plan:
        """The plan of a spec, without submitting it."""
        return await self._planning.plan(await asyncio.to_thread(specs.decode_spec, data))

    async def resume(self, job: str) -> None:
        """Queue a paused, failed or cancelled job again, from its newest complete checkpoint, over who is there now.

        Raises UsageError where the job cannot be resumed, CheckpointError where what it needs is nowhere.
        """
        record = self.get(job)
        life.after(record.state, "resume")
        if record.coordinator != self._post.node and record.state not in life.ENDED:
            raise UsageError(f"job {job} is coordinated by node {record.coordinator_name}; ask there")
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
        whole, absent = (
            await starts.whole_checkpoints(record, self._blobs),
            await asyncio.to_thread(specs.absent, spec, self._storage.blobs),
        )
        plan = records.same_plan(record.plan, whole, spec, self._members())
        remarks: list[str] = []
        if plan is None:
            wanted, remarks = records.attainable(spec, self._members(), anew=record.newest is None)
            plan = await self._planning.plan(wanted)
        left = msgspec.structs.replace(self.get(job), checkpoints=whole)
        self._begin(records.resumed(left, self._post.node, self._post.name), spec, plan, absent)
        for text in remarks:
            self.journal(record.job).add("warning", {"text": text})

    async def ask(self, job: str, verb: str) -> str:
        """Cancel or pause a job, whoever coordinates it; returns its state. Raises UsageError where it cannot be."""
        record = self.get(job)
        if self._led_elsewhere(record):
            return await self.asking.ask(record.coordinator, record.coordinator_name, job, verb)
        return self.cancel(job) if verb == "cancel" else self.pause(job)

    def cancel(self, job: str) -> str:
        """End a job that this node coordinates, or whose coordinator is gone; returns its state."""
        record = self.get(job)
        supervisor = self._supervisors.get(record.job)
        if supervisor is None:
            self._refuse_foreign(record)
            self._records.remember(records.cancelled(record, self._post.node, self._post.name))
            self.journal(record.job).add("state", {"state": "cancelled", "reason": "cancelled"})
        else:
            supervisor.cancel("cancelled", self._now())
            self._carry_out(record.job)
        return self.get(job).state

    def pause(self, job: str) -> str:
        """Pause a job that this node coordinates; returns its state."""
        record = self.get(job)
        supervisor = self._supervisors.get(record.job)
        if supervisor is None:
            life.after(record.state, "pause")
            self._refuse_foreign(record)
            raise UsageError(f"job {job} does not run")
        supervisor.pause(self._now())
        self._carry_out(record.job)
        return self.get(job).state

    def get(self, job: str) -> JobRecord:
        """The newest record of a job. NotFoundError where nobody knows it."""
        record = self.records.get(JobId(job))
        if record is None:
            raise NotFoundError(f"no job {job!r}; `p2pnn jobs ls` shows those that this node knows")
        supervisor = self._supervisors.get(record.job)
        return supervisor.record if supervisor else record

    def journal(self, job: JobId) -> Journal:
        return self._journals.of(job)

    def events(self, job: str, after: int) -> AsyncIterator[dict[str, Any]]:
        """Follow a job: by its journal where that is kept here, otherwise as its record tells.

        Raises NotFoundError where nobody knows it.
        """
        record = self.get(job)
        journal = self.journal(record.job)
        kept = record.job in self._supervisors or (record.coordinator == self._post.node and journal.ended)
        if kept and after < told.PER_START:  # who began with numbers of the record goes on with them
            return journal.follow(after)
        return told.follow(lambda: self.get(job), lambda: self._records.changed, after)

    # --- what peers say

    def receive(self, node: NodeId, message: wire.Message) -> None:
        now = self._now()
        match message:
            case wire.Record() | wire.RecordRequest():
                self._records.receive(node, message)
            case wire.Ask() | wire.Answered() | wire.Traced():
                self.asking.receive(node, message)
            case wire.Kept() | wire.CutsHeld() | wire.PartMade():
                supervisor = self._supervisors.get(JobId(message.job))
                if supervisor is not None:
                    recovering.tell(supervisor, node, message, now)
                    self._carry_out(JobId(message.job))
            case (
                wire.Waiting() | wire.Granted() | wire.Preparing() | wire.Prepared() | wire.Report() | wire.JobFailed()
            ):
                self._receive_of_part(node, message, now)

    def member_usable(self, node: NodeId, name: str) -> None:
        for job, supervisor in list(self._supervisors.items()):
            supervisor.member_joined(node, name, self._now())
            self._carry_out(job)
        self._post.send(node, wire.RecordRequest())

    def member_lost(self, node: NodeId, reason: str) -> None:
        """Starts with a part there are over: it is gone, or lives but what was on its way to and from it is lost."""
        for job, supervisor in list(self._supervisors.items()):
            supervisor.member_lost(node, reason, self._now())
            self._carry_out(job)

    def member_failed(self, node: NodeId, reason: str) -> None:
        """Jobs that a member coordinated which is gone are marked so that anybody can resume them."""
        for job, supervisor in list(self._supervisors.items()):
            supervisor.member_failed(node, reason, self._now())
            self._carry_out(job)
        for record in list(self.records.values()):
            if record.coordinator == node and record.state not in life.ENDED:
                said = f"node {record.coordinator_name}, which coordinated it, is gone: {reason}"
                text = f"{said}; go on with `p2pnn jobs resume {record.job}`"
                # Everybody decides so for himself. Where that was wrong, the coordinator's own word mends it later.
                self._records.commit(msgspec.structs.replace(record, state="failed", reason=text))

    async def close(self, reason: str) -> None:
        """The daemon stops: jobs that it coordinates fail, with a reason that says how to go on."""
        for job, supervisor in list(self._supervisors.items()):
            supervisor.fail(f"{reason}; go on with `p2pnn jobs resume {job}`", self._now())
            self._carry_out(job)
        await self._tasks.close()
        await self.asking.close()
        await self._records.close()

    # --- carrying out

    def _begin(self, record: JobRecord, spec: JobSpec, plan: Plan, absent: set[BlobId]) -> None:
        """absent: blobs that the job reads and this node lacks."""
        supervisor = Supervisor(record, spec, self._members(), self._now())
        self._supervisors[record.job] = supervisor
        self._records.remember(record)
        supervisor.planned(plan, self._now())
        self._spread_data(supervisor, spec, plan, absent)
        self._carry_out(record.job)

    def _spread_data(self, supervisor: Supervisor, spec: JobSpec, plan: Plan, absent: set[BlobId]) -> None:
        """Have each blob that the job reads on two nodes, so that the run can go on without one of them."""
        if len(self._members()) < 2:
            return
        for source, blobs in specs.held_by_one(spec, plan, self._post.node, absent).items():
            for start in range(0, len(blobs), wire.BLOBS_MAX):
                supervisor.keep_data(source, blobs[start : start + wire.BLOBS_MAX])

    def _carry_out(self, job: JobId) -> None:
        supervisor = self._supervisors[job]
        while (action := supervisor.next_action()) is not None:
            self._do(job, supervisor, action)
        self._arm(job, supervisor)
        if supervisor.ended:
            self._supervisors.pop(job, None)

    def _arm(self, job: JobId, supervisor: Supervisor) -> None:
        """Deadlines mostly move on: a timer that comes too early is left, and looks again; so is a second look (below)."""
        now, due, armed = self._now(), supervisor.get_timer(), self._timers.get(job)
        if armed is not None and (due is None or now - LATE_S <= due < armed.when() - 0.01):
            self._timers.pop(job).cancel()
            armed = None
        if armed is None and due is not None:
            self._timers[job] = asyncio.get_running_loop().call_later(max(0.001, due - now), self._handle_timer, job)

    def _handle_timer(self, job: JobId, again: bool = False) -> None:
        """Judge who is silent; but a timer that comes late means that this process stood still, and others may have spoken."""
        del self._timers[job]
        supervisor = self._supervisors[job]
        due = supervisor.get_timer()
        if not again and due is not None and self._now() - due > LATE_S:
            self._timers[job] = asyncio.get_running_loop().call_later(LATE_S, self._handle_timer, job, True)
            return
        supervisor.handle_timer(self._now())
        self._carry_out(job)

    def _do(self, job: JobId, supervisor: Supervisor, action: Action) -> None:
        record = supervisor.record
        about = (job, record.generation)
        match action:
            case ReserveNode(node):
                self._post.send(node, wire.Reserve(*about, record.name))
            case ReleaseNode(node):
                self._post.send(node, wire.Release(*about))
            case PrepareNode(node, index):
                self._prepare(supervisor, node, index)
            case Order(command):
                data = msgspec.msgpack.encode(command)
                for share in record.plan.nodes if record.plan else ():
                    self._post.send(share.node, wire.Command(*about, data))
            case KeepBlobs(node, request, blobs, source):
                self._post.send(node, wire.Keep(job, request, blobs, source))
            case AskCuts() | MakePart():
                self._post.send(action.node, recovering.question(job, action))
            case Remember(changed):
                self._records.remember(changed)
            case Publish(kind, fields):
                self.journal(job).add(kind, fields)
            case Replan():
                self._tasks.spawn(self._replan(job, supervisor))

    def _prepare(self, supervisor: Supervisor, node: NodeId, index: int) -> None:
        try:
            message = starts.prepare(supervisor.record, index, self._post.node, self._storage.blobs)
        except StorageError as error:
            supervisor.fail(str(error), self._now())
            return
        self._post.send(node, message)

    async def _replan(self, job: JobId, supervisor: Supervisor) -> None:
        exchange, planning = self._blobs, self._planning
        await recovering.replan(supervisor, planning, exchange, self._members, self._spread_data)
        if self._supervisors.get(job) is supervisor:
            self._carry_out(job)

    def _receive_of_part(self, node: NodeId, message: Any, now: float) -> None:
        supervisor = self._supervisors.get(JobId(message.job))
        if supervisor is None or supervisor.record.generation != message.generation:
            if isinstance(message, wire.Granted):  # granted to a start that has ended meanwhile
                self._post.send(node, wire.Release(message.job, message.generation))
            return
        if not isinstance(message, wire.Report):
            starts.tell(supervisor, node, message, now)
        elif parcels.is_name(message.report):
            self._tasks.spawn(self._fetch_report(node, message, supervisor))
        else:
            self._take_report(node, message.report, supervisor)
        self._carry_out(JobId(message.job))

    async def _fetch_report(self, node: NodeId, message: wire.Report, supervisor: Supervisor) -> None:
        """A report that was too large for a message, such as the predictions of many rows."""
        try:
            data = await parcels.unpack(message.report, self._blobs, [node])
            self._take_report(node, data, supervisor)
            await asyncio.to_thread(parcels.forget, data, self._storage.blobs)
        except P2pnnError as error:
            supervisor.node_failed(node, f"its report cannot be had: {error}", self._now())
        if self._supervisors.get(JobId(message.job)) is supervisor:
            self._carry_out(JobId(message.job))

    def _take_report(self, node: NodeId, data: bytes, supervisor: Supervisor) -> None:
        try:
            supervisor.report(node, _reports.decode(data), self._now())
        except msgspec.MsgspecError as error:
            supervisor.node_failed(node, f"its report cannot be read: {error}", self._now())

    def fail_orphans(self) -> None:
        """At the start of a daemon: what it coordinated when it last stopped cannot be running."""
        for record in list(self.records.values()):
            if record.coordinator == self._post.node and record.state not in life.ENDED:
                text = f"node {self._post.name} was restarted; go on with `p2pnn jobs resume {record.job}`"
                self._records.commit(
                    msgspec.structs.replace(record, state="failed", reason=text, revision=record.revision + 1)
                )
                self.journal(record.job).add("state", {"state": "failed", "reason": text})
        self._records.sweep()

    # --- small things

    def _runs_here(self, record: JobRecord) -> bool:
        """Whether a start of the job is led here. One that counts more ends it: somebody has resumed the job elsewhere."""
        supervisor = self._supervisors.get(record.job)
        ours = record.coordinator == self._post.node  # an echo of ours, from before this daemon's start
        if supervisor is not None and not ours and record.replaces(supervisor.record):
            supervisor.fail(f"it was resumed on node {record.coordinator_name}", self._now())
            self._carry_out(record.job)
        return record.job in self._supervisors

    def _led_elsewhere(self, record: JobRecord) -> bool:
        """Whether another node coordinates the job, and lives."""
        return record.coordinator != self._post.node and record.coordinator in self._members()

    def _refuse_foreign(self, record: JobRecord) -> None:
        if self._led_elsewhere(record):
            raise UsageError(f"job {record.job} is coordinated by node {record.coordinator_name}; ask its daemon")

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
