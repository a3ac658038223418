"""Taking a job's nodes: one after the other, in the order of their ids, so that no two jobs ever wait for each other.

Two jobs that want the same nodes meet at the first of them; the one that comes second waits there and holds nothing that
the first still needs. When the plan changes, places behind the first missing node are given back and asked for again later:
holding them while waiting for a smaller id would break the order.
"""

from __future__ import annotations

from collections.abc import Iterable

from p2pnn.job.actions import ReleaseNode, ReserveNode
from p2pnn.types import NodeId


class Reservation:
    """Pure. Every verb returns what to do."""

    def __init__(self) -> None:
        self._nodes: list[NodeId] = []
        self._granted: set[NodeId] = set()
        self._asked: NodeId | None = None

    @property
    def complete(self) -> bool:
        """All wanted nodes are ours."""
        return bool(self._nodes) and self._granted.issuperset(self._nodes)

    def want(self, nodes: Iterable[NodeId]) -> list[ReserveNode | ReleaseNode]:
        """Take these nodes, and give back what does not lie before the first that is missing."""
        self._nodes = sorted(nodes)
        first = next((n for n in self._nodes if n not in self._granted), None)
        kept = {n for n in self._granted if n in self._nodes and (first is None or n < first)}
        dropped = sorted(self._granted - kept)
        self._granted = kept
        if self._asked is not None and self._asked != first:
            dropped.append(self._asked)
            self._asked = None
        return [*map(ReleaseNode, dropped), *self._ask()]

    def assume(self, nodes: Iterable[NodeId]) -> None:
        """All of these are ours already: another coordinator took them for this start."""
        self._nodes = sorted(nodes)
        self._granted = set(self._nodes)

    def granted(self, node: NodeId) -> list[ReserveNode | ReleaseNode]:
        """A place is ours now; one that is not wanted any more is given back."""
        if node in self._granted:
            return []
        if node != self._asked:
            return [ReleaseNode(node)]
        self._asked = None
        self._granted.add(node)
        return list(self._ask())

    def lost(self, node: NodeId) -> None:
        """A node is gone, and its place with it."""
        self._granted.discard(node)
        if self._asked == node:
            self._asked = None

    def give_back(self) -> list[ReleaseNode]:
        """Release everything that was granted or asked for."""
        nodes = sorted(self._granted | ({self._asked} if self._asked else set()))
        self._granted.clear()
        self._asked = None
        return [ReleaseNode(node) for node in nodes]

    def _ask(self) -> list[ReserveNode]:
        missing = next((n for n in self._nodes if n not in self._granted), None)
        if missing is None or self._asked is not None:
            return []
        self._asked = missing
        return [ReserveNode(missing)]
