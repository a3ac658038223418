"""The door of a secured node: who may have a link, as the charter says, and what is said to joiners.

Joiners are strangers until the coordinator has looked at their token, so what they can cost is bounded: how many at
once, how many from one address, how long each, and how often a wrong token is looked at (`identity.guesses`).
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from typing import Final

from p2pnn.cluster.charter import Charter
from p2pnn.cluster.petitions import Admit
from p2pnn.errors import NotAllowedError, P2pnnError
from p2pnn.identity.guesses import Guesses, group
from p2pnn.identity.keys import PublicKey
from p2pnn.node.tasks import Tasks
from p2pnn.transport.admission import Refuse
from p2pnn.transport.joining import Guest
from p2pnn.transport.secure import SecureStream
from p2pnn.types import NodeId
from p2pnn.wire.fields import HOST_CHARS_MAX
from p2pnn.wire.messages import CloseReason, Join, Joined, Offer

log = logging.getLogger("p2pnn.identity")

GUESTS_MAX: Final = 32
"""Joiners at once; each is a descriptor and 72 KiB, for 20 s at most."""

GUESTS_PER_HOST_MAX: Final = 8


class BadToken(NotAllowedError):
    """The coordinator knows no such token."""


class ClusterDoor:
    """charter: the committed one. vouches: before there is one, whether this node admitted ours. offer: what joiners are told
    first; None before the node has a cluster. ask: the coordinator, for a certificate; raises BadToken or P2pnnError."""

    def __init__(
        self,
        charter: Callable[[], Charter | None],
        vouches: Callable[[NodeId], bool],
        offer: Callable[[], Offer | None],
        ask: Callable[[Admit], Awaitable[bytes]],
        tasks: Tasks,
        told_removed: Callable[[str], None],
    ) -> None:
        self.told_removed = told_removed
        self._charter = charter
        self._vouches = vouches
        self._offer = offer
        self._ask = ask
        self._tasks = tasks
        self._guests: set[Guest] = set()
        self._guesses = Guesses()

    # --- transport.secure.Door

    def admits(self, key: PublicKey) -> Refuse | None:
        charter = self._charter()
        if charter is None:  # who was removed has a certificate as well, so that alone admits nobody
            if self._vouches(key.node):
                return None
            return Refuse(CloseReason.NOT_MEMBER, "this node has no charter yet, and links only with who admitted it")
        member = charter.member(key.node)
        if member is not None and member.fingerprint == key.fingerprint:
            return None
        if key.node in charter.removed:
            return Refuse(CloseReason.REMOVED, f"node {key.node[:8]} was removed from the cluster")
        return Refuse(CloseReason.NOT_MEMBER, f"the charter does not name node {key.node[:8]}, or not yet")

    def name_of(self, key: PublicKey) -> str:
        charter = self._charter()
        member = charter.member(key.node) if charter is not None else None
        return member.name if member is not None else ""

    def guest(self, stream: SecureStream, host: str) -> None:
        offer = self._offer()
        same = sum(group(guest.host) == group(host) for guest in self._guests)
        if offer is None or len(self._guests) >= GUESTS_MAX or same >= GUESTS_PER_HOST_MAX:
            stream.abort()
            return
        self._guests.add(Guest(stream, host, offer, self._asked, self._guests.discard))

    def dismiss(self) -> None:
        """End what is said with joiners now."""
        for guest in list(self._guests):
            guest.abort()

    # --- how

    def _asked(self, guest: Guest, join: Join) -> None:
        wait_s = self._guesses.wait_s(guest.host, asyncio.get_running_loop().time())
        if wait_s:
            guest.answer(Joined(error=too_soon(wait_s)))
            return
        self._tasks.spawn(self._answer(guest, join))

    async def _answer(self, guest: Guest, join: Join) -> None:
        try:
            petition = Admit(join.token, join.secret, join.key, join.name, guest.host[:HOST_CHARS_MAX])
            certificate = await self._ask(petition)
        except BadToken as error:
            self._guesses.wrong(guest.host, asyncio.get_running_loop().time())
            log.warning("joiner refused address=%s name=%s reason=%s", guest.host, join.name, error)
            guest.answer(Joined(error=str(error)))
        except P2pnnError as error:
            log.warning("joiner refused address=%s name=%s reason=%s", guest.host, join.name, error)
            guest.answer(Joined(error=str(error)))
        else:
            log.info("joiner admitted address=%s name=%s", guest.host, join.name)
            guest.answer(Joined(certificate))


def too_soon(wait_s: float) -> str:
    return f"too many wrong tokens came from this address, or from everywhere; try again in {math.ceil(wait_s)} s"
