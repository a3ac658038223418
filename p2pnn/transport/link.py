"""One TCP link: a `wire.Connection` under an asyncio `BufferedProtocol`.

Three beats, always in this order: feed (bytes, an end, a timer), route events to the owner, transmit and re-arm.

Receiving copies nothing: the connection names the memory into which the next bytes go, in the middle of a body the body's
very place. Sending copies nothing in Python either: header and body are two writes (joining them would copy). The price
is a rule: a transport's `write` returning does not mean sent. uvloop keeps a reference and reads the memory later, so a
body is released only when the transport's write buffer was seen *empty* after its last piece was written. `low = 0` makes
resume_writing mean empty; where less than the high-water mark waits, the mark is lowered to 0 until it has left.

After a Close was sent the write side is shut and what still arrives is thrown away until the peer closes, for `goodbye_s`:
closing a socket with unread bytes would reset the connection, and the peer might never read the reason.
"""

from __future__ import annotations

import asyncio
import logging
from time import monotonic
from typing import Protocol, cast

from p2pnn.errors import PeerGone, RemoteProtocolError
from p2pnn.transport.limits import Limits
from p2pnn.transport.sockets import tune, why
from p2pnn.types import Address
from p2pnn.wire.connection import Connection, Role
from p2pnn.wire.events import BodyReceived, Closed, Event, HelloReceived, Opened, Received
from p2pnn.wire.messages import CloseReason, Hello, LinkKind, Message

log = logging.getLogger("p2pnn.transport")


class Owner(Protocol):
    """What a link tells; all calls are synchronous."""

    def link_made(self, link: Link) -> None: ...
    def link_hello(self, link: Link, event: HelloReceived) -> None: ...
    def link_opened(self, link: Link, event: Opened) -> None: ...
    def link_message(self, link: Link, message: Message) -> None: ...
    def link_body_for(self, link: Link, message: Message, nbytes: int) -> memoryview | None: ...
    def link_body(self, link: Link, message: Message) -> None: ...
    def link_closed(self, link: Link, event: Closed) -> None: ...
    def link_lost(self, link: Link) -> None: ...


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


