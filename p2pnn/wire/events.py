"""What a `Connection` tells the transport: one frozen record per thing that happened.

They are msgspec structs because one is made per tensor: a frozen dataclass takes several times as long.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from p2pnn.wire.messages import Hello, Message, Welcome


class HelloReceived(msgspec.Struct, frozen=True):
    """Listener only: somebody dialled. Call `accept` or `refuse` before taking the next event.

    version: the highest that both speak; the Welcome must carry it.
    """

    hello: Hello
    version: int


class Opened(msgspec.Struct, frozen=True):
    """The handshake is done. greeting: the peer's Welcome (we dialled) or Hello (we listened)."""

    greeting: Hello | Welcome
    version: int


class Received(msgspec.Struct, frozen=True):
    """A message without a body. Never Hello, Welcome, Close, Ping or Pong: the connection deals with these."""

    message: Message


class BodyReceived(msgspec.Struct, frozen=True):
    """A message and its whole body, in the memory that `body_for` gave for it."""

    message: Message
    body: memoryview


class Closed(msgspec.Struct, frozen=True):
    """The last event. reason: a CloseReason, or a number that a newer peer sent; text: one sentence for a person.

    by_peer: the peer ended it (its Close, or its end of file); otherwise we did, and a Close waits in `data_to_send`.
    """

    reason: int
    text: str
    by_peer: bool


Event = HelloReceived | Opened | Received | BodyReceived | Closed


class Outgoing(NamedTuple):
    """One thing to write: header first, then body, by two writes (joining them would copy).

    finished: the ticket of the body whose last piece this is. Its memory may be changed once the transport's own write
    buffer was seen empty after writing it.
    """

    header: bytes
    body: memoryview | None
    finished: int | None
