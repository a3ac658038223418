"""Who owes an answer, and has been silent for too long: a compute process that hangs ends no connection.

An executor speaks after each action at most, and an action of a huge layer may take long. So the limit follows what was
measured: twenty times the longest silence so far. As nodes wait for each other, one limit holds for all of them, and it is
the generous one until each has moved once, and whenever one of them does anything else than training.
"""

from __future__ import annotations

from typing import Final

from p2pnn.types import NodeId

LIMIT_S: Final = 600.0
"""For preparing, the first step, evaluations and checkpoints."""

TRAINING_LIMIT_S: Final = 30.0
FACTOR: Final = 20.0


class Watch:
    """Pure; `now` in seconds."""

    def __init__(self) -> None:
        self._owed: dict[NodeId, dict[int, bool]] = {}  # by number: whether it is training
        self._since: dict[NodeId, float] = {}
        self._moved: set[NodeId] = set()
        self._longest = 0.0

    def expect(self, node: NodeId, number: int, now: float, *, training: bool) -> None:
        """From now on the node owes an answer of this number."""
        owed = self._owed.setdefault(node, {})
        if not owed:
            self._since[node] = now
        owed[number] = training

    def heard(self, node: NodeId, now: float, answered: int | None = None) -> None:
        """The node has moved; answered: the number that it owes no more."""
        owed = self._owed.get(node)
        if not owed:
            return
        if next(iter(owed.values())):
            self._moved.add(node)
        self._longest = max(self._longest, now - self._since[node])
        self._since[node] = now
        if answered is not None:
            owed.pop(answered, None)

    def owes_no_more(self, node: NodeId, number: int) -> None:
        """The answer of this number is not wanted any more; the node may still be at it."""
        self._owed.get(node, {}).pop(number, None)

    def forget(self, node: NodeId, now: float) -> None:
        """The node takes part no more. The others may have waited for it: how long they were silent says nothing of them."""
        self._owed.pop(node, None)
        self._since = dict.fromkeys(self._owed, now)

    @property
    def due(self) -> float | None:
        """When somebody will have been silent for too long; None while nobody owes anything."""
        waiting = self._waiting()
        return min(self._since[node] for node in waiting) + self._limit(waiting) if waiting else None

    def silent(self, now: float) -> tuple[NodeId, float] | None:
        """The node that has been silent for longest, and for how long, once that is too long. The others may wait for it."""
        due = self.due
        if due is None or now < due:
            return None
        node = min(self._waiting(), key=lambda node: self._since[node])
        return node, now - self._since[node]

    def _waiting(self) -> list[NodeId]:
        return [node for node, owed in self._owed.items() if owed]

    def _limit(self, waiting: list[NodeId]) -> float:
        trains = all(next(iter(self._owed[node].values())) for node in waiting) and self._moved.issuperset(waiting)
        return max(TRAINING_LIMIT_S if trains else LIMIT_S, FACTOR * self._longest)
