"""The rules of replication switched off, one at a time: each must be caught by the ledger, or the ledger proves nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from p2pnn.job.assignment import Assignment, without
from p2pnn.job.failover import Failover
from p2pnn.replication.configuration import Member
from p2pnn.replication.holding import Role
from p2pnn.replication.log import Entry, Sessions
from p2pnn.replication.peers import Peer
from p2pnn.replication.replica import Replica
from p2pnn.types import NodeId
from p2pnn.wire.messages import Append, Appended
from tests.simulator.shard_manager import ManagerHost


class ObeysDeposedPrimaries(Replica):
    """Without the fence: a message of a lower generation is as good as one of this."""

    def is_current(self, source: NodeId, generation: int, now: float) -> bool:
        if 0 < generation < self.generation:
            return True
        return super().is_current(source, generation, now)

    def obeys(self, source: NodeId, generation: int, now: float) -> bool:
        return self.is_current(source, generation, now) and self.role in (Role.BACKUP, Role.LEARNER)


class AcknowledgesAlone(Replica):
    """What the primary holds is acknowledged."""

    def may_commit(self, number: int) -> bool:
        return True


class RemovesByItself(Replica):
    """A primary that does not reach a backup goes on without it, before the charter has said so."""

    def must_hold(self) -> list[Peer]:
        return [peer for peer in super().must_hold() if self._is_in_touch(peer, self._beat_due)]


class PromotesWithoutWaiting(Replica):
    """A learner counts as in sync only from the commit of its promotion on, though it is in sync by then for others."""

    def must_hold(self) -> list[Peer]:
        assert self.configuration is not None
        in_sync = {member.node for member in self.configuration.in_sync}
        return [peer for peer in super().must_hold() if peer.member.node in in_sync]


class PromotesAtOnce(Replica):
    """Whoever has said something is in sync, and gets what it lacks then."""

    def is_ready(self, peer: Peer) -> bool:
        return True

    def keeps_up(self, peer: Peer, now: float) -> bool:
        return peer.held is not None


class PromotesBeforeItServes(Replica):
    """A new primary promotes a learner before all others hold what it took over, which the last one may still acknowledge."""

    def is_ready(self, peer: Peer) -> bool:
        return peer.holds(self.committed)


class AcknowledgesHalfUpdates(Replica):
    """An entry counts as held without its bytes."""

    def is_held(self, entry: Entry) -> bool:
        return True


class AppliesAtOnce(Replica):
    """A backup applies what it holds, committed or not."""

    def may_apply(self, committed: int) -> int:
        return self._held


class BelievesOthersInStep(Replica):
    """A new primary takes the others' logs to be its own, instead of having them hold it."""

    def first_held(self, message: Appended) -> int:
        return self._base


class KeepsOlderEntries(Replica):
    """What another generation ordered stays, though the primary has something else there."""

    def is_same(self, entry: Entry, message: Append) -> bool:
        return True

    def _align(self, base: int) -> None:
        """Nor is dropped what lies behind the primary's log."""


class CountsRepetitions(Replica):
    """An update that comes again counts again, unless it is still in the log."""

    def is_duplicate(self, worker: int, sequence: int) -> bool:
        return sequence <= self.log.latest(worker)

    def is_next(self, worker: int, sequence: int) -> bool:
        return not self.is_duplicate(worker, sequence)


class _Forgetful(Sessions):
    def encode(self) -> bytes:
        return Sessions().encode()


class SendsStatesWithoutSessions(Replica):
    """Who has pushed what does not travel with the state."""

    def _tend_transfers(self, now: float) -> None:
        kept = self.sessions
        self.sessions = _Forgetful()
        try:
            super()._tend_transfers(now)
        finally:
            self.sessions = kept


class SurvivesRestarts(Replica):
    """A process that was started again counts as the one that was in sync."""

    def is_me(self, member: Member) -> bool:
        return member.node == self.me.node

    @staticmethod
    def is_same_process(peer: Peer, incarnation: int) -> bool:
        return True


class _GivesToAnybody(Failover):
    def _after_losses(self, held: Assignment, losses: Sequence[Any]) -> Assignment | None:
        assert self._plan is not None
        for loss in losses:
            node, shard = self._plan.nodes[loss.index].node, held.shards[0]
            living = [member for member in shard.members if member.node != node]
            if shard.primary.node != node:
                after = without(held, self._plan, self._spec, loss.index)
                if after is None:
                    return None
                held = after
            elif living:
                last = shard.replaced(living[-1:] + living[:-1], ())
                held = Assignment((last, *held.shards[1:]), (*held.gone, loss.index))
            else:
                return None
        return held


class AnybodyLeads(ManagerHost):
    """The coordinator gives a lost primary's place to any member, a learner too."""

    failover_of = _GivesToAnybody


class _IsLate(Failover):
    """Every proposal passes for one that was made from what is committed now."""

    def _propose(self) -> None:
        if self._proposed is None:
            self._wishes = {
                shard: (node, msgspec.structs.replace(wish, generation=self.assignment.shards[shard].generation))
                for shard, (node, wish) in self._wishes.items()
            }
        super()._propose()


class TakesStaleProposals(ManagerHost):
    """A proposal counts though the configuration that it was made from has been replaced."""

    failover_of = _IsLate


class Ablation(NamedTuple):
    """What differs: the replica, or the manager; processes: whether a restarted process is another one to all."""

    replica: type[Replica] = Replica
    manager: type[ManagerHost] = ManagerHost
    names_processes: bool = True


SHARD_RULES: dict[str, Ablation] = {
    "generations": Ablation(ObeysDeposedPrimaries),
    "all in sync hold it": Ablation(AcknowledgesAlone),
    "removal by the charter": Ablation(RemovesByItself),
    "the promised are waited for": Ablation(PromotesWithoutWaiting),
    "promotion when synced": Ablation(PromotesAtOnce),
    "promotion when serving": Ablation(PromotesBeforeItServes),
    "whole updates": Ablation(AcknowledgesHalfUpdates),
    "apply what is committed": Ablation(AppliesAtOnce),
    "re-sync first": Ablation(BelievesOthersInStep),
    "truncation": Ablation(KeepsOlderEntries),
    "exactly once": Ablation(CountsRepetitions),
    "sessions in the state": Ablation(SendsStatesWithoutSessions),
    "incarnations": Ablation(SurvivesRestarts, names_processes=False),
    "primaries from the in-sync set": Ablation(manager=AnybodyLeads),
    "made from what is committed": Ablation(manager=TakesStaleProposals),
}
"""Rule → who does not keep it."""
