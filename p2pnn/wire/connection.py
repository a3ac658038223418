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

from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Final

from p2pnn.errors import LocalProtocolError, RemoteProtocolError
from p2pnn.wire.clocks import Clocks
from p2pnn.wire.codec import encode, printable
from p2pnn.wire.events import BodyReceived, Closed, Event, HelloReceived, Opened, Outgoing, Received
from p2pnn.wire.handshake import check_choice, choose_version
from p2pnn.wire.inbound import Inbound
from p2pnn.wire.limits import DEFAULTS, Limits
from p2pnn.wire.messages import (
    VERSION_MAX,
    VERSION_MIN,
    Close,
    CloseReason,
    Hello,
    Join,
    Joined,
    LinkKind,
    Message,
    Offer,
    Ping,
    Pong,
    Welcome,
)
from p2pnn.wire.outbound import Outbound

BodyFor = Callable[[Message, int], "memoryview | None"]
"""Where to put a body of so many bytes: a writable, contiguous view of exactly that size, or None to drop the body.

Called from `next_event`, after all earlier events were taken. The view belongs to the connection until BodyReceived or
Closed; its bytes may change up to then."""


class Role(Enum):
    DIALER = "dialer"
    LISTENER = "listener"


class _State(Enum):
    CONNECTING = "we dialled and wait for Welcome"
    LISTENING = "we wait for Hello"
    DECIDING = "Hello was received; accept or refuse is due"
    OPEN = "open"
    CLOSED = "closed"


_CLOSED: Final = _State.CLOSED
_GREETINGS: Final = (Hello, Welcome, Offer, Join, Joined)
_EXPECTED: Final[dict[_State, tuple[type[Message], ...]]] = {
    _State.CONNECTING: (Welcome, Close),
    _State.LISTENING: (Hello, Close),
    _State.DECIDING: (Close,),
}
"""What may arrive before the link is open; afterwards everything but greetings."""

