"""A body on its way, for those that cannot leave at once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from p2pnn.errors import PeerGone
from p2pnn.wire.messages import Message

if TYPE_CHECKING:
    from p2pnn.transport.link import Link


class Sending:
    """A body on its way. done: resolved when its memory is free: sent, or PeerGone."""

    __slots__ = ("body", "done", "link", "message", "priority", "ticket")

    def __init__(self, message: Message, body: memoryview, priority: int, done: asyncio.Future[None]) -> None:
        self.message = message
        self.body = body
        self.priority = priority
        self.done = done
        self.link: Link | None = None
        self.ticket = -1

    def finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def fail(self, reason: str) -> None:
        if not self.done.done():
            self.done.set_exception(PeerGone(reason))
