"""One attempt to open a link.

It has two stages: connecting (nothing was said) and greeting (Hello was sent). The difference decides what happens
when the peer dials us at the same moment; see `admission`.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import Final

from p2pnn.transport.admission import Ours
from p2pnn.transport.limits import Limits
from p2pnn.transport.link import Link
from p2pnn.transport.sockets import is_loopback, resolve, why
from p2pnn.types import Address
from p2pnn.wire.events import Closed, Opened
from p2pnn.wire.messages import CloseReason

_REFUSED: Final[dict[int, str]] = {
    CloseReason.SELF: "it is this node itself",
    CloseReason.WRONG_CLUSTER: "wrong cluster",
    CloseReason.VERSION: "wrong version",
    CloseReason.REMOVED: "removed",
    CloseReason.NOT_MEMBER: "not a member",
    CloseReason.TOO_MANY: "it has too many links",
}


class Attempt:
    """One try to open a link to an address. open_link makes the protocol.

    secured: with TLS; without it, no connection leaves this machine.
    refused: every IP address behind it answered that nothing listens there.
    """

    def __init__(self, address: Address, open_link: Callable[[], Link], limits: Limits, secured: bool) -> None:
        self.address = address
        self.endpoint = address  # by IP address, once it is known
        self.link: Link | None = None
        self.abandoned = False
        self.refused = False
        self._open_link = open_link
        self._limits = limits
        self._secured = secured
        self._connecting: asyncio.Task[str] | None = None

    @property
    def greeting(self) -> bool:
        """TCP has connected, so Hello is sent or about to be; the answer is not here."""
        return self.link is not None and not self.link.greeted.done()

    @property
    def connecting(self) -> bool:
        return self.link is None and not self.abandoned

    async def run(self) -> Opened | Closed | str:
        """The greeting's outcome, or why there was no connection; the empty string when the attempt was abandoned."""
        self._connecting = asyncio.ensure_future(self._connect())
        try:
            trouble = await asyncio.shield(self._connecting)
            if self.link is None:
                return trouble
            return await asyncio.shield(self.link.greeted)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self.abandoned or (task is not None and task.cancelling()):
                raise
            return ""
        finally:
            self._stop()

    def abandon(self, text: str) -> None:
        """Give up: the peer's own attempt goes first. A link that is open stays."""
        self.abandoned = True
        if self.greeting and self.link is not None:
            self.link.close(CloseReason.REPLACED, text)
        self._stop()

    def _stop(self) -> None:
        """Nobody waits for the outcome any more."""
        if self.link is None and self._connecting is not None:
            self._connecting.cancel()
        elif self.greeting and self.link is not None:
            self.link.abort("nobody waits for this link any more")

    async def _connect(self) -> str:
        """Connect to the first IP address of the host that answers; the last one's trouble, or an empty string."""
        trouble, refusals = "no such host", list[bool]()
        try:
            async with asyncio.timeout(self._limits.connect_deadline_s):
                for endpoint in await resolve(self.address):
                    if not self._secured and not is_loopback(endpoint.host):
                        trouble = "not allowed: it is on another machine, and a plain node, without keys, dials this machine only"
                        continue
                    self.endpoint = endpoint
                    try:
                        sock = await _connected(endpoint)
                    except OSError as error:
                        trouble = why(error)
                        refusals.append(isinstance(error, ConnectionRefusedError))
                    else:
                        break
                else:
                    self.refused = bool(refusals) and all(refusals)
                    return trouble
        except OSError as error:
            return why(error)
        self.link = self._open_link()
        self.link.attach(sock)
        return ""


async def _connected(endpoint: Address) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (endpoint.host, endpoint.port))
    except BaseException:
        sock.close()
        raise
    return sock


def furthest(attempts: Sequence[Attempt]) -> Ours:
    """How far the best of several attempts towards one peer is."""
    if any(attempt.greeting for attempt in attempts):
        return Ours.GREETING
    return Ours.CONNECTING if any(attempt.connecting for attempt in attempts) else Ours.NONE


def trouble_of(outcome: Closed | str) -> str:
    """Why an attempt led to no link, as one clause."""
    if isinstance(outcome, str):
        return outcome
    known = _REFUSED.get(outcome.reason)
    if known == _REFUSED[CloseReason.SELF]:
        return known
    if known is not None:
        return f"{known}: {outcome.text}" if outcome.text else known
    return outcome.text or f"closed with reason {outcome.reason}"


def needs_a_person(outcome: Closed | str) -> bool:
    """Whether trying again soon is useless."""
    return isinstance(outcome, Closed) and outcome.reason in _REFUSED and outcome.reason != CloseReason.NOT_MEMBER
