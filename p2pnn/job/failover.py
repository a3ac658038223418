"""A start that loses a node and goes on: whether it can, what is to be committed for it, and what is said when it is.

    a node is lost, or a primary wishes another set of replicas ──► propose ──► commit (one change of the job's entry in the
    charter, one at a time) ──► told to the nodes that take part ──► the script does without the lost node

Nothing is told before it is committed: a new primary that the charter might not name could acknowledge what is lost later. What
comes while a commit is under way waits for it; a wish that another change has overtaken is answered with what holds. A node of
a running start that is lost for a moment is lost for good, since its part misses what was said meanwhile; its place is given
back, and it comes in again with the next start (`job.healing`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from p2pnn.job import life
from p2pnn.job.actions import Reassign, ReleaseNode, TellAssigned
from p2pnn.job.assignment import (
    Assignment,
    committed,
    decode_configuration,
    gone_workers,
    index_of,
    initial,
    is_leased,
    may_lose,
    primary_of,
    wished,
    without,
)
from p2pnn.job.ledger import Ledger
from p2pnn.job.plan import Plan
from p2pnn.job.spec import JobSpec
from p2pnn.replication.configuration import Configuration
from p2pnn.types import NodeId


@dataclass(frozen=True, slots=True)
class _Loss:
    index: int
    text: str


class Failover:
    """Pure; `now` in seconds. Of one start; until `begin` there is none, and nothing can be lost.

    goes_on(index, now) is called when it is committed that the start does without a node of the plan; over(text, now) where that
    cannot be had after all, though `lose` has said that it could; changed(now) when any change is committed.
    """

    def __init__(
        self,
        ledger: Ledger,
        spec: JobSpec,
        goes_on: Callable[[int, float], None],
        over: Callable[[str, float], None],
        changed: Callable[[float], None],
    ) -> None:
        self.assignment = Assignment()
        self._ledger = ledger
        self._spec = spec
        self._goes_on = goes_on
        self._over = over
        self._changed = changed
        self._plan: Plan | None = None
        self._losses: list[_Loss] = []
        self._wishes: dict[int, tuple[NodeId, Configuration]] = {}
        self._proposed: Assignment | None = None

    @property
    def can_lose(self) -> bool:
        """Whether the start may go on without some node."""
        return bool(self.assignment.shards) or (self._plan is not None and may_lose(self._plan, self._spec))

    @property
    def changing(self) -> bool:
        """Whether a change of the assignment is under way."""
        return self._proposed is not None

    @property
    def is_weakened(self) -> bool:
        """Whether the start has lost nodes, or a shard has fewer replicas than it was to have, though all are there."""
        return bool(self.gone) or any(len(shard.members) < shard.copies for shard in self.assignment.shards)

    @property
    def nodes(self) -> list[NodeId]:
        """Those of the plan, in its order, that take part."""
        away = {*self.assignment.gone, *(loss.index for loss in self._losses)}
        return [share.node for index, share in enumerate(self._plan.nodes) if index not in away] if self._plan else []

    @property
    def gone(self) -> list[NodeId]:
        """The others."""
        return [share.node for share in self._plan.nodes if share.node not in self.nodes] if self._plan else []

    def begin(self, plan: Plan, generation: int) -> None:
        """The start was decided."""
        self._plan, self.assignment = plan, initial(plan, generation)

    def take_over(self, plan: Plan, held: Assignment) -> None:
        """Go on as another coordinator, with what is committed; it may have died before it told anybody."""
        self._plan, self.assignment = plan, held
        if held.shards or held.gone:
            self._ledger.do(*map(ReleaseNode, self.gone))
            self._tell(self.nodes)

    def lose(self, node: NodeId, text: str) -> bool:
        """A node of the start is lost. Returns whether the start goes on without it, once that is committed.

        text: what has happened to it, as the beginning of a sentence.
        """
        if self._plan is None or node not in self.nodes or not self._runs:
            return False
        loss = _Loss(index_of(self._plan, node), text)
        if self._after_losses(self._proposed or self.assignment, (*self._losses, loss)) is None:
            return False
        self._losses.append(loss)
        self._ledger.do(ReleaseNode(node))
        self._propose()
        return True

    def is_back(self, node: NodeId) -> None:
        """A node that was lost lives: what may still run of this start there is to end."""
        if node in self.gone:
            self._ledger.do(ReleaseNode(node))

    def wish(self, node: NodeId, shard: int, configuration: bytes) -> None:
        """A node tells what a primary wishes, or asks what holds. Raises CheckpointError for what cannot be read."""
        if self._plan is None or node not in self.nodes or not self.can_lose or not self._runs:
            return
        if configuration and shard < len(self.assignment.shards):
            proposal = decode_configuration(configuration)
            if self.assignment.shards[shard].primary.node == node:
                self._wishes[shard] = (node, proposal)  # the newest of each shard; a primary says it again
                self._propose()
                return
        self._tell([node])

    def reassigned(self, generation: int, now: float) -> None:
        """The newest Reassign is committed, under this generation."""
        if self._proposed is None or self._plan is None or not self._runs:
            return
        before, self.assignment = self.assignment, committed(self.assignment, self._proposed, generation)
        self._proposed = None
        lost = [loss for loss in self._losses if loss.index in self.assignment.gone]
        self._losses = [loss for loss in self._losses if loss not in lost]
        self._changed(now)
        self._tell(self.nodes)
        for loss in lost:
            if self._ledger.record.state not in life.RUNNING:  # doing without another of them has ended the start
                return
            text = told(before, self.assignment, self._plan, self._spec, loss.index)
            self._ledger.publish("warning", text=f"{loss.text}: {text}")
            self._goes_on(loss.index, now)
        if self._ledger.record.state in life.RUNNING:
            self._propose()

    def not_reassigned(self, reason: str, now: float) -> None:
        """It never will be. reason: one clause."""
        if self._proposed is None or not self._runs:
            return
        self._proposed = None
        if self._losses:
            self._over(f"{self._losses[0].text}, and {reason}", now)
        elif self._wishes:
            self._wishes.clear()
            self._tell(self.nodes)

    # --- how

    @property
    def _runs(self) -> bool:
        return self._ledger.record.state in life.RUNNING

    def _after_losses(self, held: Assignment, losses: Sequence[_Loss]) -> Assignment | None:
        assert self._plan is not None
        after: Assignment | None = held
        for loss in losses:
            after = without(after, self._plan, self._spec, loss.index) if after is not None else None
        return after

    def _propose(self) -> None:
        """Everything that waits goes into one change, once none is under way."""
        if self._proposed is not None or not (self._losses or self._wishes):
            return
        after = self._after_losses(self.assignment, self._losses)
        assert after is not None  # `lose` has looked at it behind whatever was under way
        wishes, self._wishes = self._wishes, {}
        stale: list[NodeId] = []
        for shard, (node, proposal) in wishes.items():
            is_free = after.shards[shard] == self.assignment.shards[shard]
            wanted = wished(after, shard, proposal) if is_free else None
            if wanted is not None:
                after = wanted
            elif is_free:
                stale.append(node)  # else it is told with the commit
        self._tell([node for node in dict.fromkeys(stale) if node in self.nodes])
        if after != self.assignment:
            self._proposed = after
            self._ledger.do(Reassign(self.assignment, after))

    def _tell(self, nodes: Sequence[NodeId]) -> None:
        if nodes:
            self._ledger.do(TellAssigned(tuple(nodes), self.assignment))


def told(before: Assignment, after: Assignment, plan: Plan, spec: JobSpec, lost: int) -> str:
    """What becomes of the roles of a lost node, as clauses: of each shard that it held, and of its batches."""
    node = plan.nodes[lost].node
    clauses = []
    for shard, was in enumerate(before.shards):
        if was.primary.node == node:
            name = plan.nodes[primary_of(after, plan, shard)].name
            clauses.append(f"shard {shard} goes on at {name}")
        elif any(member.node == node for member in was.members) and len(after.shards[shard].in_sync) < 2:
            clauses.append(f"shard {shard} has no backup now")
    worker = plan.worker_of(lost)
    if worker >= 0 and is_leased(plan, spec) and worker not in gone_workers(before.gone, plan):
        clauses.append(f"worker {worker}'s batches go to the others")
        left = [plan.nodes[index].name for index in plan.replicas[worker].nodes if index not in after.gone]
        if left:
            clauses.append(f"{' and '.join(left)}, of the same worker, comput{'e' if len(left) > 1 else 'es'} no more")
    return "; ".join(clauses) or "the others go on"
