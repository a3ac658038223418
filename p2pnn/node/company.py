"""The nodes of one start of a job, as the part on one of them speaks to the others, and to itself.

A worker and a shard may have their places on one node: what they say to each other goes the same ways as between nodes, through
the same checks, except that a body is copied from one arena to the other, a little at a time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Sequence
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Any, Final, Protocol

from p2pnn.errors import PeerGone
from p2pnn.node.links import Leaving, Post
from p2pnn.types import NodeId
from p2pnn.wire import messages as wire

log = logging.getLogger("p2pnn.place")

TOLD: Final = 16
"""Of one kind of messages that a node sends and should not, so many get a line in the log each; then every time that there are
twice as many."""

COPY_BYTES: Final = 1 << 20
"""Copied at a time: a tenth of a millisecond, in which this node hears nobody."""


AT_ONCE: Final = 128
"""Bodies that the transport has for one node; it takes some more, for other parts of this node."""

Waiting = tuple[int, int, wire.Message, memoryview, Callable[[], None], int]
"""Priority, number, and what `Company.send_body` got."""


class Ends(Protocol):
    """Who takes bodies on this node: the part. See `transport.Events`."""

    def body_for(self, node: NodeId, message: wire.Message, nbytes: int) -> memoryview | None: ...

    def arrived(self, node: NodeId, message: wire.Message) -> None: ...


class Company:
    """about: (job, generation) of every message. index: this node's among `nodes`, in the plan's order.

    spawn: runs what takes time until the part ends. lost(node, reason): what was to go to a node will not arrive.
    """

    def __init__(
        self,
        about: tuple[str, int],
        index: int,
        nodes: Sequence[NodeId],
        names: dict[NodeId, str],
        post: Post,
        ends: Ends,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        lost: Callable[[NodeId, str], None],
    ) -> None:
        self.about = about
        self.index = index
        self._nodes = tuple(nodes)
        self._names = names
        self._post = post
        self._ends = ends
        self._spawn = spawn
        self._lost = lost
        self._numbers = count()
        self._refused: dict[tuple[str, NodeId], int] = {}  # what, by whom of the nodes → how often
        self._waiting: list[list[Waiting]] = [[] for _ in nodes]  # heaps; as much as executors have places for
        self._leaving = [0 for _ in nodes]
        self._named: dict[int, Leaving] = {}  # by token, of those that the transport has

    def index_of(self, node: NodeId) -> int:
        """Its place in the plan; −1 for a node that has none."""
        return self._nodes.index(node) if node in self._nodes else -1

    def name(self, node: NodeId) -> str:
        return self._names.get(node, node[:8])

    def refused(self, what: str, node: NodeId, reason: str) -> None:
        """A line in the log about something that a node has sent and no honest one would. Of many of a kind only some get one."""
        often = self._refused[what, node] = self._refused.get((what, node), 0) + 1
        if often <= TOLD or not often & (often - 1):
            reason += f"; {often:,} of these so far, not all of which are told" if often > TOLD else ""
            log.warning("%s job=%s node=%s reason=%s", what, self.about[0], self.name(node), reason)

    def send(self, index: int, message: wire.Message) -> None:
        """To the node at this place of the plan, or to this one itself; dropped where it is gone: its loss is told by itself."""
        self._post.send(self._nodes[index], message)

    def send_body(
        self,
        index: int,
        message: wire.Message,
        body: memoryview | None,
        priority: int,
        left: Callable[[], None],
        token: int = 0,
    ) -> None:
        """Send a message with its body; most have left when this returns, and need no task to wait for them.

        left: called when the body's memory is free, also where the node is lost; never, where its executor is gone (body: None).
        token: what `recall` names it by; 0 for what is not recalled.
        """
        if body is None:
            return
        if index == self.index:
            self._spawn(self._hand_over(self._nodes[index], message, body, left))
            return
        heappush(self._waiting[index], (priority, next(self._numbers), message, body, left, token))
        self._start(index)

    def recall(self, index: int, tokens: Collection[int]) -> None:
        """The memory of these bodies is wanted at once, so `left` is called soon: what has not begun to leave never will, and the
        rest of what has leaves from a copy."""
        gone = [waiting for waiting in self._waiting[index] if waiting[-1] in tokens]
        self._waiting[index] = [waiting for waiting in self._waiting[index] if waiting[-1] not in tokens]
        heapify(self._waiting[index])
        for _, _, _, _, left, _ in gone:
            left()
        for token in tokens:
            if (leaving := self._named.get(token)) is not None:
                leaving.recall()

    def _start(self, index: int) -> None:
        """Give the transport what it may have at once, the rest later: a push of many parts is more than it takes."""
        node, waiting = self._nodes[index], self._waiting[index]
        while waiting and self._leaving[index] < AT_ONCE:
            priority, _, message, body, left, token = heappop(waiting)
            try:
                rest = self._post.start_body(node, message, body, priority)
            except PeerGone as error:
                left()
                self._give_up(index, error)
                return
            if rest is None:
                left()
            else:
                self._leaving[index] += 1
                if token:
                    self._named[token] = rest
                self._spawn(self._finish(rest, index, left, token))

    async def _finish(self, rest: Leaving, index: int, left: Callable[[], None], token: int) -> None:
        error: PeerGone | None = None
        try:
            await rest
        except PeerGone as gone:
            error = gone
        self._named.pop(token, None)
        self._leaving[index] -= 1
        left()
        if error is not None:
            self._give_up(index, error)
        else:
            self._start(index)

    def _give_up(self, index: int, error: PeerGone) -> None:
        """Nothing of what waits for a node will arrive: its memory is free, since a start may go on without the node."""
        waiting, self._waiting[index] = self._waiting[index], []
        for _, _, _, _, left, _ in waiting:
            left()
        self._lost(self._nodes[index], str(error))

    async def _hand_over(self, node: NodeId, message: wire.Message, body: memoryview, left: Callable[[], None]) -> None:
        place = self._ends.body_for(node, message, len(body))
        if place is not None:
            for start in range(0, len(body), COPY_BYTES):
                place[start : start + COPY_BYTES] = body[start : start + COPY_BYTES]
                await asyncio.sleep(0)
            self._ends.arrived(node, message)
        left()