_LINK_MESSAGES: Final = (Hello, Welcome, Close, Ping, Pong)
_GRACEFUL_BELOW: Final = 10
"""Reasons below say that nobody erred; what was queued before still leaves."""


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
        limits: Limits = DEFAULTS,
        now: float = 0.0,
        versions: tuple[int, int] = (VERSION_MIN, VERSION_MAX),
    ) -> None:
        if (role is Role.DIALER) != (local is not None):
            raise LocalProtocolError("a dialler needs the Hello that it sends, and a listener must have none")
        self._body_for = body_for
        self._limits = limits
        self._piece_bytes = min(limits.piece_bytes, limits.body_bytes_max)
        self._now = now
        self._heard = now  # when bytes came last; the clocks learn of it when they are asked
        self._clocks = Clocks(limits, now)
        self._inbound = Inbound(limits, self._admit)
        self._outbound = Outbound(limits)
        self._events: deque[Event] = deque()
        self._ended = False  # the peer's side of the TCP connection
        self._hello: Hello | None = local
        self._version = 0  # agreed on; 0 before
        self._takes_bodies = False  # an open data link
        if local is None:
            self._versions = versions
            self._state = _State.LISTENING
        else:
            self._versions = (local.version_min, local.version_max)
            self._state = _State.CONNECTING
            self._outbound.put_link(local)

    # --- state

    @property
    def link(self) -> LinkKind | None:
        """Control or data; None in a listener that has not seen the Hello."""
        return None if self._hello is None else self._hello.link

    @property
    def is_open(self) -> bool:
        """The handshake is done and nobody closed: `send` is legal."""
        return self._state is _State.OPEN

    @property
    def is_closed(self) -> bool:
        """Closed by either side; at most what is to leave before a Close, and the Close, are left to be sent."""
        return self._state is _State.CLOSED

    @property
    def rtt_s(self) -> float | None:
        """Smoothed round trip time of Pings (RFC 6298: 1/8 new); None before the first answer and on data links."""
        return self._clocks.rtt_s

    @property
    def queued_messages(self) -> int:
        """Messages, with bodies and without, whose last byte was not handed out yet."""
        return self._outbound.queued

    # --- receiving

    def get_buffer(self) -> memoryview:
        """Where the next bytes go, never empty: the link's own buffer, or a body's very place.

        For BufferedProtocol.get_buffer. Take all events (`next_event` → None) before, else LocalProtocolError.
        """
        return self._inbound.get_buffer()

    def get_buffers(self) -> list[memoryview]:
        """The same for a system call that scatters: behind the rest of a piece, some room for the next header."""
        return self._inbound.get_buffers()

    def buffer_updated(self, count: int, now: float) -> bool:
        """`count` bytes were written to the start of `get_buffer`'s view. Then take the events; False: there are none yet."""
        self._now = self._heard = now
        return self._state is not _CLOSED and self._inbound.buffer_updated(count)

    def receive(self, data: bytes | bytearray | memoryview, now: float) -> list[Event]:
        """All events of these bytes: the same as feeding them through get_buffer; copies, so for tests and small use."""
        rest = memoryview(data)
        events: list[Event] = []
        while rest:
            view = self.get_buffer()
            count = min(len(view), len(rest))
            view[:count] = rest[:count]
            rest = rest[count:]
            self.buffer_updated(count, now)
            while (event := self.next_event()) is not None:
                events.append(event)
        return events

    def eof_received(self, now: float) -> None:
        """The peer's side ended, or the connection was lost. Then take the events; the last is Closed."""
        self._now = now
        self._ended = True

    def next_event(self) -> Event | None:
        """The next thing that happened, or None when more bytes are needed. After Closed there are no more."""
        events = self._events
        while not events and self._state is not _CLOSED:
            try:
                arrived = self._inbound.next()
            except RemoteProtocolError as error:
                self.close(error.reason, str(error))
                break
            if arrived is None or self.is_closed:  # body_for may have closed
                break
            message, body = arrived
            if body is not None:
                return BodyReceived(message, body)
            try:
                self._route(message)
            except RemoteProtocolError as error:
                self.close(error.reason, str(error))
        if events:
            return events.popleft()
        if self._ended and not self.is_closed:
            inbound = self._inbound
            where = " in the middle of a message" if inbound.in_frame or inbound.in_body else ""
            self._end(CloseReason.FAILED, f"the peer's connection ended{where} without a reason", by_peer=True)
            return events.popleft()
        return None

    # --- handshake of the listener

    def accept(self, welcome: Welcome) -> None:
        """Answer HelloReceived: the link is open, and the Welcome waits in `data_to_send`. Event: Opened.

        Raises LocalProtocolError without a pending Hello, or when welcome.version is not the event's version."""
        hello = self._pending_hello()
        if welcome.version != self._version:
            raise LocalProtocolError(f"a Welcome of version {welcome.version}, though {self._version} was agreed on")
        self._outbound.put_link(welcome)
        self._open(hello)

    def refuse(self, reason: int, text: str) -> None:
        """Answer HelloReceived by a Close with this reason (WRONG_CLUSTER, SELF, NO_SESSION, TOO_MANY, …). Event: Closed."""
        self._pending_hello()
        self.close(reason, text)

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
        name = type(message).__name__
        if self._state is not _State.OPEN:
            raise LocalProtocolError(f"{name} cannot be sent: the link is {self._state.value}")
        if isinstance(message, _LINK_MESSAGES):
            raise LocalProtocolError(f"{name} is the link's own message; it sends it itself")
        if (body is not None) != message.BODY:
            raise LocalProtocolError(f"{name} must be sent {'with' if message.BODY else 'without'} a body")
        if body is None:
            return self._outbound.put_message(encode(message))
        if self.link is LinkKind.CONTROL:
            raise LocalProtocolError(f"{name} has a body and belongs on a data link, not on a control link")
        if body.nbytes > self._limits.body_bytes_max:
            raise LocalProtocolError(
                f"{name}'s body has {body.nbytes} bytes; the limit is {self._limits.body_bytes_max}"
            )
        return self._outbound.put_body(encode(message), _as_bytes(body, message), priority)

    def send_at_once(self, message: Message, body: memoryview) -> tuple[bytes, memoryview] | None:
        """Header and body as `send` and `data_to_send` would give, for a body in one piece with nothing queued before it.

        None: use `send`. Raises LocalProtocolError as `send` does."""
        outbound = self._outbound
        size = body.nbytes
        if not self._takes_bodies or outbound.is_busy or not message.BODY or size > self._piece_bytes:
            return None
        return outbound.only_piece(encode(message), size), _as_bytes(body, message)

    def cancel(self, ticket: int) -> bool:
        """Withdraw a body of which nothing was handed out yet. False: it has begun (or ended), and must go on."""
        return self._outbound.cancel(ticket)

    def copy(self, ticket: int) -> None:
        """A body that has begun goes on from a copy, so that its memory may change; what `data_to_send` gave is not copied."""
        self._outbound.copy(ticket)

    def data_to_send(self) -> Outgoing | None:
        """The next thing to write, or None. One piece at a time, so that the caller can wait for its socket in between.

        When `is_closed` and this returns None, close the socket."""
        return self._outbound.next()

    def close(self, reason: int, text: str = "") -> None:
        """End the link: Close will be sent, and the next event is Closed. Without effect when closed.

        Where nobody erred (reasons below 10) messages without bodies that wait are sent before; bodies are dropped.
        """
        if self._state is _State.CLOSED:
            return
        self._outbound.close(Close(reason=int(reason), text=printable(text)), flush=reason < _GRACEFUL_BELOW)
        self._end(reason, text, by_peer=False)

    # --- time

    def get_timer(self) -> float | None:
        """When `handle_timer` wants to be called, on the clock of `now`; None for never."""
        if self._state is _State.CLOSED:
            return None
        self._set_clocks()
        return self._clocks.due()

    def handle_timer(self, now: float) -> None:
        """Ping, or close as TOO_SLOW or SILENT, whatever is due. Then take the events and `data_to_send`."""
        self._now = now
        if self._state is _State.CLOSED:
            return
        self._set_clocks()
        overdue = self._clocks.overdue(now)
        if overdue is not None:
            self.close(*overdue)
            return
        nonce = self._clocks.ping(now)
        if nonce is not None:
            self._outbound.put_link(Ping(nonce))

    # --- inside

    def _set_clocks(self) -> None:
        """Tell the clocks what came in: once per beat, not for each of its frames."""
        inbound = self._inbound
        self._clocks.heard(self._heard)
        self._clocks.receiving(inbound.frames, inbound.in_frame, inbound.in_body, self._heard)

    def _admit(self, message: Message, total: int | None) -> memoryview | None:
        """Is this message welcome now, and where does its body go? Raises RemoteProtocolError (UNEXPECTED)."""
        if total is not None and self._takes_bodies and message.BODY:
            place = self._body_for(message, total)
            if place is None:
                return None
            if place.readonly or place.nbytes != total:
                raise LocalProtocolError(
                    f"the place for a body of {total} bytes has {place.nbytes}, or is read-only ({type(message).__name__})"
                )
            return _as_bytes(place, message)
        name = type(message).__name__
        expected = _EXPECTED.get(self._state)
        if not (not isinstance(message, _GREETINGS) if expected is None else isinstance(message, expected)):
            when = "after the handshake" if expected is None else "before the handshake was done"
            raise RemoteProtocolError(CloseReason.UNEXPECTED, f"{name} came {when}")
        if (total is not None) != message.BODY:
            raise RemoteProtocolError(
                CloseReason.UNEXPECTED, f"{name} came {'without' if message.BODY else 'with'} a body"
            )
        if total is not None:
            raise RemoteProtocolError(CloseReason.UNEXPECTED, f"{name} with a body came on a control link")
        return None

    def _route(self, message: Message) -> None:
        """Deal with a message without a body that was admitted; an event for the rest."""
        match message:
            case Hello():
                self._negotiate(message)
            case Welcome():
                check_choice(self._versions, message)
                self._version = message.version
                self._open(message)
            case Close():
                self._outbound.drop()
                self._end(message.reason, printable(message.text), by_peer=True)
            case Ping():
                self._outbound.put_pong(Pong(message.nonce))
            case Pong():
                if not self._clocks.pong(message.nonce, self._now):
                    raise RemoteProtocolError(CloseReason.UNEXPECTED, f"Pong {message.nonce} answers no Ping")
            case _:
                self._events.append(Received(message))

    def _negotiate(self, hello: Hello) -> None:
        """Agree on a version, and let the owner decide on the rest of the Hello."""
        version = choose_version(self._versions, hello)
        self._hello = hello
        self._version = version
        self._state = _State.DECIDING
        self._events.append(HelloReceived(hello, version))

    def _pending_hello(self) -> Hello:
        if self._state is not _State.DECIDING or self._hello is None:
            raise LocalProtocolError(f"no Hello waits to be answered: the link is {self._state.value}")
        return self._hello

    def _open(self, greeting: Hello | Welcome) -> None:
        self._state = _State.OPEN
        self._clocks.opened(self._now, control=self.link is LinkKind.CONTROL)
        if self.link is LinkKind.DATA:
            self._inbound.use_data_window()
            self._takes_bodies = True
        self._events.append(Opened(greeting, self._version))

    def _end(self, reason: int, text: str, by_peer: bool) -> None:
        self._state = _State.CLOSED
        self._takes_bodies = False
        self._inbound = Inbound(self._limits, self._admit)  # later bytes go nowhere, and no body's memory is held
        self._events.append(Closed(int(reason), text, by_peer))


def _as_bytes(view: memoryview, message: Message) -> memoryview:
    """The same memory as a flat view of bytes. Raises LocalProtocolError where it is not contiguous."""
    if not view.c_contiguous:
        raise LocalProtocolError(f"the memory for {type(message).__name__}'s body is not contiguous")
    if view.ndim == 1 and view.format == "B":
        return view
    return view.cast("B") if view.nbytes else memoryview(bytearray())
