"""The jobs that this node coordinates: the adapter of `job.supervisor`, on the node that the cluster has elected.

Every start of a job is decided by the charter's voters (`node.work`), then carried out by messages. When this node stops
coordinating it lets go of everything without a word: what runs goes on, and the next coordinator takes it up (`node.succession`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from typing import Any, Final

import msgspec

from p2pnn.errors import P2pnnError, PlanError, StorageError, UsageError
from p2pnn.job import script
from p2pnn.job.actions import (
    Action,
    AskCuts,
    Compare,
    Decide,
    KeepBlobs,
    MakePart,
    Order,
    PrepareNode,
    Publish,
    Reassign,
    ReleaseNode,
    Remember,
    Replan,
    ReserveNode,
    TellAssigned,
)
from p2pnn.job.assignment import encode
from p2pnn.job.plan import Plan
from p2pnn.job.records import JobRecord, attainable
from p2pnn.job.recovery import Loss
from p2pnn.job.spec import JobSpec
from p2pnn.job.supervisor import Supervisor
from p2pnn.job.takeover import Takeover
from p2pnn.node import parcels, recovering, starts
from p2pnn.node.blobs import BlobExchange
from p2pnn.node.bulletin import Bulletin
from p2pnn.node.deciding import Deciding
from p2pnn.node.keeping import Keeping
from p2pnn.node.links import Post
from p2pnn.node.planning import Planning
from p2pnn.node.records import Records
from p2pnn.node.tasks import Tasks
from p2pnn.node.work import NotDecided, Work
from p2pnn.types import BlobId, JobId, NodeId
from p2pnn.wire import messages as wire

log = logging.getLogger("p2pnn.jobs")

LATE_S: Final = 1.0  # a timer that fires later than this says that the process stood still

_reports = msgspec.msgpack.Decoder(script.Report)


class Supervision:
    """members: name by node id of every living member, this node included. term: that in which this node coordinates.

    alarm: why what runs may not be given to other nodes now, as a clause; empty where it may.
    """

    def __init__(
        self,
        post: Post,
        blobs: BlobExchange,
        planning: Planning,
        records: Records,
        bulletin: Bulletin,
        work: Work,
        keeping: Keeping,
        members: Callable[[], dict[NodeId, str]],
        term: Callable[[], int],
        alarm: Callable[[], str],
    ) -> None:
        self.led: dict[JobId, Supervisor] = {}
        self._post = post
        self._blobs = blobs
        self._planning = planning
        self._records = records
        self._bulletin = bulletin
        self._work = work
        self._keeping = keeping
        self._members = members
        self._term = term
        self._alarm = alarm
        self._undecided: set[Supervisor] = set()  # whose first start is
        self._deciding = Deciding(post.name, work, keeping, self.led, self._carry_out)
        self._timers: dict[JobId, asyncio.TimerHandle] = {}
        self._back_until = self._now() + recovering.BACK_S
        self._tasks = Tasks()

    async def begin(
        self, record: JobRecord, spec: JobSpec, plan: Plan, alone: dict[NodeId, tuple[BlobId, ...]], remarks: list[str]
    ) -> None:
        """Have a start decided and lead it; returns when it is decided.

        alone: by node, what it alone holds of the job's data. remarks: warnings for who follows. Raises NotDecided or
        CharterError where it is not decided; then nothing was started. UsageError where the job is led already.
        """
        job = record.job
        if not self._work.coordinates:
            raise NotDecided(f"node {self._post.name} does not coordinate the cluster")
        if job in self.led:
            raise UsageError(f"job {job} is being started already; look at it with `p2pnn jobs show {job}`")
        supervisor = self._lead(Supervisor(record, spec, self._members(), self._now()))
        supervisor.planned(plan, self._now())
        recovering.keep_data(supervisor, alone)
        waiting: list[Action] = []
        while (action := supervisor.next_action()) is not None:
            if not isinstance(action, Decide):
                waiting.append(action)
        self._undecided.add(supervisor)
        try:
            await self._deciding.begin(job, supervisor)
            self._deciding.must_lead(job, supervisor)
        except BaseException as error:
            if self.led.get(job) is supervisor:
                self._let_go(job)
            if not isinstance(error, P2pnnError):  # whoever asked went away, and it may be decided nevertheless
                self._deciding.retire_undecided(job)
            raise
        finally:
            self._undecided.discard(supervisor)
        for text in remarks:
            supervisor.warn(text)
        for action in waiting:
            self._do(job, supervisor, action)
        self._carry_out(job)

    def take_over(self, record: JobRecord, spec: JobSpec, found: Takeover, lost: Collection[NodeId] = ()) -> None:
        """Lead a start that another coordinator began and whose nodes ran. lost: whose link has broken since, though it may
        be back. Raises msgspec.MsgspecError for an answer that cannot be read; then nothing has changed."""
        members, now = self._members(), self._now()
        supervisor = Supervisor(record, spec, members, now, begins=False)
        supervisor.take_over(found, now)
        for node in tuple(supervisor.nodes):
            if node in lost or node not in members:
                supervisor.member_lost(node, "while another node took the job over", now)
                if node in members:
                    supervisor.member_joined(node, members[node], now)
        self._lead(supervisor)
        self._carry_out(record.job)

    def recover(self, record: JobRecord, spec: JobSpec, reason: str, limit: int | None) -> None:
        """Lead a job whose start, which another coordinator began, is over: from the newest cut that is whole."""
        supervisor = self._lead(Supervisor(record, spec, self._members(), self._now(), begins=False))
        supervisor.recover(reason, limit, self._now())
        self._carry_out(record.job)

    async def vacate(self, node: NodeId) -> None:
        """Have the parts of jobs on a node that is draining run elsewhere. Raises PlanError, with the job, for one that fits on
        no others; then nothing has changed."""
        jobs = [job for job, supervisor in self.led.items() if node in supervisor.nodes]
        self._planning.asked_to_drain(node)
        for job in jobs:
            wanted, _ = attainable(self.led[job].spec, self._planning.usable(), anew=False)
            try:
                await self._planning.plan(wanted, compared=False)
            except PlanError as error:
                self._planning.cannot_drain(node)
                raise PlanError(f"job {job} cannot run without it: {error}") from error
        for job in jobs:
            if job in self.led:
                self.act(job, lambda supervisor, now: supervisor.vacate(node, now))

    def let_go(self) -> None:
        """This node coordinates no more: forget everything, stop nothing."""
        for job in list(self.led):
            self._let_go(job)

    def act(self, job: JobId, verb: Callable[[Supervisor, float], None]) -> None:
        """Tell the job's supervisor something, and carry out what it wants. Raises what it raises."""
        verb(self.led[job], self._now())
        self._carry_out(job)

    def end(self, record: JobRecord) -> None:
        """A job that nobody leads has ended: tell all, and have its entry go."""
        self._records.remember(record)
        fields = {"state": record.state, "reason": record.reason}
        self._bulletin.publish(record.job, record.generation, "state", fields)
        self.retire(record.job)

    def retire(self, job: JobId) -> None:
        """Have the entry of a job that has ended go; where this node is deposed before, the next coordinator does it."""
        self._deciding.retire(job)

    def receive(self, node: NodeId, message: wire.Message) -> None:
        """What the nodes of starts, and buddies, say."""
        now = self._now()
        match message:
            case wire.Kept():
                job = JobId(message.job)
                if not self._keeping.kept(node, message) and (supervisor := self.led.get(job)) is not None:
                    supervisor.kept(node, message.request, message.error, now)
                    self._carry_out(job)
            case wire.CutsHeld() | wire.PartMade():
                job = JobId(message.job)
                if (supervisor := self.led.get(job)) is not None:
                    recovering.tell(supervisor, node, message, now)
                    self._carry_out(job)
            case (
                wire.Waiting()
                | wire.Granted()
                | wire.Preparing()
                | wire.Prepared()
                | wire.Report()
                | wire.JobFailed()
                | wire.ShardWish()
            ):
                self._receive_of_part(node, message, now)

    def member_usable(self, node: NodeId, name: str) -> None:
        for job, supervisor in list(self.led.items()):
            supervisor.member_joined(node, name, self._now())
            self._carry_out(job)

    def member_lost(self, node: NodeId, reason: str) -> None:
        """It is gone, or lives but what was on its way to and from it is lost."""
        self._keeping.member_lost(node)
        self._back_until = self._now() + recovering.BACK_S
        for job, supervisor in list(self.led.items()):
            supervisor.member_lost(node, reason, self._now())
            self._carry_out(job)

    def member_failed(self, node: NodeId, reason: str) -> None:
        """It is dead, or has left."""
        for job, supervisor in list(self.led.items()):
            supervisor.member_failed(node, reason, self._now())
            self._carry_out(job)

    async def close(self) -> None:
        self.let_go()
        await self._deciding.close()
        await self._tasks.close()

    # --- carrying out

    def _lead(self, supervisor: Supervisor) -> Supervisor:
        self.led[supervisor.record.job] = supervisor
        return supervisor

    def _let_go(self, job: JobId) -> None:
        self.led.pop(job, None)
        timer = self._timers.pop(job, None)
        if timer is not None:
            timer.cancel()

    def _carry_out(self, job: JobId) -> None:
        supervisor = self.led[job]
        if supervisor in self._undecided:
            return  # what happens meanwhile is carried out when there is a start, under its generation
        while (action := supervisor.next_action()) is not None:
            self._do(job, supervisor, action)
        self._arm(job, supervisor)
        if supervisor.ended:
            self._let_go(job)
            self.retire(job)

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
        supervisor = self.led[job]
        due = supervisor.get_timer()
        if not again and due is not None and self._now() - due > LATE_S:
            self._timers[job] = asyncio.get_running_loop().call_later(LATE_S, self._handle_timer, job, True)
            return
        supervisor.handle_timer(self._now())
        self._carry_out(job)

    def _do(self, job: JobId, supervisor: Supervisor, action: Action) -> None:
        record, term = supervisor.record, self._term()
        about = (job, record.generation)
        match action:
            case Decide():
                self._deciding.begin_again(job, supervisor)
            case Reassign():
                self._deciding.reassign(job, supervisor, action)
            case TellAssigned(nodes, assignment):
                held = encode(assignment)
                for node in nodes:
                    self._post.send(node, wire.Assigned(*about, held, term))
            case ReserveNode(node):
                self._post.send(node, wire.Reserve(*about, record.name, term))
            case ReleaseNode(node):
                self._post.send(node, wire.Release(*about, term))
            case PrepareNode(node, index):
                self._prepare(supervisor, node, index)
            case Order(commands, oldest, state, nodes):
                data = msgspec.msgpack.encode(commands)
                for node in nodes:
                    self._post.send(node, wire.Command(*about, data, term, oldest, state))
            case KeepBlobs(node, request, blobs, source):
                self._post.send(node, wire.Keep(job, request, blobs, source))
            case AskCuts() | MakePart():
                self._post.send(action.node, recovering.question(job, action))
            case Remember(changed):
                self._records.remember(changed)
            case Publish(kind, fields):
                self._bulletin.publish(job, record.generation, kind, fields)
            case Replan():
                self._tasks.spawn(self._replan(job, supervisor))
            case Compare():
                self._tasks.spawn(self._compare(job, supervisor, record.generation))

    def _prepare(self, supervisor: Supervisor, node: NodeId, index: int) -> None:
        try:
            message = starts.prepare(supervisor.record, index, self._post.node, self._blobs.blobs, self._term())
        except StorageError as error:
            supervisor.fail(str(error), self._now())
            return
        self._post.send(node, message)

    async def _replan(self, job: JobId, supervisor: Supervisor) -> None:
        if supervisor.record.state != "queued" and (alarm := self._alarm()):
            supervisor.unplanned(alarm, self._now())
        else:
            await recovering.replan(
                supervisor, self._planning, self._blobs, self._post.node, self._planning.usable, self._back_until
            )
        if self.led.get(job) is supervisor:
            self._carry_out(job)

    async def _compare(self, job: JobId, supervisor: Supervisor, start: int) -> None:
        """Plan a job that runs as if it began now. Where that is not possible it stays as it is."""
        plan: Plan | None = None
        reason = ""
        try:
            wanted, _ = recovering.wanted(supervisor, self._planning.usable(), anew=False)
            plan = await self._planning.plan(wanted, compared=False)
        except P2pnnError as error:
            reason = str(error)
            log.info("job=%s stays as it is reason=%s", job, reason)
        if self.led.get(job) is supervisor and supervisor.record.generation == start and not self._alarm():
            supervisor.compared(plan, self._now(), reason)
            self._carry_out(job)

    def _receive_of_part(self, node: NodeId, message: Any, now: float) -> None:
        supervisor = self.led.get(JobId(message.job))
        is_current = supervisor is not None and supervisor.record.generation == message.generation
        if (
            supervisor is None
            or not is_current
            or supervisor in self._undecided
            or self._deciding.is_deciding(supervisor)
        ):
            if isinstance(message, wire.Granted):  # granted to a start that has ended meanwhile
                self._post.send(node, wire.Release(message.job, message.generation, self._term()))
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
            if supervisor.record.generation == message.generation:  # else of a start that has ended meanwhile
                self._take_report(node, data, supervisor)
            await asyncio.to_thread(parcels.forget, data, self._blobs.blobs)
        except P2pnnError as error:
            if supervisor.record.generation == message.generation:
                supervisor.node_failed(node, f"its report cannot be had: {error}", self._now(), Loss.UNREACHABLE)
        if self.led.get(JobId(message.job)) is supervisor:
            self._carry_out(JobId(message.job))

    def _take_report(self, node: NodeId, data: bytes, supervisor: Supervisor) -> None:
        try:
            supervisor.report(node, _reports.decode(data), self._now())
        except msgspec.MsgspecError as error:
            supervisor.node_failed(node, f"its report cannot be read: {error}", self._now())

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
