"""One TCP link: a `wire.Connection` over a `Stream`.

Three beats, always in this order: feed (bytes, an end, a timer), route events to the owner, transmit and re-arm.

Receiving copies nothing: the connection names the memory into which the next bytes go, in the middle of a body the body's
very place and behind it room for the next header. Sending copies nothing in Python either. The price is a rule: written
does not mean sent. A body is released only when the stream's write buffer was seen *empty* after its last piece was
written, and nothing is written before it is. Where the system's own buffer has room, which is the rule, that is at once:
`send_body` then needs neither queue nor future. Messages without bodies leave together at the end of a turn of the loop.

After a Close was sent the write side is shut and what still arrives is thrown away until the peer closes, for `goodbye_s`:
closing a socket with unread bytes would reset the connection, and the peer might never read the reason.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Final

from p2pnn.errors import RemoteProtocolError
from p2pnn.transport.limits import Limits
from p2pnn.transport.sending import Sending
from p2pnn.transport.sockets import tune, why
from p2pnn.transport.stream import Nobody, Stream
from p2pnn.transport.telling import Owner
from p2pnn.types import Address, NodeId
from p2pnn.wire.connection import Connection, Role
from p2pnn.wire.events import BodyReceived, Closed, Event, HelloReceived, Opened, Received
from p2pnn.wire.messages import CloseReason, Hello, LinkKind, Message

if TYPE_CHECKING:  # a plain mesh does not load TLS
    from p2pnn.identity.keys import PublicKey
    from p2pnn.transport.secure import SecureStream, Security

log = logging.getLogger("p2pnn.transport")

LATE_S: Final = 0.1
"""A timer that rings so late has waited for this process, not for the peer."""


class Link:
    """hello: what to say first on a link that this node dialled; None on one that it accepted. security: None in a plain mesh.

    key: of the peer's certificate, once TLS has proved it; None in a plain mesh. proved: the node of that key, or empty.
    greeted: the first of Opened and Closed, for whoever dialled. lost: done when the socket is gone.
    """

    def __init__(self, owner: Owner, hello: Hello | None, limits: Limits, security: Security | None = None) -> None:
        self.dialled = hello is not None
        self.remote = Address("", 0)
        self.node = NodeId("")
        self.key: PublicKey | None = None
        self.proved = NodeId("")
        self.name = ""
        self._security = security
        self.session = ""
        self.received_bytes = 0
        self.sent_bytes = 0
        self._loop = asyncio.get_running_loop()
        self.greeted: asyncio.Future[Opened | Closed] = self._loop.create_future()
        self.lost: asyncio.Future[None] = self._loop.create_future()
        self._owner = owner
        self._limits = limits
        role = Role.DIALER if hello is not None else Role.LISTENER
        self.connection = Connection(role, hello, partial(owner.link_body_for, self), limits.wire, monotonic())
        self._transport: Stream | None = None
        self._routing = False
        self._turn: asyncio.Handle | None = None
        self._turn_bytes = limits.turn_bytes  # that may leave before the loop has its turn
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0
        self._stall: asyncio.TimerHandle | None = None
        self._left_before = 0
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
    def bodies(self) -> int:
        """How many have not left whole."""
        return len(self._sendings) + len(self._draining)

    @property
    def left_bytes(self) -> int:
        """How many bytes the system has taken from this link: it grows while anything moves."""
        return self.sent_bytes - (self._transport.waiting if self._transport is not None else 0)

    def send(self, message: Message) -> None:
        """Queue a message without a body. Raises LocalProtocolError, QueueFullError among them."""
        self.connection.send(message)
        self._transmit_soon()

    def send_body(self, message: Message, body: memoryview, priority: int) -> Sending | None:
        """Send a message with its body; None when it has left already and its memory is free, which is the rule.

        Raises LocalProtocolError.
        """
        stream = self._transport
        if stream is None or stream.waiting or self._turn is not None or self._routing or self._turn_bytes <= 0:
            return self._queue(message, body, priority)
        out = self.connection.send_at_once(message, body)
        if out is None:
            return self._queue(message, body, priority)
        frame, view = out
        size = len(frame) + len(view)
        self.sent_bytes += size
        self._turn_bytes -= size
        if stream.write(frame, view):
            return None
        sending = Sending(message, body, priority, self._loop.create_future())
        sending.link = self
        self._draining.append(sending)
        self._watch()
        return sending

    def submit(self, sending: Sending) -> None:
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

    def copy(self, sending: Sending) -> None:
        """Let go of the memory of a body that has begun: what has not left of it leaves from a copy."""
        self.connection.copy(sending.ticket)
        if self._transport is not None:
            self._transport.copy()
        self._sendings.pop(sending.ticket, None)
        self._draining = [other for other in self._draining if other is not sending]

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

    # --- from and to the socket

    def attach(self, sock: socket.socket) -> None:
        """The connection is there; the link owns its socket from now on."""
        try:
            peer = sock.getpeername()
        except OSError:  # it broke already; reading will tell
            peer = ("", 0)
        self.remote = Address(str(peer[0]), int(peer[1]))
        tune(sock)
        if self._security is None:
            self._transport = Stream(sock, self)
            self._transport.resume_reading()
        else:
            self._transport = self._security.stream(sock, self, self.dialled, self._secured)
        self._owner.link_made(self)
        if self._muted:
            self._transport.abort()
        else:
            self._beat()

    def release(self) -> None:
        """The connection is somebody else's from now on: its peer is no node. No event follows."""
        assert self._transport is not None
        self._transport.hand_to(Nobody())
        self._transport = None
        self._forget_timers()
        self.lost.set_result(None)
        self._owner.link_lost(self)

    def _secured(self, stream: SecureStream) -> None:
        """TLS is up."""
        self._owner.link_secured(self, stream)
        self._beat()

    def readable(self) -> None:
        """Receive what is there, at most turn_bytes of it; then the loop's other links have their turn."""
        stream, connection = self._transport, self.connection
        assert stream is not None
        budget = self._limits.turn_bytes
        now = monotonic()
        while budget > 0 and stream.is_reading:
            views = connection.get_buffers()
            count = stream.receive(views)
            if count is None:
                break
            if count == 0:
                self._end_of_file(now)
                return
            self.received_bytes += count
            budget -= count
            if connection.buffer_updated(count, now):
                self._route()
            if stream.dry:
                break  # all of it was read; asking again would find little, at the full price of a call
        self._transmit()
        self._arm()

    def drained(self) -> None:
        self._release()
        self._transmit()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            self.connection.close(CloseReason.FAILED, why(exc))
        self.connection.eof_received(monotonic())
        self._route()
        self._forget_timers()
        self._transport = None
        waiting = [*self._sendings.values(), *self._draining]
        self._sendings.clear()
        self._draining.clear()
        for sending in waiting:
            sending.fail(self._why)
        self.lost.set_result(None)
        self._owner.link_lost(self)

    def _forget_timers(self) -> None:
        for handle in (self._timer, self._stall, self._goodbye, self._turn):
            if handle is not None:
                handle.cancel()

    def _end_of_file(self, now: float) -> None:
        self.connection.eof_received(now)
        self._beat()
        if self._transport is not None:
            self._transport.close()

    # --- beats

    def _beat(self) -> None:
        if not self._routing:
            self._route()
            self._transmit()
            self._arm()

    def _route(self) -> None:
        """Take all events. What the owner raises about a peer's message closes the link; a fault of ours as well, loudly."""
        next_event = self.connection.next_event
        self._routing = True
        while True:
            try:
                while (event := next_event()) is not None:
                    if type(event) is BodyReceived:
                        self._owner.link_body(self, event.message)
                    else:
                        self._tell(event)
                break
            except RemoteProtocolError as error:
                self.connection.close(error.reason, str(error))
            except Exception:
                log.exception("a message could not be dealt with remote=%s node=%s", self.remote, self.node[:8])
                self.connection.close(CloseReason.FAILED, "this node failed to deal with a message; see its log")
        self._routing = False

    def _tell(self, event: Event) -> None:
        match event:
            case Received(message):
                self._owner.link_message(self, message)
            case HelloReceived():
                self._owner.link_hello(self, event)
            case Opened():
                self._owner.link_opened(self, event)
                if not self.greeted.done() and self.is_open:  # the owner may have closed it; Closed follows
                    self.greeted.set_result(event)
            case Closed():
                self._why = event.text or "the link was closed"
                if not self.greeted.done():
                    self.greeted.set_result(event)
                self._goodbye = self._loop.call_later(self._limits.goodbye_s, self._hang_up)
                self._owner.link_closed(self, event)

    def _transmit(self) -> None:
        """Write until nothing is left, the socket is full or the turn is over."""
        stream = self._transport
        if stream is None or stream.is_closing() or self._routing or self._turn is not None:
            return
        while not stream.waiting and not stream.is_closing():
            if self._turn_bytes <= 0:
                self._transmit_soon()
                break
            out = self.connection.data_to_send()
            if out is None:
                break
            size = len(out.header)
            if out.body is None:
                stream.write(out.header)
            else:
                stream.write(out.header, out.body)
                size += len(out.body)
            self.sent_bytes += size
            self._turn_bytes -= size
            if out.finished is not None and out.finished in self._sendings:
                self._draining.append(self._sendings.pop(out.finished))
        if stream.is_closing():
            return  # connection_lost fails what has not left
        if stream.waiting:
            self._watch()
            return
        self._release()
        if self.connection.is_closed and self._turn is None:
            self._shut()

    def _transmit_soon(self) -> None:
        """Transmit when the loop has done what is due in this turn: messages of one turn leave together."""
        if self._turn is None and self._transport is not None:
            self._turn = self._loop.call_soon(self._next_turn)

    def _next_turn(self) -> None:
        self._turn = None
        self._turn_bytes = self._limits.turn_bytes
        self._transmit()

    def _queue(self, message: Message, body: memoryview, priority: int) -> Sending:
        sending = Sending(message, body, priority, self._loop.create_future())
        self.submit(sending)
        return sending

    def _release(self) -> None:
        """Give bodies back to their senders if the write buffer is empty."""
        if self._draining and self._transport is not None and not self._transport.waiting:
            drained, self._draining = self._draining, []
            for sending in drained:
                sending.finish()

    def _watch(self) -> None:
        """The peer must take something of what waits within stall_deadline_s; one timer for many waits in a row."""
        if self._stall is None:
            self._left_before = self.left_bytes
            self._stall = self._loop.call_later(self._limits.wire.stall_deadline_s, self._check_progress)

    def _check_progress(self) -> None:
        self._stall = None
        if self._transport is None or not self._transport.waiting:
            return
        if self.left_bytes > self._left_before:
            self._watch()
            return
        stall_s = self._limits.wire.stall_deadline_s
        waiting = self._transport.waiting
        self.close(CloseReason.OVERFLOW, f"the peer read nothing for {stall_s:g} s while {waiting} bytes waited")

    def _shut(self) -> None:
        """All was written: wait for the peer to close, or close at once if it did."""
        if self._transport is not None and not self._ended:
            self._ended = True
            self._transport.write_eof()

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
        if self._transport is not None and monotonic() - self._timer_due >= LATE_S:
            self.readable()  # this process stood still, so what came meanwhile lies unread
        now = monotonic()  # the loop's own clock moves in milliseconds under uvloop, too coarse for round trips
        due = self.connection.get_timer()
        if due is not None and due <= now:
            self.connection.handle_timer(now)
        self._beat()
