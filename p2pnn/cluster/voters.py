"""Who votes: how many voters a cluster wants, and the next single change towards them.

One voter for one or two members (with two voters, either one's loss would stop both), three for three or four, five
from five on; all others are learners, so hundreds of members cost no quorum any time. A lost voter is replaced when a
learner is there to take its place: first the lost one is taken out, then the learner comes in. In between a quorum
needs as many living voters as before.

A function looks at the charter and returns the next step; the leader takes it when the last one is committed. Voters change
one at a time because only then any majority before and any majority after have a node in common.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from p2pnn.cluster.charter import Charter
from p2pnn.types import NodeId


def wanted(members: int) -> int:
    """How many voters a cluster of so many members should have."""
    return 1 if members <= 2 else 3 if members <= 4 else 5


def is_single_change(before: Collection[NodeId | str], after: Collection[NodeId | str]) -> bool:
    """Whether at most one voter comes or goes, so that all majorities of both intersect."""
    return len(set(before) ^ set(after)) <= 1 and len(after) >= 1


def next_voters(
    charter: Charter,
    leader: NodeId,
    ready: Collection[NodeId],
    gone: Collection[NodeId],
    started: Callable[[NodeId], float],
    count: int,
) -> tuple[NodeId, ...] | None:
    """The voters after the next change; None where all is as it should be, or nothing can be done now.

    ready: members that hold this very charter on their disk and are alive, in this term. gone: confirmed dead. started:
    when a node was started; of two candidates the one that runs longer is taken. count: how many are wanted.
    """
    voters = [NodeId(voter) for voter in charter.voters]
    lost = [voter for voter in voters if voter in gone and voter != leader]
    spares = _by_age([node for node in charter.nodes() if node in ready and node not in charter.voters], started)
    if len(voters) > count:
        leaving = lost or _by_age([voter for voter in voters if voter != leader], started)[::-1]
        return _without(voters, leaving[0]) if leaving else None
    if lost and spares and len(voters) == count:
        return _without(voters, lost[0])
    if len(voters) < count and spares:
        return (*voters, spares[0])
    return None


def _by_age(nodes: Sequence[NodeId], started: Callable[[NodeId], float]) -> list[NodeId]:
    return sorted(nodes, key=lambda node: (started(node), node))


def _without(voters: Sequence[NodeId], leaving: NodeId) -> tuple[NodeId, ...]:
    return tuple(voter for voter in voters if voter != leaving)
