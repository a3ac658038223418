"""How long a suspect has to refute: the more members suspect it independently, the shorter (Lifeguard, section IV-B).

While only one member says so, the fault may be its own, so the suspect has the longest time. Each further accuser brings
the end nearer, with the logarithm of their number, until `wanted` of them make it the shortest:

    timeout = longest − (longest − shortest) · log(confirmations + 1) / log(wanted + 1)

Different here from memberlist: where nobody else could confirm (N = 2), the suspect has the longest time, not the shortest.
"""

from __future__ import annotations

import math

from p2pnn.types import NodeId


class Suspicion:
    """One member's suspicion, begun by `accuser` at `now`. wanted: confirmations for the shortest timeout.

    accusers: who suspects it, in the order in which this node learnt that.
    """

    __slots__ = ("_begun", "_longest_s", "_shortest_s", "_wanted", "accusers")

    def __init__(self, accuser: NodeId, now: float, shortest_s: float, longest_s: float, wanted: int) -> None:
        self.accusers = [accuser]
        self._begun = now
        self._shortest_s = shortest_s
        self._longest_s = longest_s
        self._wanted = wanted

    def confirm(self, accuser: NodeId) -> bool:
        """Somebody suspects it too; whether that is news and brings the end nearer."""
        if accuser in self.accusers or len(self.accusers) > self._wanted:
            return False
        self.accusers.append(accuser)
        return True

    @property
    def due(self) -> float:
        """When it counts as dead, unless it refutes."""
        if self._wanted < 1:
            return self._begun + self._longest_s
        done = math.log(len(self.accusers)) / math.log(self._wanted + 1)
        return self._begun + max(self._shortest_s, self._longest_s - (self._longest_s - self._shortest_s) * done)

    def postpone(self, seconds: float) -> None:
        """This node stood still for so long; a refutation may lie unread."""
        self._begun += seconds
