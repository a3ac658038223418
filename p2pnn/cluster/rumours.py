"""News that is passed on: each for a limited number of times, the least told first (SWIM, section 4.1).

With a limit of a few times log(n), a rumour reaches everybody with high probability, and then costs nothing. Of one member
only the newest is told.
"""

from __future__ import annotations

from p2pnn.types import NodeId
from p2pnn.wire.messages import Fact


class Rumours:
    """The facts to pass on."""

    def __init__(self) -> None:
        self._told: dict[NodeId, tuple[int, Fact]] = {}

    def __len__(self) -> int:
        return len(self._told)

    def add(self, fact: Fact) -> None:
        """Tell this from now on, instead of what was told of the same member."""
        self._told[NodeId(fact.node)] = (0, fact)

    def drop(self, node: NodeId) -> None:
        self._told.pop(node, None)

    def take(
        self, count: int, times_max: int, first: NodeId | None = None, but: NodeId | None = None
    ) -> tuple[Fact, ...]:
        """Up to `count` facts for one receiver, `but` not the one about it, and that about `first` before all others.

        Each leaves after `times_max` times; one that its receiver has no use for has been told, too.
        """
        if not self._told:
            return ()
        nodes = sorted(self._told, key=lambda node: (node != first, self._told[node][0]))[:count]
        taken = tuple(self._told[node][1] for node in nodes if node != but)
        for node in nodes:
            times, fact = self._told[node]
            if times + 1 >= times_max:
                del self._told[node]
            else:
                self._told[node] = (times + 1, fact)
        return taken
