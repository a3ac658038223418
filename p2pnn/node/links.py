"""How the parts of a node speak to each other's peers: one way to post a message, whoever it is for.

A part that posts to its own node is served from the loop, like a peer, so that no part needs to know where another runs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Generator
from enum import IntEnum
from typing import Any, Protocol

from p2pnn.errors import PeerGone
from p2pnn.transport import LinkSnapshot
from p2pnn.types import NodeId
from p2pnn.wire.messages import LinkKind, Message

log = logging.getLogger("p2pnn.node")


class Priority(IntEnum):
    """Of bodies on a data link: the lower, the sooner; those of one priority take turns.

    Pushes of gradients go from PUSH on, what is needed first, to BLOB: the last part of each takes turns with parts of
    checkpoints and with values, so that nobody who sends without a pause keeps checkpoints back.
    """

    TENSOR = 1
    PUSH = 3
    BLOB = 6
    VALUES = 6
    PROBE = 7
    SNAPSHOT = 8

    @staticmethod
    def of_push(rank: int, count: int) -> int:
        """Of the part of a push that is needed as number `rank` of `count`."""
        return Priority.BLOB - (count - 1 - rank) * (Priority.BLOB - Priority.PUSH + 1) // count


class Leaving(Protocol):
    """A body that has not left whole: await it, and it may be overwritten; that raises PeerGone.

    recall: it may be overwritten at once. Where nothing of it has left it never will, and what has begun goes on from a copy.
    """

    def __await__(self) -> Generator[Any, None, None]: ...

    def recall(self) -> None: ...


class Outside(Protocol):
    """The part of the transport that the parts of a node use."""

    def send(self, node: NodeId, message: Message) -> None: ...

    async def send_body(self, node: NodeId, message: Message, body: memoryview, priority: int = 0) -> None: ...

    def start_body(self, node: NodeId, message: Message, body: memoryview, priority: int = 0) -> Leaving | None: ...

    def connected(self, node: NodeId) -> bool: ...

    def snapshot(self) -> tuple[LinkSnapshot, ...]: ...


class Post:
    """Sends to peers by the transport, and to this node itself by the loop."""

    def __init__(self, node: NodeId, name: str, outside: Outside, deliver: Callable[[NodeId, Message], None]) -> None:
        self.node = node
        self.name = name
        self._outside = outside
        self._deliver = deliver

    def send(self, node: NodeId, message: Message) -> None:
        """Send, or drop with a line in the log where the peer is gone: its loss is told as an event of its own."""
        if node == self.node:
            asyncio.get_running_loop().call_soon(self._deliver, self.node, message)
            return
        try:
            self._outside.send(node, message)
        except PeerGone as error:
            log.debug("dropped message=%s node=%s reason=%s", type(message).__name__, node[:8], error)

    async def send_body(self, node: NodeId, message: Message, body: memoryview, priority: int = 0) -> None:
        """Returns when `body` may be overwritten. Raises PeerGone."""
        await self._outside.send_body(node, message, body, priority)

    def start_body(self, node: NodeId, message: Message, body: memoryview, priority: int = 0) -> Leaving | None:
        """None where `body` has left already, else what to await until it may be overwritten. Either raises PeerGone."""
        return self._outside.start_body(node, message, body, priority)

    def queued(self, node: NodeId) -> int:
        """Messages that wait on the control link to `node`: who has many to send looks here, because that queue is bounded."""
        return sum(s.queued for s in self._outside.snapshot() if s.node == node and s.kind is LinkKind.CONTROL)

    def name_of(self, node: NodeId) -> str:
        """What a connected node is called; the beginning of its id where it is not connected."""
        return next((s.name for s in self._outside.snapshot() if s.node == node), node[:8])

    def reachable(self, node: NodeId) -> bool:
        return node == self.node or self._outside.connected(node)
