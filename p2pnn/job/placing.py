"""From a plan to nodes that are all prepared: the first half of each start of a job, and the base of its supervisor.

The plan is decided by the cluster, its nodes' places are taken one after the other (`job.reservation`), and then all of them
fetch what they need at once. A node that is lost before that is done costs a new plan and nothing else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final

import msgspec

from p2pnn.job import life
from p2pnn.job.actions import Action, Decide, PrepareNode, Replan
from p2pnn.job.assignment import may_lose
from p2pnn.job.checkpointing import cut_of, tell_cut
from p2pnn.job.failover import Failover
from p2pnn.job.ledger import Ledger
from p2pnn.job.plan import Plan
from p2pnn.job.records import JobRecord
from p2pnn.job.reservation import Reservation
from p2pnn.job.run import Run
from p2pnn.job.spec import JobSpec
from p2pnn.job.watch import Watch
from p2pnn.types import NodeId

PREPARE: Final = 0
"""Numbers what a node owes after PrepareNode; commands count from 1."""


class Placing(ABC):
    """nodes: of the plan that take part; none between two. members: name by node id of every living member."""

    def __init__(self, record: JobRecord, spec: JobSpec, members: dict[NodeId, str], now: float) -> None:
        self.spec = spec
        self._ledger = Ledger(record, dict(members))
        self.nodes: list[NodeId] = []
        self._reservation = Reservation()
        self._prepared: set[NodeId] = set()
        self._watch = Watch()
        self._run = Run(self._ledger, spec, self._end, self._watch, now)
        self.failover = self._no_start()
        self._undecided, self._planning = 0, False

    @property
    def record(self) -> JobRecord:
        """The job as it is now."""
        return self._ledger.record

    @property
    def ended(self) -> bool:
        return self.record.is_over

    def next_action(self) -> Action | None:
        return self._ledger.next_action()

    def warn(self, text: str) -> None:
        """Tell who follows; text: one clause."""
        self._ledger.publish("warning", text=text)

    # --- facts

    def planned(self, plan: Plan, now: float, remarks: Sequence[str] = ()) -> None:
        """The plan to run. Call it once, and again after each Replan. It may name a node that went away meanwhile.

        remarks: what the job does not get of what it wished.
        """
        self._planning = False
        if self.record.state == "parked":
            self._ledger.move("unpark", "there is room again", self._run.step)
        if self.record.state not in life.PLACING:
            return
        gone = [share.name for share in plan.nodes if share.node not in self._ledger.members]
        if gone:
            self._replan(f"node {gone[0]} is gone before the job started; planning without it")
            return
        for text in remarks:
            self.warn(text)
        self._ledger.change(plan=plan)
        self._ledger.publish("plan", plan=msgspec.to_builtins(plan))
        for text in plan.reasons[1:]:
            self._ledger.publish("warning" if "not bitwise" in text else "note", text=text)
        self.nodes = [share.node for share in plan.nodes]
        tell_cut(self.spec, plan, self._ledger)
        can_lose = may_lose(plan, self.spec)
        self._run.assign(self.nodes, cut_of(self.spec, plan, self.record.newest), can_lose=can_lose)
        self._undecided += 1
        self._ledger.do(Decide())

    def decided(self, generation: int, now: float) -> None:
        """The cluster has decided this start, under a generation higher than any before. Of several Decides the last counts."""
        self._undecided -= 1
        if self.ended or not self.nodes or self._undecided or self.record.plan is None:
            return
        self._ledger.change(generation=generation, revision=0)
        self._ledger.remember()
        self.failover.begin(self.record.plan, generation)
        self._ledger.do(*self._reservation.want(self.nodes))
        self._prepare_all(now)

    def waiting(self, node: NodeId, behind: str, position: int, now: float) -> None:
        if self.record.state in life.PLACING and node in self.nodes:
            self._ledger.publish("queued", behind=behind, position=position, node=self._ledger.name(node))

    def granted(self, node: NodeId, now: float) -> None:
        if self.record.state in life.PLACING:
            self._ledger.do(*self._reservation.granted(node))
            self._prepare_all(now)

    def preparing(self, node: NodeId, fetched_bytes: int, total_bytes: int, now: float) -> None:
        if self.record.state == "preparing" and node in self.nodes:
            self._watch.heard(node, now)
            name = self._ledger.name(node)
            self._ledger.publish("preparing", node=name, fetched_bytes=fetched_bytes, total_bytes=total_bytes)

    # --- how

    def _prepare_all(self, now: float) -> None:
        if self._reservation.complete:
            self._ledger.move("granted", "fetching model and data", self._run.step)
            for index, node in enumerate(self.nodes):
                self._watch.expect(node, PREPARE, now, training=False)
                self._ledger.do(PrepareNode(node, index))

    def _replan(self, text: str) -> None:
        """Plan and have it decided anew: a place granted under this generation must not be taken for one of the next plan."""
        self._ledger.publish("warning", text=text)
        self._ledger.do(*self._reservation.give_back())
        self.nodes, self.failover = [], self._no_start()
        self._ledger.change(starts=self.record.starts + 1)
        self._plan_again()

    def _plan_again(self) -> None:
        if not self._planning:
            self._planning = True
            self._ledger.do(Replan())

    def _no_start(self) -> Failover:
        goes_on = lambda index, now: self._run.without([index], now)  # noqa: E731
        return Failover(self._ledger, self.spec, goes_on, self._over, self._reassigned)

    # --- the rest of a job's life

    @abstractmethod
    def _end(self, event: str, reason: str) -> None:
        """The run is over."""

    @abstractmethod
    def _over(self, text: str, now: float) -> None:
        """The start is."""

    @abstractmethod
    def _reassigned(self, now: float) -> None:
        """Roles in it have changed."""
