"""Who of the cluster is here and who is away, since when and why: what a person reads of the charter's members.

The charter says who is a member, gossip who lives; a member stays one while it is away, however long. Here the two are
brought together, with what the coordinator concluded (`outcomes.Gone`, `Alarm`) and with nodes that came here and belong to
another cluster. It decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from p2pnn.cluster.charter import MEMBERS_MAX
from p2pnn.types import NodeId

NEVER_SEEN = "it was not heard of since this node was started"


@dataclass(frozen=True, slots=True)
class Absence:
    """since: on this node's clock. reason: a clause."""

    since: float
    reason: str


@dataclass(frozen=True, slots=True)
class Lost:
    """More than half of all members turned suspect at once, `since` then; `count` of `members`."""

    count: int
    members: int
    since: float


@dataclass(frozen=True, slots=True)
class Foreign:
    """A living node of another cluster. theirs, ours: the ids of both."""

    name: str
    theirs: str
    ours: str

    def __str__(self) -> str:
        return (
            f"node {self.name} belongs to cluster {self.theirs}, this node to cluster {self.ours}, and two clusters never become"
            " one by themselves: stop the one that is to give its cluster up, move the file charter out of its state folder,"
            " and start it with --join"
        )


class Presence:
    """As one node sees it. alive: names by id, this node's among them. alarm: while nothing is reassigned because of it.

    gone: members that the coordinator, while it was this node, found dead beyond doubt, and when.
    foreign: the living nodes that belong to another cluster, by id.
    """

    def __init__(self, node: NodeId, name: str, now: float) -> None:
        self.alive: dict[NodeId, str] = {node: name}
        self.gone: dict[NodeId, float] = {}
        self.alarm: Lost | None = None
        self.foreign: dict[NodeId, Foreign] = {}
        self._node = node
        self._started = now
        self._away: dict[NodeId, Absence] = {}
        self._clusters: dict[NodeId, str | None] = {}

    def arrived(self, node: NodeId, name: str, cluster: str | None) -> None:
        """It joined, came back, or refuted what was said of it. cluster: whose charter it holds; None: it has not said so yet."""
        self.alive[node] = name
        self._away.pop(node, None)
        self.gone.pop(node, None)
        self._clusters[node] = cluster

    def said(self, node: NodeId, cluster: str) -> None:
        """It has told whose charter it holds."""
        if node in self.alive and node != self._node:
            self._clusters[node] = cluster

    def departed(self, node: NodeId, reason: str, now: float) -> None:
        """It is a suspect, is dead, or has left; one absence, however it is called on its way."""
        self.alive.pop(node, None)
        self.foreign.pop(node, None)
        self._clusters.pop(node, None)
        known = self._away.get(node)
        if known is not None or len(self._away) < 2 * MEMBERS_MAX:
            self._away[node] = Absence(known.since if known else now, reason)

    def absence(self, node: NodeId) -> Absence:
        """Of a member that is not alive."""
        return self._away.get(node) or Absence(self._started, NEVER_SEEN)

    def may_be_admitted(self, cluster: str) -> dict[NodeId, str]:
        """The living that hold this cluster's charter or none at all."""
        return {node: name for node, name in self.alive.items() if self._clusters.get(node, "") in ("", cluster)}

    def note_foreign(self, cluster: str) -> list[NodeId]:
        """Look who belongs to another cluster than this one; returns those that are new."""
        before = self.foreign
        self.foreign = {
            node: Foreign(name, theirs, cluster)
            for node, name in self.alive.items()
            if cluster and (theirs := self._clusters.get(node)) and theirs != cluster
        }
        return [node for node in self.foreign if node not in before]
