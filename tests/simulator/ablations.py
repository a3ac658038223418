"""The charter's rules switched off, one at a time: each must be caught by the ledger, or the ledger proves nothing."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from p2pnn.cluster import voters
from p2pnn.cluster.charter import Charter, Version
from p2pnn.cluster.consensus import Consensus
from p2pnn.cluster.election import Role
from p2pnn.types import NodeId


class VotesForOlderCharters(Consensus):
    """Rule 1 without its second half."""

    def may_vote(self, candidate: NodeId, term: int, version: Version) -> bool:
        return self.is_fresh_vote(candidate, term)

    def why_no_prevote(self, term: int, version: Version, now: float) -> str:
        return super().why_no_prevote(term, self.version, now)

    def _send_charter(self, target: NodeId) -> None:
        """Only a leader does: a voter that helps a candidate to the newer charter hides what its vote would do."""
        if self.role is Role.LEADER:
            super()._send_charter(target)


class VotesTwice(Consensus):
    """Rule 1 without its first half."""

    def is_fresh_vote(self, candidate: NodeId, term: int) -> bool:
        return term >= self.term and self.role is Role.FOLLOWER


class DoesNotRewrite(Consensus):
    """Without rule 2."""

    def won(self, charter: Charter) -> Charter:
        return charter


class CommitsAlone(Consensus):
    """Without rule 3: the leader's own disk is enough."""

    def is_committed(self, charter: Charter, holders: set[NodeId]) -> bool:
        return self._node in holders


class ProposesAnyTime(Consensus):
    """Without rule 4."""

    def may_propose(self) -> bool:
        return self._leadership is not None


class ChangesManyVoters(Consensus):
    """Without rule 5: all voters at once, whether they hold the charter or not."""

    def may_change_voters(self, charter: Charter, after: Sequence[NodeId], ready: Collection[NodeId]) -> bool:
        return True

    def _next_voters(
        self, charter: Charter, ready: Collection[NodeId], gone: Collection[NodeId]
    ) -> tuple[NodeId, ...] | None:
        count = voters.wanted(len(charter.members))
        others = [node for node in charter.nodes() if node != self._node]
        others.sort(key=lambda node: (self._view.is_lost(node), self._view.started(node), node))
        after = (self._node, *others[: count - 1])
        return after if set(after) != set(charter.voters) else None


class AcceptsOlderCharters(Consensus):
    """Without rule 6's first half."""

    def accepts(self, version: Version) -> bool:
        return version != self.version


class ActsAtOnce(Consensus):
    """Without rule 6's second half: what is on the disk is done, committed or not."""

    def may_act(self, charter: Charter) -> bool:
        return True


def without_prevote(core: type[Consensus]) -> type[Consensus]:
    """Without rule 8: everybody campaigns at every timeout. Only liveness may suffer."""

    class WithoutPreVote(core):  # type: ignore[misc, valid-type]
        def why_no_prevote(self, term: int, version: Version, now: float) -> str:
            return ""

        def is_vetoed(self, now: float) -> bool:
            return False

    return WithoutPreVote


SAFETY: dict[str, type[Consensus]] = {
    "rule 1, older charters": VotesForOlderCharters,
    "rule 1, one vote": VotesTwice,
    "rule 3": CommitsAlone,
    "rule 4": ProposesAnyTime,
    "rule 5": ChangesManyVoters,
    "rule 6, higher versions": AcceptsOlderCharters,
    "rule 6, acts on what is committed": ActsAtOnce,
}
"""Rule → the core without it. Without rule 2 nothing commits, and the fsync of rule 1 is the disk's business: both apart."""