class Link(asyncio.BufferedProtocol):
    """hello: what to say first on a link that this node dialled; None on one that it accepted.

    greeted: the first of Opened and Closed, for whoever dialled. lost: done when the socket is gone.
    """

    def __init__(self, owner: Owner, hello: Hello | None, limits: Limits) -> None:
        self.dialled = hello is not None
        self.remote = Address("", 0)
        self.node = ""
        self.session = ""
        self.received_bytes = 0
        self.sent_bytes = 0
        self._loop = asyncio.get_running_loop()
        self.greeted: asyncio.Future[Opened | Closed] = self._loop.create_future()
        self.lost: asyncio.Future[None] = self._loop.create_future()
        self._owner = owner
        self._limits = limits
        role = Role.DIALER if hello is not None else Role.LISTENER
        self.connection = Connection(role, hello, self._body_for, limits.wire, monotonic())
        self._transport: asyncio.Transport | None = None
        self._paused = False
        self._routing = False
        self._turn: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0
        self._stall: asyncio.TimerHandle | None = None
        self._goodbye: asyncio.TimerHandle | None = None
        self._ended = False
        self._muted = False
        self._sendings: dict[int, Sending] = {}
        self._draining: list[Sending] = []
        self._why = "the link was closed"

    # --- for the owner

    @property
    def kind(self) -> LinkKind | None:
        return self.connection.link

    @property
    def is_open(self) -> bool:
        return self.connection.is_open

    @property
    def left_bytes(self) -> int:
        """How many bytes the system has taken from this link: it grows while anything moves."""
        return self.sent_bytes - self._waiting_bytes()

    def send(self, message: Message) -> None:
        """Queue a message without a body. Raises LocalProtocolError, QueueFullError among them."""
        self.connection.send(message)
        self._transmit()

    def send_body(self, sending: Sending) -> None:
        """Queue a body; `sending.done` tells when its memory is free. Raises LocalProtocolError."""
        sending.ticket = self.connection.send(sending.message, sending.body, sending.priority)
        sending.link = self
        self._sendings[sending.ticket] = sending
        self._transmit()

    def withdraw(self, sending: Sending) -> bool:
        """Take back a body of which nothing has left; False when it is too late for that."""
        if not self.connection.cancel(sending.ticket):
            return False
        del self._sendings[sending.ticket]
        return True

    def close(self, reason: int, text: str) -> None:
        """Say why, then close. link_closed is called before this returns, or right after the event being dealt with."""
        self.connection.close(reason, text)
        self._beat()

    def abort(self, text: str) -> None:
        """Close without a word, for when the peer cannot be spoken to or must not get what is on its way."""
        self.connection.close(CloseReason.FAILED, text)
        if self._transport is not None:
            self._transport.abort()
        else:
            self._muted = True
        self._beat()

    # --- what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        sock = transport.get_extra_info("socket")
        peer = transport.get_extra_info("peername")
        if peer:
            self.remote = Address(str(peer[0]), int(peer[1]))
        if sock is not None:
            tune(sock)
        self._transport.set_write_buffer_limits(high=self._limits.high_water_bytes, low=0)
        self._owner.link_made(self)
        if self._muted:
            self._transport.abort()
        else:
            self._beat()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.connection.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        self.received_bytes += nbytes
        self.connection.buffer_updated(nbytes, monotonic())
        self._beat()

    def eof_received(self) -> bool:
        self.connection.eof_received(monotonic())
        self._beat()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            self.connection.close(CloseReason.FAILED, why(exc))
        self.connection.eof_received(monotonic())
        self._route()
        for handle in (self._timer, self._stall, self._goodbye, self._turn):
            if handle is not None:
                handle.cancel()
        self._transport = None
        waiting = [*self._sendings.values(), *self._draining]
        self._sendings.clear()
        self._draining.clear()
        for sending in waiting:
            sending.fail(self._why)
        self.lost.set_result(None)
        self._owner.link_lost(self)

    def pause_writing(self) -> None:
        self._paused = True
        if self._stall is None:
            self._watch(self._waiting_bytes())

    def resume_writing(self) -> None:
        self._paused = False
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        if self._transport is not None:
            self._transport.set_write_buffer_limits(high=self._limits.high_water_bytes, low=0)
            self._release()
            self._transmit()

    # --- beats

    def _beat(self) -> None:
        if not self._routing:
            self._route()
            self._transmit()
            self._arm()

    def _route(self) -> None:
        """Take all events. What the owner raises about a peer's message closes the link; a fault of ours as well, loudly."""
        self._routing = True
        try:
            while True:
                try:
                    event = self.connection.next_event()
                    if event is None:
                        return
                    self._tell(event)
                except RemoteProtocolError as error:
                    self.connection.close(error.reason, str(error))
                except Exception:
                    log.exception("a message could not be dealt with remote=%s node=%s", self.remote, self.node[:8])
                    self.connection.close(CloseReason.FAILED, "this node failed to deal with a message; see its log")
        finally:
            self._routing = False

    def _tell(self, event: Event) -> None:
        match event:
            case HelloReceived():
                self._owner.link_hello(self, event)
            case Opened():
                self._owner.link_opened(self, event)
                if not self.greeted.done():
                    self.greeted.set_result(event)
            case Received(message):
                self._owner.link_message(self, message)
            case BodyReceived(message):
                self._owner.link_body(self, message)
            case Closed():
                self._why = event.text or "the link was closed"
                if not self.greeted.done():
                    self.greeted.set_result(event)
                self._goodbye = self._loop.call_later(self._limits.goodbye_s, self._hang_up)
                self._owner.link_closed(self, event)

    def _transmit(self) -> None:
        """Write until nothing is left, the socket is full or the turn is over."""
        transport = self._transport
        if transport is None or transport.is_closing() or self._routing or self._turn is not None:
            return
        budget = self._limits.turn_bytes
        while not self._paused and budget > 0:
            out = self.connection.data_to_send()
            if out is None:
                break
            transport.write(out.header)
            size = len(out.header)
            if out.body is not None:
                transport.write(out.body)
                size += len(out.body)
            self.sent_bytes += size
            budget -= size
            if out.finished is not None and out.finished in self._sendings:
                self._draining.append(self._sendings.pop(out.finished))
        else:
            if not self._paused:
                self._release()
                self._turn = self._loop.call_soon(self._next_turn)
            return
        self._release()
        if self.connection.is_closed and not self._paused:
            self._shut()

    def _next_turn(self) -> None:
        self._turn = None
        self._transmit()

    def _release(self) -> None:
        """Give bodies back to their senders if the write buffer is empty; else ask to be told when it is."""
        if not self._draining or self._transport is None:
            return
        if self._waiting_bytes() == 0:
            drained, self._draining = self._draining, []
            for sending in drained:
                sending.finish()
        elif not self._paused:
            self._transport.set_write_buffer_limits(high=0, low=0)

    def _waiting_bytes(self) -> int:
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def _watch(self, before: int) -> None:
        self._stall = self._loop.call_later(self._limits.wire.stall_deadline_s, self._check_progress, before)

    def _check_progress(self, before: int) -> None:
        """The peer must take something of what waits within stall_deadline_s."""
        self._stall = None
        waiting = self._waiting_bytes()
        if self._paused and waiting < before:
            self._watch(waiting)
        elif self._paused:
            stall_s = self._limits.wire.stall_deadline_s
            self.close(CloseReason.OVERFLOW, f"the peer read nothing for {stall_s:g} s while {waiting} bytes waited")

    def _shut(self) -> None:
        """All was written: wait for the peer to close, or close at once if it did."""
        if self._transport is None or self._ended or self._transport.is_closing():
            return
        self._ended = True
        if self._transport.can_write_eof():
            try:
                self._transport.write_eof()
            except (OSError, RuntimeError):
                self._transport.abort()

    def _hang_up(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _arm(self) -> None:
        """One timer, moved only when it would come too late: most bytes push a deadline back, and need no work."""
        due = self.connection.get_timer() if self._transport is not None else None
        if self._timer is not None and (due is None or due < self._timer_due):
            self._timer.cancel()
            self._timer = None
        if due is not None and self._timer is None:
            self._timer = self._loop.call_later(max(0.0, due - monotonic()), self._ring)
            self._timer_due = due  # uvloop's handle does not always tell

    def _ring(self) -> None:
        self._timer = None
        now = monotonic()  # the loop's own clock moves in milliseconds under uvloop, too coarse for round trips
        due = self.connection.get_timer()
        if due is not None and due <= now:
            self.connection.handle_timer(now)
        self._beat()

    def _body_for(self, message: Message, nbytes: int) -> memoryview | None:
        return self._owner.link_body_for(self, message, nbytes)
