"""A linked peer: its control link, its data link on demand, and the bodies that wait for one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Generator
from typing import Any

from p2pnn.errors import LocalProtocolError, PeerGone
from p2pnn.transport.attempt import Attempt
from p2pnn.transport.events import LinkSnapshot, PeerIdentity
from p2pnn.transport.limits import Limits
from p2pnn.transport.link import Link
from p2pnn.transport.sending import Sending
from p2pnn.types import NodeId
from p2pnn.wire.messages import LinkKind, Message


class Peer:
    """From the control link's opening to its end.

    session: what data links must name. dial_data: starts a task that opens a data link or gives the peer up; called when
    a body waits and there is no link.
    """

    def __init__(
        self,
        identity: PeerIdentity,
        control: Link,
        session: str,
        limits: Limits,
        dial_data: Callable[[Peer], asyncio.Task[None]],
    ) -> None:
        self.identity = identity
        self.control = control
        self.session = session
        self.data: Link | None = None
        self.data_attempt: Attempt | None = None
        self.gone = ""
        self._limits = limits
        self._dial_data = dial_data
        self._dialling: asyncio.Task[None] | None = None
        self._waiting: deque[Sending] = deque()

    @property
    def node(self) -> NodeId:
        return self.identity.node

    def start_body(self, message: Message, body: memoryview, priority: int) -> Leaving | None:
        """None when the body has left; otherwise await what is returned. Raises PeerGone, LocalProtocolError."""
        if self.gone:
            raise PeerGone(self.gone)
        link = self.data
        waiting = len(self._waiting) + (link.bodies if link is not None else 0)
        if waiting >= self._limits.bodies_max:
            raise LocalProtocolError(
                f"{waiting} bodies wait for node {self.identity.name!r}; the limit is {self._limits.bodies_max}"
            )
        if link is None or not link.is_open:
            return Leaving(self, self._wait_for_link(message, body, priority))
        sending = link.send_body(message, body, priority)
        return None if sending is None else Leaving(self, sending)

    async def wait(self, sending: Sending) -> None:
        try:
            await asyncio.shield(sending.done)
        except asyncio.CancelledError:
            await self._give_up(sending)
            raise

    def recall(self, sending: Sending) -> None:
        if sending in self._waiting:
            self._waiting.remove(sending)
        elif not sending.done.done() and sending.link is not None and not sending.link.withdraw(sending):
            sending.link.copy(sending)
        sending.finish()

    def data_opened(self, link: Link) -> None:
        """A data link is there: feed it what waits."""
        self.data = link
        if self._dialling is not None and self._dialling is not asyncio.current_task():
            self._dialling.cancel()
        self._dialling = None
        while self._waiting:
            sending = self._waiting.popleft()
            try:
                link.submit(sending)
            except LocalProtocolError as error:
                if not sending.done.done():
                    sending.done.set_exception(error)

    def end(self, reason: str, reset: bool) -> None:
        """The control link is gone: everything that waits fails. reset: the data link goes at once, without a word."""
        self.gone = reason
        if self._dialling is not None:
            self._dialling.cancel()
            self._dialling = None
        if self.data is not None and reset:
            self.data.abort(reason)
        while self._waiting:
            self._waiting.popleft().fail(reason)

    def snapshot(self) -> tuple[LinkSnapshot, ...]:
        links = (self.control,) if self.data is None else (self.control, self.data)
        return tuple(
            LinkSnapshot(
                node=self.node,
                name=self.identity.name,
                kind=link.kind or LinkKind.CONTROL,
                address=self.identity.address,
                dialled=link.dialled,
                round_trip_s=link.connection.rtt_s,
                queued=link.connection.queued_messages + (len(self._waiting) if link is self.data else 0),
                received_bytes=link.received_bytes,
                sent_bytes=link.sent_bytes,
            )
            for link in links
        )

    def _wait_for_link(self, message: Message, body: memoryview, priority: int) -> Sending:
        sending = Sending(message, body, priority, asyncio.get_running_loop().create_future())
        self._waiting.append(sending)
        if self._dialling is None:
            self._dialling = self._dial_data(self)
        return sending

    async def _give_up(self, sending: Sending) -> None:
        """The caller was cancelled, and its memory must be free when this returns.

        A body of which nothing left is withdrawn. One that has begun cannot be cut short without breaking the stream, so it
        may go on while its bytes leave; after cancel_grace_s in which none left, after cancel_max_s in all, or when cancelled
        again, the link is reset: other jobs may be using it.
        """
        if sending in self._waiting:
            self._waiting.remove(sending)
            return
        link = sending.link
        if link is None or sending.done.done() or link.withdraw(sending):
            _forget_outcome(sending.done)
            return
        try:
            async with asyncio.timeout(self._limits.cancel_max_s):
                before = -1
                while not sending.done.done() and link.left_bytes > before:
                    before = link.left_bytes
                    await asyncio.wait([sending.done], timeout=self._limits.cancel_grace_s)
        except TimeoutError:
            pass
        finally:
            if not sending.done.done():
                link.abort("a body was given up in the middle")
                await asyncio.wait([sending.done])
            _forget_outcome(sending.done)


class Leaving:
    """A body that has not left whole: await it, and its memory is free. That raises PeerGone.

    A task that awaits it must not be cancelled before its first step: then nobody would see to the body.
    """

    def __init__(self, peer: Peer, sending: Sending) -> None:
        self._peer, self._sending = peer, sending

    def __await__(self) -> Generator[Any, None, None]:
        return self._peer.wait(self._sending).__await__()

    def recall(self) -> None:
        """The body's memory is free when this returns: nobody wants it any more, or not soon enough.

        Where nothing of it has left it never will; what has begun cannot be cut short, so the rest leaves from a copy."""
        self._peer.recall(self._sending)


def _forget_outcome(done: asyncio.Future[None]) -> None:
    if done.done() and not done.cancelled():
        done.exception()
