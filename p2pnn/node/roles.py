"""Who has which role in a start, as the part on one of its nodes knows it; and how long it waits before a broken link ends it.

A start may be one that can go on without a node (`job.failover`). That is the coordinator's to decide, so a part
whose link to another breaks waits for its word: that the start goes on without the other, or that it is over. It does not wait
for ever: both ends of a link may live, and the coordinator see both. Then one of the two gives up first, so that only that one is
lost: never the node that coordinates, else the one with the higher id.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from p2pnn.job import assignment
from p2pnn.job.assignment import Assignment
from p2pnn.job.plan import Plan
from p2pnn.job.spec import JobSpec
from p2pnn.types import NodeId

LINK_GRACE_S: Final = 2.0
"""How long the coordinator has to notice a dead peer before a node that misses it fails the job for a broken link."""

FIRST_S: Final = 4.0
SECOND_S: Final = 8.0
"""The same where the start can go on: for the end of the link that gives up first, and for the other. A word of the coordinator
is committed first, by a majority of the voters' disks."""

ELECTION_S: Final = 15.0
"""The same where the node that coordinates is the one that is lost: another is elected, and asks how far all are."""


LOOK_S: Final = 0.2
"""Nothing here tells that the coordinator can be reached again."""


class Roles:
    """Until `begin` there are none, and a broken link ends the part soon."""

    def __init__(self) -> None:
        self.assignment = Assignment()
        self._plan: Plan | None = None
        self._spec: JobSpec | None = None
        self._node = NodeId("")
        self._doubted: set[NodeId] = set()

    def begin(self, plan: Plan, generation: int, index: int, spec: JobSpec) -> None:
        """The start's plan is known. index: of this node in it."""
        self._plan, self._spec, self.assignment = plan, spec, assignment.initial(plan, generation)
        self._node = plan.nodes[index].node

    @property
    def takes_part(self) -> bool:
        """Whether the start does not go on without this node."""
        return not self.is_gone(self._node)

    def is_gone(self, node: NodeId) -> bool:
        """Whether the start goes on without a node."""
        return self._plan is not None and assignment.index_of(self._plan, node) in self.assignment.gone

    def take(self, data: bytes) -> bool:
        """What the coordinator says has been committed; False for what is not newer than what is known here. Raises
        CheckpointError for what cannot be read, or is none of this plan."""
        told = assignment.decode(data)
        if self._plan is None:
            return False
        assignment.check(told, self._plan)
        if told.version <= self.assignment.version:
            return False
        self.assignment = told
        return True

    def holds(self, data: bytes) -> bool:
        """Whether this is what is known here."""
        return assignment.decode(data) == self.assignment

    def doubts(self, node: NodeId) -> bool:
        """The link to a node of the start broke; False where that is known, or the start goes on without it."""
        if node in self._doubted or self.is_gone(node):
            return False
        self._doubted.add(node)
        return True

    async def gives_up(
        self, node: NodeId, coordinator: Callable[[], NodeId], reachable: Callable[[NodeId], bool]
    ) -> bool:
        """Wait for the coordinator's word about a node that is doubted; returns whether the part is to fail for want of it."""
        now = asyncio.get_running_loop().time
        began = now()
        await asyncio.sleep(self.patience_s(node, coordinator()))
        while self._may_lose(node) and not reachable(coordinator()) and now() < began + ELECTION_S:  # noqa: ASYNC110
            await asyncio.sleep(LOOK_S)
        return not self.is_gone(node)

    def patience_s(self, peer: NodeId, coordinator: NodeId) -> float:
        """How long to wait for the coordinator's word about a peer to which the link broke."""
        if not self._may_lose(peer):
            return LINK_GRACE_S
        if peer == coordinator:
            return ELECTION_S
        return FIRST_S if self._node != coordinator and self._node > peer else SECOND_S

    def _may_lose(self, node: NodeId) -> bool:
        """Whether the coordinator may say that the start goes on without a node. Where shards have replicas one may hold back its
        word over any."""
        plan, spec = self._plan, self._spec
        if plan is None or spec is None:
            return False
        index = assignment.index_of(plan, node)
        return bool(self.assignment.shards) or assignment.without(self.assignment, plan, spec, index) is not None
