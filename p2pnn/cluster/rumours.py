"""News that is passed on: each for a limited number of times, the least told first (SWIM, section 4.1).

With a limit of a few times log(n), a rumour reaches everybody with high probability, and then costs nothing. Of one member
only the newest is told.
"""

from __future__ import annotations

from itertools import islice

from p2pnn.types import NodeId
from p2pnn.wire.messages import Fact


class Rumours:
    """The facts to pass on. Kept by how often they were told, so that taking some costs the same however many there are."""

    def __init__(self) -> None:
        self._times: dict[NodeId, int] = {}
        self._by_times: list[dict[NodeId, Fact]] = [{}]

    def __len__(self) -> int:
        return len(self._times)

    def add(self, fact: Fact) -> None:
        """Tell this from now on, instead of what was told of the same member."""
        node = NodeId(fact.node)
        self.drop(node)
        self._put(node, 0, fact)

    def drop(self, node: NodeId) -> None:
        times = self._times.pop(node, None)
        if times is not None:
            del self._by_times[times][node]

    def take(
        self, count: int, times_max: int, first: NodeId | None = None, but: NodeId | None = None
    ) -> tuple[Fact, ...]:
        """Up to `count` facts for one receiver, `but` not the one about it, and that about `first` before all others.

        Each leaves after `times_max` times; one that its receiver has no use for has been told, too.
        """
        if not self._times:
            return ()
        nodes = self._least_told(count, first)
        taken = tuple(self._by_times[self._times[node]][node] for node in nodes if node != but)
        for node in nodes:
            times = self._times.pop(node)
            fact = self._by_times[times].pop(node)
            if times + 1 < times_max:
                self._put(node, times + 1, fact)
        return taken

    def _put(self, node: NodeId, times: int, fact: Fact) -> None:
        while len(self._by_times) <= times:
            self._by_times.append({})
        self._times[node] = times
        self._by_times[times][node] = fact

    def _least_told(self, count: int, first: NodeId | None) -> list[NodeId]:
        nodes = [first] if first in self._times and first is not None else []
        others = (node for told in self._by_times for node in told if node != first)
        return (nodes + list(islice(others, count)))[:count]
