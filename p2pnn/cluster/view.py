"""How a node sees the others: what gossip says of their lives, and what may be concluded from it.

Gossip gives hints, never decisions. Its view serves three ends, none of which safety rests on:

- *veto*: nobody campaigns against a leader that gossip calls alive (for a while, because gossip cannot see a leader that has
  stopped to lead);
- *order*: when a leader is lost, the voter with the newest charter, then the one whose loop is least late, then the one that
  runs longest, campaigns first;
- *reassignment*: a member is gone when it was seen dead, and nothing in the view has changed, for `stability_s`; or at once
  when its death is proved (link reset, redials refused). If more than half of all members turn suspect within `window_s`, nobody
  is gone: the fault may be this node's own, so it raises an alarm instead, until enough of them are back.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from p2pnn.cluster.charter import MEMBERS_MAX, Version
from p2pnn.types import NodeId


class Standing(StrEnum):
    """What gossip says of a member. PROVED: dead, and not only by silence. UNKNOWN: it has said nothing yet."""

    UNKNOWN = "unknown"
    ALIVE = "alive"
    SUSPECT = "suspect"
    DEAD = "dead"
    PROVED = "proved dead"


SEEN_MAX = 2 * MEMBERS_MAX
"""Nodes that a view remembers: all members, and as many that want to be."""

SAME_START_S = 5.0
"""Lives that differ by less are equal: of nodes that were started together each would else find itself the older, by the
time that gossip took."""

SAME_LAG_S = 0.1
"""Loops whose lateness differs by less are equally fit to lead: a heartbeat is twice as long."""

_LOST = (Standing.SUSPECT, Standing.DEAD, Standing.PROVED)


@dataclass(slots=True)
class _Seen:
    standing: Standing = Standing.UNKNOWN
    since: float = 0.0
    started: float | None = None
    lag_s: float = 0.0
    version: Version | None = None


class View:
    """stability_s: how long a view must stand before a death by silence counts; more spares moves, less mends sooner.

    window_s: losses within so much time of each other count as one event.
    """

    def __init__(self, node: NodeId, now: float, stability_s: float = 2.0, window_s: float = 10.0) -> None:
        assert 0 < stability_s <= window_s
        self._node = node
        self._stability_s = stability_s
        self._window_s = window_s
        self._seen: dict[NodeId, _Seen] = {node: _Seen(Standing.ALIVE, now, now)}
        self._lost: set[NodeId] = set()
        self._changed = now
        self.alarmed = False

    def describe(self, node: NodeId, now: float, uptime_s: float, lag_s: float, version: Version) -> None:
        """Note what a node says of itself."""
        seen = self._note(node)
        if seen is not None:
            seen.started, seen.lag_s, seen.version = now - uptime_s, lag_s, version

    def observe(self, node: NodeId, standing: Standing, now: float) -> bool:
        """Note what gossip says of its life; whether that is another than before."""
        seen = self._note(node)
        if seen is None or seen.standing is standing or node == self._node:
            return False
        was_lost = seen.standing in _LOST
        if not (was_lost and standing in _LOST):
            seen.since = now  # suspect, then dead, then proved is one loss
        seen.standing = standing
        if standing in _LOST:
            self._lost.add(node)
        else:
            self._lost.discard(node)
        self._changed = now
        return True

    def standing(self, node: NodeId) -> Standing:
        seen = self._seen.get(node)
        return Standing.UNKNOWN if seen is None else seen.standing

    def is_lost(self, node: NodeId) -> bool:
        """Whether gossip doubts this node."""
        return node in self._lost

    def rank(self, node: NodeId, version: Version, others: Iterable[NodeId]) -> int:
        """How many of the `others`, those that are lost left out, should campaign before `node`, which holds `version`."""
        return sum(
            other != node and not self.is_lost(other) and self._comes_before(other, node, version) for other in others
        )

    def started(self, node: NodeId) -> float:
        """When the node was started, by this node's clock; infinity where nobody has told."""
        seen = self._seen.get(node)
        return float("inf") if seen is None or seen.started is None else seen.started

    def check_alarm(self, members: Sequence[NodeId]) -> bool | None:
        """Raise or end the alarm: True where it begins, False where it ends, None where nothing changes."""
        if not self._lost and not self.alarmed:
            return None
        lost = sorted(self._seen[node].since for node in members if node in self._lost)
        most = len(members) // 2 + 1  # more than half
        if self.alarmed and len(lost) < most:
            self.alarmed = False
            return False
        if not self.alarmed and any(
            last - first <= self._window_s for first, last in zip(lost, lost[most - 1 :], strict=False)
        ):
            self.alarmed = True
            return True
        return None

    def lost(self, members: Sequence[NodeId]) -> int:
        """How many of the members gossip doubts."""
        return sum(node in self._lost for node in members)

    def gone(self, members: Sequence[NodeId], now: float) -> set[NodeId]:
        """The members whose work may be given to others; none while the alarm lasts."""
        if self.alarmed or not self._lost:
            return set()
        is_stable = now - self._changed >= self._stability_s
        return {
            node
            for node in members
            if (standing := self.standing(node)) is Standing.PROVED or (standing is Standing.DEAD and is_stable)
        }

    def _note(self, node: NodeId) -> _Seen | None:
        """What is remembered of a node; None where no more are."""
        seen = self._seen.get(node)
        if seen is None and len(self._seen) < SEEN_MAX:
            seen = self._seen[node] = _Seen()
        return seen

    def _comes_before(self, other: NodeId, node: NodeId, version: Version) -> bool:
        """The newer charter, then the loop that is less late, then the clearly longer life, as far as they are known; else the
        smaller id."""
        seen = self._seen.get(other, _Seen())
        if seen.version is not None and seen.version > version:
            return True  # a lower one says nothing: gossip is late
        mine_s = self._seen.get(node, _Seen()).lag_s
        if abs(seen.lag_s - mine_s) >= SAME_LAG_S:
            return seen.lag_s < mine_s
        mine, theirs = self.started(node), self.started(other)
        if float("inf") in (mine, theirs) or abs(mine - theirs) < SAME_START_S:
            return other < node
        return theirs < mine
