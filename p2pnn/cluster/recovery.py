"""When the majority of the voters is lost for good: a new cluster from one node's charter, because a person says so.

No program can tell a lost majority from one that is only out of reach, and two majorities would decide twice. So this is never
automatic, and what comes of it is another cluster: with an id of its own, which the old one's messages do not match. This node
is its one member and voter; the others give the old cluster up and join. The work that the charter carries is kept, and all
versions go on from where they were, so no generation goes back.

What was committed by the old majority and never reached this node is lost. That is the price, and a person is told before.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from p2pnn.cluster.charter import NOTHING, REMOVED_MAX, Charter, Version
from p2pnn.cluster.durable import Durable
from p2pnn.cluster.parking import Parked, names_of
from p2pnn.types import NodeId, lasting
from p2pnn.wire.charter import TERM_MAX

RECOVER_AFTER_S = 30.0
"""How long a node must have been parked: after a start, or a short cut of the network, voters are only just being found."""


def refusal(
    charter: Charter | None,
    node: NodeId,
    cluster: str,
    parked: Parked | None,
    known: Mapping[NodeId, tuple[str, Version]],
    now: float,
    after_s: float = RECOVER_AFTER_S,
) -> str:
    """Why `cluster` is not to be recovered now on this node, which holds this charter, as a sentence; empty where it may be.

    known: the cluster and the version of the newest charter that each living member says that it knows.
    """
    if charter is None:
        return "this node holds no charter, so there is nothing to recover from; start it without --join, and it founds a cluster"
    if charter.cluster != cluster:
        return f"this node holds the charter of cluster {charter.cluster}, and {cluster} was asked for"
    if node not in charter.nodes():
        return "this node is no member of its charter any more, so it cannot go on with it; let it join another cluster"
    if parked is None:
        return "the cluster has a coordinator, so nothing is lost; p2pnn cluster show tells which node it is"
    if len(parked.seen) >= parked.needed > 0:
        return (
            f"this node sees {len(parked.seen)} of {len(parked.seen) + len(parked.missing)} voters, which is a majority:"
            " they elect a coordinator by themselves"
        )
    if now - parked.since < after_s:
        return (
            f"this node is without a coordinator for only {lasting(now - parked.since)}: wait until it is"
            f" {lasting(after_s)}, because voters may still be on their way"
        )
    ours = ((version, other) for other, (theirs, version) in known.items() if theirs == cluster)
    version, other = max(ours, default=(NOTHING, node))
    if version > charter.version:
        return (
            f"node {names_of(charter).get(other, other[:8])} knows charter {version}, newer than {charter.version} here:"
            " recover on that node, so that less is lost"
        )
    return ""


def recovered(durable: Durable, node: NodeId, cluster: str) -> Durable:
    """The first state of the new cluster: this node alone, the old work, versions that are higher than any before.

    The other members count as removed, so that a secured node tells them to join again.

    cluster: a new id. Raises ValueError where this node is no member of its charter.
    """
    charter = durable.charter
    me = next((member for member in charter.members if member.node == node), None) if charter is not None else None
    if charter is None or me is None:
        raise ValueError("this node is no member of its charter")
    term = min(max(durable.term, charter.term) + 1, TERM_MAX)
    others = tuple(member.node for member in charter.members if member.node != node)
    new = msgspec.structs.replace(
        charter,
        cluster=cluster,
        term=term,
        revision=charter.revision + 1,
        voters=(me.node,),
        members=(me,),
        removed=(*charter.removed, *others)[-REMOVED_MAX:],  # so that they are told, and may join again
    )
    return Durable(term=term, vote=None, charter=new)
