"""An address that is dialled until it is forgotten: attempts with growing delays; and a peer's data link."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from random import Random
from typing import Protocol

from p2pnn.transport.attempt import Attempt, needs_a_person, trouble_of
from p2pnn.transport.limits import Limits
from p2pnn.transport.link import Link
from p2pnn.transport.peer import Peer
from p2pnn.types import Address, NodeId
from p2pnn.wire.events import Closed, Opened
from p2pnn.wire.messages import CloseReason

log = logging.getLogger("p2pnn.transport")


class Backoff:
    """Doubling delays, each drawn between half of itself and itself, so that peers do not dial in step."""

    def __init__(self, first_s: float, max_s: float, random: Random) -> None:
        self._first_s = first_s
        self._max_s = max_s
        self._random = random
        self._next_s = first_s

    def next_s(self) -> float:
        delay_s = self._next_s * (0.5 + self._random.random() / 2)
        self._next_s = min(self._next_s * 2, self._max_s)
        return delay_s

    def slow_down(self) -> None:
        """Only a person can mend what failed: try at the longest delay."""
        self._next_s = self._max_s

    def reset(self) -> None:
        self._next_s = self._first_s


class Owner(Protocol):
    """What dialling needs to know, and tells."""

    def open_control(self) -> Link: ...
    def tenant(self, address: Address, node: NodeId | None) -> NodeId | None: ...
    def dial_reached(self, address: Address, node: NodeId) -> None: ...
    def dial_failed(self, address: Address, trouble: str, refused: bool) -> None: ...


class Dialled:
    """One address. Cancel `task` to forget it; a link that is open stays.

    node: who answered there last. attempt: the one under way. wake: set it whenever a peer was lost.
    """

    def __init__(self, address: Address, owner: Owner, limits: Limits, random: Random, secured: bool) -> None:
        self.address = address
        self.node: NodeId | None = None
        self.attempt: Attempt | None = None
        self.wake = asyncio.Event()
        self._trouble = ""  # the last one; a log need not repeat it every five seconds
        self._owner = owner
        self._limits = limits
        self._secured = secured
        self._backoff = Backoff(limits.redial_first_s, limits.redial_max_s, random)
        self.task = asyncio.ensure_future(self._keep_dialling())

    def reached(self, node: NodeId) -> None:
        """`node` answered here."""
        self.node = node
        self._trouble = ""
        self._owner.dial_reached(self.address, node)

    def settled(self) -> bool:
        """Whether a control link to the node behind this address is open; tells who it is when that is new."""
        tenant = self._owner.tenant(self.address, self.node)
        if tenant is not None and tenant != self.node:
            self.reached(tenant)
        return tenant is not None

    async def _keep_dialling(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if not self.settled():
                await self._try()
            since = loop.time()
            while self.settled():
                self.wake.clear()
                await self.wake.wait()
            if loop.time() - since >= self._limits.redial_max_s:
                self._backoff.reset()  # a link that lived; one that breaks at once is no success
            await asyncio.sleep(self._backoff.next_s())

    async def _try(self) -> None:
        self.attempt = attempt = Attempt(self.address, self._owner.open_control, self._limits, self._secured)
        try:
            outcome = await attempt.run()
        finally:
            self.attempt = None
        if isinstance(outcome, Opened) or attempt.abandoned:
            return
        if isinstance(outcome, Closed) and outcome.reason == CloseReason.REPLACED:
            return  # the peer's own link, which opens at this moment, stays
        if needs_a_person(outcome):
            self._backoff.slow_down()
        trouble = trouble_of(outcome)
        if trouble != self._trouble:
            log.info("dial failed address=%s reason=%s", self.address, trouble)
        self._trouble = trouble
        self._owner.dial_failed(self.address, trouble, attempt.refused)


def towards(home: Address, node: str, dialled: Iterable[Dialled]) -> list[Attempt]:
    """The attempts of these that lead to an address, or to a node that has answered there before."""
    attempts = [(one.node, one.attempt) for one in dialled if one.attempt is not None]
    return [a for known, a in attempts if home in (a.endpoint, a.address) or known == node]


async def dial_data(peer: Peer, open_link: Callable[[], Link], limits: Limits, random: Random, secured: bool) -> None:
    """Open a data link, or close the control link. The peer's may come first; then it cancels this."""
    loop = asyncio.get_running_loop()
    backoff = Backoff(limits.redial_first_s / 4, limits.redial_max_s / 4, random)
    deadline = loop.time() + limits.data_deadline_s
    while peer.data is None and not peer.gone:
        peer.data_attempt = attempt = Attempt(peer.identity.address, open_link, limits, secured)
        try:
            outcome = await attempt.run()
        finally:
            peer.data_attempt = None
        if isinstance(outcome, Opened):
            return
        if loop.time() >= deadline:
            trouble = trouble_of(outcome)
            peer.control.close(CloseReason.FAILED, f"no data link could be opened: {trouble}")
            return
        await asyncio.sleep(backoff.next_s())
