"""What a leader knows of the others in its term: who answered when, and what each holds on its disk.

It begins empty with each term, so nothing acknowledged in another term can count in this one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from p2pnn.cluster.charter import NOTHING, Charter, Version
from p2pnn.types import NodeId


@dataclass(slots=True)
class _Follower:
    heard: float
    held: Version = NOTHING
    sent: Version = NOTHING
    sent_at: float = field(default=float("-inf"))


class Leadership:
    """One term's. since: when it began. resend_s: how long an unacknowledged charter is given.

    handover_until: while it is handing over, until when it tries. announced: members that were told to be gone.
    """

    def __init__(self, node: NodeId, since: float, resend_s: float) -> None:
        self.since = since
        self.handover_until: float | None = None
        self.announced: set[NodeId] = set()
        self._node = node
        self._resend_s = resend_s
        self._followers: dict[NodeId, _Follower] = {}
        self._turn = 0

    def heard(self, node: NodeId, now: float) -> None:
        """Something came from this node."""
        self._follower(node).heard = now

    def holds(self, node: NodeId, version: Version) -> None:
        """The node has this charter on its disk, and said so in this term. What it said before stays true."""
        follower = self._follower(node)
        follower.held = max(follower.held, version)

    def holders(self, charter: Charter) -> set[NodeId]:
        """Members that acknowledged exactly this charter in this term."""
        version = charter.version
        return {node for node in charter.nodes() if self._held(node) == version}

    def in_touch(self, nodes: Iterable[NodeId | str], since: float) -> set[NodeId]:
        """Those of the nodes that were heard since a time, this one among them."""
        return {NodeId(node) for node in nodes if node == self._node or self._follower(NodeId(node)).heard >= since}

    def should_send(self, node: NodeId, version: Version, now: float) -> bool:
        """Whether to send the charter of this version now: not held, and not sent a moment ago. Notes that it is sent."""
        follower = self._follower(node)
        if follower.held >= version or (follower.sent == version and now - follower.sent_at < self._resend_s):
            return False
        follower.sent, follower.sent_at = version, now
        return True

    def returned(self, node: NodeId) -> None:
        """It is back: what was sent to it while it was away is lost."""
        self._follower(node).sent = NOTHING

    def next_learners(self, learners: list[NodeId], count: int) -> list[NodeId]:
        """So many of the learners, in turns."""
        if len(learners) <= count:
            return learners
        self._turn %= len(learners)
        chosen = (learners + learners)[self._turn : self._turn + count]
        self._turn += count
        return chosen

    def _held(self, node: NodeId) -> Version:
        follower = self._followers.get(node)
        return NOTHING if follower is None else follower.held

    def _follower(self, node: NodeId) -> _Follower:
        follower = self._followers.get(node)
        if follower is None:
            follower = self._followers[node] = _Follower(self.since)
        return follower
