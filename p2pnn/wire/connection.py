"""One TCP link as a sans-IO state machine: bytes in, events out; messages in, bytes out; it owns no socket and no clock.

    connecting ── Hello → ── Welcome ──► open ──► closed          dialler
    listening  ── Hello ──► deciding ── accept ──► open ──► closed   listener

Every transition and every reason to close is here; `inbound` cuts bytes into messages and bodies, `outbound` orders what
leaves. The adapter in `transport` has three beats. Feed: `get_buffer`, `buffer_updated`, `eof_received`, `handle_timer`.
Route: `next_event` until it returns None, after every feed. Transmit: `data_to_send` until it returns None or the socket's
own buffer is full; then arm `get_timer`. Whatever a peer sends, nothing here raises: a peer that errs yields `Closed`
with the reason, and a Close message with the same words waits in `data_to_send`. What raises, LocalProtocolError, is a
mistake of this side.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from p2pnn.wire.events import Closed, Event, Outgoing
from p2pnn.wire.limits import Limits
from p2pnn.wire.messages import VERSION_MAX, VERSION_MIN, Hello, LinkKind, Message, Welcome

BodyFor = Callable[[Message, int], "memoryview | None"]
"""Where to put a body of so many bytes: a writable, contiguous view of exactly that size, or None to drop the body.

Called from `next_event`, after all earlier events were taken. The view belongs to the connection until BodyReceived or
Closed; its bytes may change up to then."""


class Role(Enum):
    DIALER = "dialer"
    LISTENER = "listener"


class Connection:
    """One link, control or data.

    role: who connected. local: the Hello to send (dialler), or None (listener). body_for: see BodyFor; never called on a
    control link, where bodies are refused. now: seconds of any monotonic clock, the same in all calls. versions: the
    range that a listener speaks (a dialler's stands in its Hello).
    """

    def __init__(
        self,
        role: Role,
        local: Hello | None,
        body_for: BodyFor,
        limits: Limits = Limits(),
        now: float = 0.0,
        versions: tuple[int, int] = (VERSION_MIN, VERSION_MAX),
    ) -> None:
        raise NotImplementedError

    # --- state

    @property
    def link(self) -> LinkKind | None:
        """Control or data; None in a listener that has not seen the Hello."""
        raise NotImplementedError

    @property
    def is_open(self) -> bool:
        """The handshake is done and nobody closed: `send` is legal."""
        raise NotImplementedError

    @property
    def is_closed(self) -> bool:
        """Closed by either side; at most a Close is left to be sent."""
        raise NotImplementedError

    @property
    def rtt_s(self) -> float | None:
        """Smoothed round trip time of Pings (RFC 6298: 1/8 new); None before the first answer and on data links."""
        raise NotImplementedError

    @property
    def queued_messages(self) -> int:
        """Messages, with bodies and without, whose last byte was not handed out yet."""
        raise NotImplementedError

    # --- receiving

    def get_buffer(self) -> memoryview:
        """Where the next bytes go, never empty: the link's own buffer, or a body's very place.

        For BufferedProtocol.get_buffer. Take all events (`next_event` → None) before.
        """
        raise NotImplementedError

    def buffer_updated(self, count: int, now: float) -> None:
        """`count` bytes were written to the start of `get_buffer`'s view. Then take the events."""
        raise NotImplementedError

    def receive(self, data: bytes | memoryview, now: float) -> list[Event]:
        """All events of these bytes: the same as feeding them through get_buffer; copies, so for tests and small use."""
        raise NotImplementedError

    def eof_received(self, now: float) -> None:
        """The peer's side ended, or the connection was lost. Then take the events; the last is Closed."""
        raise NotImplementedError

    def next_event(self) -> Event | None:
        """The next thing that happened, or None when more bytes are needed. After Closed there are no more."""
        raise NotImplementedError

    # --- handshake of the listener

    def accept(self, welcome: Welcome) -> None:
        """Answer HelloReceived: the link is open, and the Welcome waits in `data_to_send`. Event: Opened.

        Raises LocalProtocolError without a pending Hello, or when welcome.version is not the event's version.
        """
        raise NotImplementedError

    def refuse(self, reason: int, text: str) -> None:
        """Answer HelloReceived by a Close with this reason (WRONG_CLUSTER, SELF, NO_SESSION, TOO_MANY, …). Event: Closed."""
        raise NotImplementedError

    # --- sending

    def send(self, message: Message, body: memoryview | None = None, priority: int = 0) -> int:
        """Queue a message, with its body if its class has one; returns a ticket.

        Messages without a body leave in the order of sending, before any piece of a body. Bodies are cut into pieces;
        those of the lowest priority number go first, up to ROUND_STREAMS of one priority taking turns. Priorities are
        0 … 15; a higher number counts as 15, a negative one as 0. A body is not copied: leave it unchanged until
        its ticket is `finished` and the socket's buffer was seen empty.

        Raises LocalProtocolError: not open; a field or size over its limit; a body missing, or with a class that has none,
        or on a control link; or a full queue (QueueFullError: the peer does not read, close with OVERFLOW).
        """
        raise NotImplementedError

    def cancel(self, ticket: int) -> bool:
        """Withdraw a body of which nothing was handed out yet. False: it has begun (or ended), and must go on."""
        raise NotImplementedError

    def data_to_send(self) -> Outgoing | None:
        """The next thing to write, or None. One piece at a time, so that the caller can wait for its socket in between.

        When `is_closed` and this returns None, close the socket.
        """
        raise NotImplementedError

    def close(self, reason: int, text: str = "") -> None:
        """End the link: Close will be sent, and the next event is Closed. Without effect when closed.

        Where nobody erred (reasons below 10) messages without bodies that wait are sent before; bodies are dropped.
        """
        raise NotImplementedError

    # --- time

    def get_timer(self) -> float | None:
        """When `handle_timer` wants to be called, on the clock of `now`; None for never."""
        raise NotImplementedError

    def handle_timer(self, now: float) -> None:
        """Ping, or close as TOO_SLOW or SILENT, whatever is due. Then take the events and `data_to_send`."""
        raise NotImplementedError
