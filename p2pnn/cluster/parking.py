"""When a node is parked: nothing can be decided here, because no coordinator is known that could.

In a partition the side with the majority of the voters elects a coordinator and goes on. The other side keeps what it wholly
holds; whatever needs a decision waits there, and the reason is made here, for people and for whoever has to wait.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from p2pnn.cluster.charter import Charter
from p2pnn.types import NodeId, lasting

RECOVER = "p2pnn cluster recover"


@dataclass(frozen=True, slots=True)
class Parked:
    """since: on this node's clock. seen, missing: the voters that this node sees or does not see, by name. needed: the majority.

    All are empty or 0 in a node that no cluster has admitted yet.
    """

    since: float
    seen: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    needed: int = 0

    def reason(self, now: float) -> str:
        """One sentence: what is so, for how long, and what to do."""
        lasts = lasting(now - self.since)
        if not self.needed:
            return (
                f"no cluster has admitted this node for {lasts}: a node of one must be reachable;"
                " p2pnn peers says which are, and why others are not"
            )
        count = len(self.seen) + len(self.missing)
        voters = "voter" if count == 1 else "voters"
        seen = f"this node sees {len(self.seen)} of {count} {voters}" + (f" ({_names(self.seen)})" if self.seen else "")
        if len(self.seen) >= self.needed:
            return (
                f"there is no coordinator for {lasts}: an election is under way; {seen}, and {self.needed} must agree"
            )
        return (
            f"{seen}, and {self.needed} must agree: no coordinator can be elected here, for {lasts}; start"
            f" {_names(self.missing)} again, or mend the network to there; if too many of them are lost for good: {RECOVER}"
        )


def look(
    charter: Charter | None,
    leader: NodeId | None,
    node: NodeId,
    alive: Collection[NodeId],
    before: Parked | None,
    now: float,
) -> Parked | None:
    """How it is now; None where a coordinator is known that lives. before: the last answer, whose time goes on.

    That the coordinator has a majority is its own business: without one it leads for two more seconds (CheckQuorum).
    """
    if leader is not None and (leader == node or leader in alive):
        return None
    since = now if before is None else before.since
    if charter is None:
        return Parked(since)
    names = names_of(charter)
    seen = sorted(names[voter] for voter in charter.voters if voter in alive)
    missing = sorted(names[voter] for voter in charter.voters if voter not in alive)
    return Parked(since, tuple(seen), tuple(missing), charter.majority)


def names_of(charter: Charter) -> Mapping[str, str]:
    """By id; of two members of one name with the id's beginning, so that a person can tell them apart."""
    called = [member.name for member in charter.members]
    return {
        member.node: member.name if called.count(member.name) == 1 else f"{member.name} ({member.node[:8]})"
        for member in charter.members
    }


def _names(names: tuple[str, ...]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
