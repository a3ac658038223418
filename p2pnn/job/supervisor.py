"""The supervisor: one job, from its plan to its end, as decided by the node that coordinates it.

Sans-IO: verbs take facts (a node granted its place, an executor reported, a member failed) and `now`; `next_action` says what
must be done. The life of a job is the table in `job.life`; here is what happens around the run: its nodes are taken
(`job.reservation`) and prepared, `job.run` leads them through the script, and whatever ends it gives them back.
"""

from __future__ import annotations

from typing import Final

import msgspec

from p2pnn.errors import UsageError
from p2pnn.job import life
from p2pnn.job.actions import Action, Decide, PrepareNode, Replan
from p2pnn.job.checkpoint import RECUT
from p2pnn.job.ledger import Ledger
from p2pnn.job.plan import Plan, cut
from p2pnn.job.records import JobRecord
from p2pnn.job.reservation import Reservation
from p2pnn.job.run import Run
from p2pnn.job.script import Report
from p2pnn.job.spec import JobSpec
from p2pnn.job.takeover import Takeover
from p2pnn.job.watch import Watch
from p2pnn.types import BlobId, NodeId

_PREPARE: Final = 0
"""Numbers what a node owes after PrepareNode; commands count from 1."""


class Supervisor:
    """One start of one job. Create it with a queued record; feed it; do what next_action says until it is None.

    members: name by node id of every living member, this node included. begins: not for a start that is taken over.
    """

    def __init__(
        self, record: JobRecord, spec: JobSpec, members: dict[NodeId, str], now: float, *, begins: bool = True
    ) -> None:
        self.spec = spec
        self._ledger = Ledger(record, dict(members))
        self._nodes: list[NodeId] = []
        self._reservation = Reservation()
        self._prepared: set[NodeId] = set()
        self._watch = Watch()
        self._run = Run(self._ledger, spec, self._end, self._watch, now)
        if begins:
            self._ledger.tell_state("waiting for its nodes")

    @property
    def record(self) -> JobRecord:
        """The job as it is now."""
        return self._ledger.record

    @property
    def ended(self) -> bool:
        return self.record.state in life.ENDED

    def next_action(self) -> Action | None:
        return self._ledger.next_action()

    # --- facts

    def planned(self, plan: Plan, now: float) -> None:
        """The plan to run. Call it once, and again after each Replan. It may name a node that went away meanwhile."""
        gone = [share.name for share in plan.nodes if share.node not in self._ledger.members]
        if gone:
            self._replan(f"node {gone[0]} is gone before the job started; planning without it")
            return
        self._ledger.change(plan=plan)
        self._ledger.publish("plan", plan=msgspec.to_builtins(plan))
        for text in plan.reasons[1:]:
            self._ledger.publish("warning" if "not bitwise" in text else "note", text=text)
        self._nodes = [share.node for share in plan.nodes]
        self._run.assign(self._nodes, self._cut(plan))
        self._ledger.do(Decide())

    def decided(self, generation: int, now: float) -> None:
        """The cluster has decided this start, under this generation, which is higher than that of any before."""
        if self.ended or not self._nodes:
            return
        self._ledger.change(generation=generation, revision=0)
        self._ledger.remember()
        self._ledger.do(*self._reservation.want(self._nodes))
        self._prepare_all(now)

    def take_over(self, found: Takeover, now: float) -> None:
        """Go on as the new coordinator of a start whose nodes all run, where the old one stood. The record is its last one."""
        state, record = found.state, self.record
        self._nodes = found.nodes
        self._reservation.assume(found.nodes)
        self._ledger.change(
            state=state.state,
            reason=state.reason,
            epoch=state.epoch,
            history=(*record.history[: state.told], *state.history),
            results=state.results,
            stopped_early=state.stopped_early,
        )
        self._ledger.remember()
        self._run.assign(found.nodes, state.cut)
        self._run.take_over(state, found.commands, found.totals, now)
        for node, report in found.answers:
            self.report(node, report, now)

    def waiting(self, node: NodeId, behind: str, position: int, now: float) -> None:
        if self.record.state == "queued" and node in self._nodes:
            self._ledger.publish("queued", behind=behind, position=position, node=self._ledger.name(node))

    def granted(self, node: NodeId, now: float) -> None:
        if self.record.state == "queued":
            self._ledger.do(*self._reservation.granted(node))
            self._prepare_all(now)

    def preparing(self, node: NodeId, fetched_bytes: int, total_bytes: int, now: float) -> None:
        if self.record.state == "preparing" and node in self._nodes:
            self._watch.heard(node, now)
            about = {"node": self._ledger.name(node), "fetched_bytes": fetched_bytes, "total_bytes": total_bytes}
            self._ledger.publish("preparing", **about)

    def prepared(self, node: NodeId, memory_bytes: int, now: float) -> None:
        if self.record.state == "preparing":
            self._prepared.add(node)
            self._watch.heard(node, now, _PREPARE)
            if self._prepared.issuperset(self._nodes):
                self._run.start(now)

    def report(self, node: NodeId, report: Report, now: float) -> None:
        """An executor's Progress or Done. Raises msgspec.MsgspecError for a result that cannot be read."""
        if not self.ended and node in self._nodes:
            self._run.report(node, report, now)

    def kept(self, node: NodeId, request: int, error: str, now: float) -> None:
        """`node` keeps the blobs of a KeepBlobs, or could not."""
        if not self.ended:
            self._run.kept(node, request, error, now)

    def node_failed(self, node: NodeId, text: str, now: float) -> None:
        """The job cannot go on at a node: its executor died or refused. text: one sentence."""
        if not self.ended and node in self._nodes:
            self._end("fail", f"node {self._ledger.name(node)}: {text}")

    def member_joined(self, node: NodeId, name: str) -> None:
        self._ledger.members[node] = name

    def member_failed(self, node: NodeId, reason: str, now: float) -> None:
        """A member is gone, or the link to it broke. Fails the job if it held a part of it; one that has not started is planned
        again."""
        name = self._ledger.name(node)
        self._ledger.members.pop(node, None)
        if self.ended:
            return
        if node not in self._nodes:
            self._run.member_failed(node, now)
        elif self.record.state != "queued":
            again = (
                f"go on with `p2pnn jobs resume {self.record.job}`" if self.spec.kind == "train" else "start it again"
            )
            self._end("fail", f"node {name} is lost: {reason}; {again}")
        else:
            self._reservation.lost(node)
            self._run.member_failed(node, now)
            self._replan(f"node {name} is lost before the job started ({reason}); planning without it")

    def cancel(self, reason: str, now: float) -> None:
        """End the job at once. UsageError if it has ended already."""
        self._end("cancel", reason)

    def pause(self, now: float) -> None:
        """Stop at the end of the granted steps, with a checkpoint there. UsageError where that is not possible."""
        if self.spec.kind != "train":
            raise UsageError(
                f"a job of kind {self.spec.kind} cannot be paused, since it keeps nothing on its way; cancel it"
            )
        if self.record.state == "queued":
            self._end("pause", "paused before it started")
        else:
            self._run.pause(now)

    def fail(self, reason: str, now: float) -> None:
        """The coordinator itself cannot go on (no plan over who is left, …)."""
        if not self.ended:
            self._end("fail", reason)

    def keep_data(self, source: NodeId, blobs: tuple[BlobId, ...]) -> None:
        """Have data that only `source` holds copied to another node; no checkpoint is complete before that is done."""
        self._run.keep_data(source, blobs)

    def warn(self, text: str) -> None:
        """Tell who follows; text: one clause."""
        self._ledger.publish("warning", text=text)

    # --- time

    def get_timer(self) -> float | None:
        """When handle_timer is to be called, if nothing happens before; it may move with every fact."""
        times = [] if self.ended else [t for t in (self._watch.due, self._run.get_timer()) if t is not None]
        return min(times, default=None)

    def handle_timer(self, now: float) -> None:
        """Fails the job where a node does not move any more. Harmless when nothing is due."""
        if self.ended:
            return
        silent = self._watch.silent(now)
        if silent is None:
            self._run.handle_timer(now)
            return
        node, seconds = silent
        what = (
            "its compute process has not moved" if self.record.state != "preparing" else "its preparing has not moved"
        )
        self.node_failed(node, f"{what} for {seconds:.0f} s", now)

    # --- how

    def _cut(self, plan: Plan) -> str:
        """The plan's cut; says so where the run will not repeat the bits of a run without a break."""
        found, resumed = cut(self.spec, plan), self.record.newest
        if resumed is None or resumed.cut == found:
            return found
        if resumed.cut.removeprefix(RECUT) != found:
            self._ledger.publish(
                "warning",
                text=f"the run goes on from step {resumed.step} over another cut, with other delays: its bits will differ "
                "from those of a run without a break",
            )
        return RECUT + found

    def _prepare_all(self, now: float) -> None:
        if self._reservation.complete:
            self._ledger.move("granted", "fetching model and data", self._run.step)
            for index, node in enumerate(self._nodes):
                self._watch.expect(node, _PREPARE, now, training=False)
                self._ledger.do(PrepareNode(node, index))

    def _replan(self, text: str) -> None:
        """Plan and have it decided anew: a place granted under this generation must not be taken for one of the next plan."""
        self._ledger.publish("warning", text=text)
        self._ledger.do(*self._reservation.give_back())
        self._nodes = []
        self._ledger.change(starts=self.record.starts + 1)
        self._ledger.do(Replan())

    def _end(self, event: str, reason: str) -> None:
        self._ledger.move(event, reason, self._run.step)
        self._ledger.do(*self._reservation.give_back())
