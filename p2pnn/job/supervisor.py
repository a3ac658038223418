"""The supervisor: one job, from its plan to its end, as decided by the node that coordinates it.

Sans-IO: verbs take facts (a node granted its place, an executor reported, a member failed) and `now`; `next_action` says what
must be done. The life of a job is the table in `job.life`; here is what happens around the run: its nodes are taken and prepared
(`job.placing`), `job.run` leads them through the script, and whatever ends it gives them back. A node that is lost is done
without where that is possible (`job.failover`), else the start is over (`job.recovery`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count

from p2pnn.errors import UsageError
from p2pnn.job import life
from p2pnn.job.actions import Compare, ReleaseNode
from p2pnn.job.checkpoint import Manifest, Part
from p2pnn.job.checkpointing import Checkpointing, cut_of
from p2pnn.job.healing import Healing, not_rebuilt, stronger
from p2pnn.job.placing import PREPARE, Placing
from p2pnn.job.plan import Plan
from p2pnn.job.records import JobRecord, without_start
from p2pnn.job.recovery import FREED_S, PARKED_S, Attempts, Loss, Lost, Recovery, parked, taken_back, told
from p2pnn.job.run import Run
from p2pnn.job.script import Report
from p2pnn.job.spec import JobSpec
from p2pnn.job.takeover import Takeover, record_as_of
from p2pnn.job.watch import Watch
from p2pnn.types import BlobId, NodeId


class Supervisor(Placing):
    """One start of one job. Create it with a queued record; feed it; do what next_action says until it is None.

    nodes: of the plan that take part; none between two starts. members: name by node id of every living member, this node
    included. begins: not for a start that is taken over.
    """

    def __init__(
        self, record: JobRecord, spec: JobSpec, members: dict[NodeId, str], now: float, *, begins: bool = True
    ) -> None:
        super().__init__(record, spec, members, now)
        self._healing = Healing(spec)
        self._recovery: Recovery | None = None
        self._lost: Lost | None = None
        self._ran: tuple[int, int, str] = (0, 0, "")  # of the last start that ran: generation, nodes, cut
        self.attempts, self._parked_until = Attempts(self._run.step), 0.0
        self._requests = count(record.revision + 1)  # a new term's revisions are higher, so its numbers are too
        if begins:
            self._ledger.tell_state("waiting for its nodes")

    # --- facts

    def take_over(self, found: Takeover, now: float) -> None:
        """Go on as the new coordinator of a start whose nodes all run, where the old one stood. The record is its last one."""
        state, record = found.state, self.record
        assert record.plan is not None
        self.failover.take_over(record.plan, found.assignment)
        self.nodes = self.failover.nodes
        self._reservation.assume(self.nodes)
        self._ledger.change(**record_as_of(state, record))
        self._ledger.remember()
        self._run.assign(found.nodes, state.cut, can_lose=self.failover.can_lose)
        self._run.take_over(state, found.commands, found.totals, now)
        self._ran = (record.generation, len(found.nodes), state.cut)
        self.attempts = Attempts(self._run.step)
        self._run.without([index for index in found.assignment.gone if index not in state.gone], now)
        if self._ledger.members.keys() - set(self.nodes) or self.failover.is_weakened:
            self._healing.changed(now)
        for node, report in found.answers:
            self.report(node, report, now)
        for node, why in found.lost.items():
            self.node_failed(node, why, now, Loss.UNREACHABLE)

    def recover(self, reason: str, limit: int | None, now: float) -> None:
        """Go on as the new coordinator of a job whose start is over. reason: why, as a clause. The record is its last one, with
        all epochs that are known; limit: no cut behind this step can be gone on from."""
        plan = self.record.plan
        if plan is not None:
            self._ran = (self.record.generation, len(plan.nodes), cut_of(self.spec, plan, self.record.newest))
            self._ledger.do(*(ReleaseNode(share.node) for share in plan.nodes))
        self._lose(f"{reason}, and another node coordinates now", {}, now, limit)

    def prepared(self, node: NodeId, memory_bytes: int, now: float) -> None:
        if self.record.state == "preparing":
            self._prepared.add(node)
            self._watch.heard(node, now, PREPARE)
            if self._prepared.issuperset(self.nodes):
                self._run.start(now)
                self._ran = (self.record.generation, len(self.nodes), self._run.cut)
                if self._lost is not None:
                    names = list(map(self._ledger.name, self.nodes))
                    self._ledger.publish("recovered", **told(self._lost, self.spec, names, self._run.step, now))
                self._lost = None

    def report(self, node: NodeId, report: Report, now: float) -> None:
        """An executor's Progress or Done. Raises msgspec.MsgspecError for a result that cannot be read."""
        if not self.ended and node in self.nodes:
            self._run.report(node, report, now)

    def kept(self, node: NodeId, request: int, error: str, now: float) -> None:
        """`node` keeps the blobs of a KeepBlobs, or could not."""
        if not self.ended:
            self._run.copying(lambda checkpoints: checkpoints.kept(node, request, error), now)

    def node_failed(self, node: NodeId, text: str, now: float, kind: int = Loss.FINAL, peer: str = "") -> None:
        """This start cannot go on at a node. text: one sentence; kind: one of `Loss`; peer: who it does not reach."""
        if self.ended or node not in self.nodes:
            return
        said = f"node {self._ledger.name(node)}: {text}"
        if peer:
            self.attempts.apart(node, NodeId(peer), self.record.coordinator)
        if kind != Loss.FINAL and self._goes_on_without(node, text, now, killed=kind == Loss.KILLED):
            return
        if kind == Loss.KILLED and (why := self.attempts.killed()):
            self._end("fail", f"{said}; {why}")
        elif kind == Loss.FINAL or self.record.state == "queued":
            self._end("fail", said)
        elif self.record.state == "recovering":
            self._replan(f"{said}; planning again")
        else:
            lacks = self.record.state == "preparing" and kind == Loss.UNREACHABLE and not peer
            self._lose(said, {}, now, lacks=lacks)

    def member_joined(self, node: NodeId, name: str, now: float) -> None:
        """A member came, or is back after its link broke."""
        self._ledger.members[node] = name
        self.failover.is_back(node)
        if self.record.state in life.RUNNING and node not in self.nodes:
            self._healing.changed(now)
        self._tell(lambda recovery: recovery.member_joined(node, now), now)
        if self.record.state == "parked":
            self._plan_again()

    def member_lost(self, node: NodeId, reason: str, now: float) -> None:
        """The link to a member broke; it may be gone, or come back. What was on its way is lost, so a start that has a part there
        goes on without it, or is over; one that only waits for its nodes is planned again."""
        name = self._ledger.name(node)
        self._ledger.members.pop(node, None)
        if self.ended:
            return
        if self._recovery is not None:
            self._recovery.member_lost(node, reason, now)
            self._recovered(now)
        elif node not in self.nodes:
            self._run.copying(lambda checkpoints: checkpoints.member_failed(node), now)
        elif self.record.state in life.PLACING:
            self._reservation.lost(node)
            self._run.copying(lambda checkpoints: checkpoints.member_failed(node), now)
            self._replan(f"node {name} is lost before the job started ({reason}); planning without it")
        elif not self._goes_on_without(node, reason, now):
            self._lose(f"node {name} is lost ({reason})", {node: reason}, now)

    def member_failed(self, node: NodeId, reason: str, now: float) -> None:
        """A member is gone: it is dead, or has left."""
        if node in self._ledger.members:
            self.member_lost(node, reason, now)
        self._tell(lambda recovery: recovery.member_gone(node, now), now)

    def cuts(
        self, node: NodeId, generation: int, request: int, step: int, held: Sequence[tuple[int, int]], now: float
    ) -> None:
        """A member answers AskCuts: (index, step) of what it holds, and how far its own part was."""
        self._tell(lambda recovery: recovery.cuts(node, request, step, held, now), now, generation)

    def made(self, node: NodeId, generation: int, request: int, part: Part | None, now: float) -> None:
        """A member answers MakePart; None where it could not."""
        self._tell(lambda recovery: recovery.made(node, request, part, now), now, generation)

    def go_back(self, manifest: Manifest | None, now: float) -> None:
        """Before the plan after a loss: go on from this checkpoint, since parts of newer ones are nowhere."""
        taken_back(self._ledger, manifest)
        self._begin_anew(now)

    def unplanned(self, reason: str, now: float, again_s: float = FREED_S) -> None:
        """There is no plan over who is left. A job that has lost nodes waits, and looks after `again_s`; a new one fails."""
        self._planning = False
        self._parked_until = now + (PARKED_S if self.record.state == "parked" else again_s)
        if self.record.state == "recovering":
            self._ledger.move("park", parked(self._ledger, reason), self._run.step)
        elif self.record.state != "parked":
            self.fail(reason, now)

    def cancel(self, reason: str, now: float) -> None:
        """End the job at once. UsageError if it has ended already."""
        self._end("cancel", reason)

    def pause(self, now: float) -> None:
        """Stop at the end of the granted steps, with a checkpoint there. UsageError where that is not possible."""
        if self.spec.kind != "train":
            raise UsageError(f"a job of kind {self.spec.kind} cannot be paused, since it keeps nothing; cancel it")
        if self.record.state == "queued":
            self._end("pause", "paused before it started")
        elif self.record.state == "parked" or (self.record.state == "recovering" and self._recovery is None):
            self._end("saved", f"paused at step {self._run.step}")
        elif self.record.state == "recovering":
            self._ledger.change(pausing=True)
            self._ledger.move("pause", "pausing where it will go on", self._run.step)
        else:
            self._ledger.change(vacating="")  # where it was to move, it stays paused instead
            self._run.pause(now)

    def vacate(self, node: NodeId, now: float) -> None:
        """What runs on a node, which is draining, is to run elsewhere: training goes on from where its granted steps end."""
        text = f"node {self._ledger.name(node)} is draining"
        if self.record.state in life.PLACING:
            self._replan(f"{text}; planning without it")
        elif self.record.state == "running" and self.spec.kind == "train":
            self.warn(f"{text}: the job moves when the steps that are granted are done")
            self._move(text, now)
        elif self.record.state in ("preparing", "running"):
            self._lose(text, {}, now)

    def compared(self, plan: Plan | None, now: float, reason: str = "") -> None:
        """The plan by which the job would begin now: it moves where that is stronger. None: there is none; reason: a clause."""
        held, before = self.failover.assignment, self.record.plan
        if self.record.state == "running" and before is not None and not self.failover.changing:
            text = stronger(self.spec, held, before, plan) if plan is not None else ""
            if text:
                self._ledger.publish("note", text=f"{text}, when the steps that are granted are done")
                self._move(text, now)
            elif self._healing.is_news(why := not_rebuilt(held, before, plan, reason)):
                self._ledger.publish("note", text=why)

    def fail(self, reason: str, now: float) -> None:
        """The coordinator itself cannot go on (no plan over who is left, …)."""
        if not self.ended:
            self._end("fail", reason)

    def keep_data(self, source: NodeId, blobs: tuple[BlobId, ...]) -> None:
        """Have data copied that only `source` holds; no checkpoint is complete before that is done."""
        self._run.checkpoints.keep_data(source, blobs)

    # --- time

    def get_timer(self) -> float | None:
        """When handle_timer is to be called, if nothing happens before; it may move with every fact."""
        if self.ended:
            return None
        if self._recovery is not None:
            return self._recovery.get_timer()
        parked = self._parked_until if self.record.state == "parked" and not self._planning else None
        heals = self._healing.due if self.record.state == "running" else None
        return min(
            (t for t in (self._watch.due, self._run.checkpoints.get_timer(), parked, heals) if t is not None),
            default=None,
        )

    def handle_timer(self, now: float) -> None:
        """Ends the start where a node does not move any more. Harmless when nothing is due."""
        if self.ended:
            return
        if self._recovery is not None:
            self._tell(lambda recovery: recovery.handle_timer(now), now)
            return
        if self.record.state == "parked" and now >= self._parked_until:
            self._plan_again()
        if self.record.state == "running" and self._healing.is_due(now, self._run.left_s, self.failover.is_weakened):
            self._ledger.do(Compare())
        if (silent := self._watch.silent(now)) is None:
            self._run.copying(Checkpointing.handle_timer, now)
        elif self.record.state == "preparing":
            self.node_failed(silent[0], f"its preparing has not moved for {silent[1]:.0f} s", now, Loss.FINAL)
        else:
            text = f"its compute process has not moved for {silent[1]:.0f} s"
            self.node_failed(silent[0], text, now, Loss.UNREACHABLE)

    # --- how

    def _move(self, text: str, now: float) -> None:
        """Go on by another plan, from where the granted steps end. text: why, as a sentence without its full stop."""
        self._ledger.change(vacating=text)
        self._run.pause(now)

    # --- after a loss

    def _goes_on_without(self, node: NodeId, why: str, now: float, *, killed: bool = False) -> bool:
        """Whether the start that runs goes on though a node of it is lost."""
        if not self.failover.lose(node, f"node {self._ledger.name(node)} is lost ({why})"):
            return False
        self.nodes = self.failover.nodes
        self._reservation.lost(node)
        self._watch.forget(node, now)
        self._healing.changed(now, killed=killed)
        return True

    def _over(self, text: str, now: float) -> None:
        self._lose(text, {}, now)

    def _reassigned(self, now: float) -> None:
        if self.failover.is_weakened and self._healing.due is None:
            self._healing.changed(now)

    def _lose(
        self, text: str, away: dict[NodeId, str], now: float, limit: int | None = None, *, lacks: bool = False
    ) -> None:
        """This start is over: end it everywhere, and find out what to go on from."""
        if limit is None and self.spec.patience:  # early stopping may want this checkpoint, which is not complete yet
            limit = self._run.checkpoints.oldest_best
        lost = Lost(text, *self._ran, self._run.step, now, limit, lacks, text != self.record.vacating)
        if self._lost is not None:  # the start after an earlier loss did not come to run
            lost.since, lost.reached = self._lost.since, max(self._lost.reached, lost.reached)
        self._ledger.publish("warning", text=text)
        for node in away:
            self._reservation.lost(node)
        self._ledger.do(*self._reservation.give_back())
        self.nodes, self.failover = [], self._no_start()
        self._ledger.record = without_start(self.record)
        self._ledger.move("lose", text, self._run.step)
        self._recovery = Recovery(self._ledger, self.spec, lost, away, now, self._requests)
        self._recovered(now)

    def _tell(self, verb: Callable[[Recovery], None], now: float, generation: int | None = None) -> None:
        """generation: of the start that an answer is about; None for what is about none."""
        if self._recovery is not None and generation in (None, self._recovery.lost.generation):
            verb(self._recovery)
            self._recovered(now)

    def _recovered(self, now: float) -> None:
        """Once it is known what to go on from: plan again."""
        if self._recovery is None or not self._recovery.finished:
            return
        recovery, self._recovery = self._recovery, None
        self._lost = recovery.lost
        manifest = recovery.manifest or self.record.newest
        step = manifest.step if manifest else 0
        if (why := self.attempts.ended(step)) and not self._lost.lacks:
            self._end("fail", f"{self._lost.text}; {why}; go on with `p2pnn jobs resume {self.record.job}`")
            return
        taken_back(self._ledger, manifest)
        self._begin_anew(now)
        self._ledger.remember()
        if self.record.pausing:
            self._end("saved", f"paused at step {step}")
        elif why:  # what it needs may come back, with its node
            self.unplanned(self._lost.text, now, PARKED_S)
        else:
            self._plan_again()

    def _begin_anew(self, now: float) -> None:
        self._watch, self._prepared = Watch(), set()
        lost, self._run = self._run, Run(self._ledger, self.spec, self._end, self._watch, now)
        self._run.sampler = lost.sampler
        self._run.meter.follow(lost.meter)

    def _end(self, event: str, reason: str) -> None:
        if event == "saved" and self.record.vacating:
            self._ran = (0, 0, "")  # that checkpoint is newer than any cut
            self._lose(self.record.vacating, {}, self._run.now)
            return
        if event == "lose":
            self._lose(reason, {}, self._run.now)
            return
        self._recovery = None
        self._ledger.move(event, reason, self._run.step)
        self._ledger.do(*self._reservation.give_back())
