"""A node that was started with a token joins by itself: it tries until it is a member, or until the token cannot be good
any more.

For machines that nobody sits at: a service whose configuration names peers, and whose token is a credential of systemd.
A node that is a member of the token's cluster already has nothing to do, so the token may stay where it is.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from p2pnn.errors import P2pnnError, UsageError
from p2pnn.identity.tokens import Token
from p2pnn.node.identity import Identity, NotJoined
from p2pnn.node.tasks import Tasks
from p2pnn.types import Address

log = logging.getLogger("p2pnn.identity")

AGAIN_S: Final = 3.0
AGAIN_MAX_S: Final = 60.0
"""Also after a refused token: a coordinator may not have heard of it yet, and each try costs it a wait (`identity.guesses`)."""


@dataclass(frozen=True, slots=True)
class Unjoined:
    """An address by which this node is not joined, and why."""

    address: Address
    reason: str
    since: float


class Arrival:
    """Call `start`, then `close`."""

    def __init__(self, identity: Identity, token: Token, addresses: Sequence[Address]) -> None:
        self.unjoined: tuple[Unjoined, ...] = ()
        self._identity = identity
        self._token = token
        self._addresses = tuple(addresses)
        self._tasks = Tasks()

    def start(self) -> bool:
        """False where this node stays in its own cluster: another one's token, left over or not, keeps nobody from starting.

        Raises UsageError for a token without an address.
        """
        elsewhere = self._token.cluster != self._identity.credentials.cluster
        if elsewhere and (why := self._identity.cannot_leave()):
            log.warning("the token is of another cluster than this node's, and is not used: %s", why)
            self._identity.part.members.join(self._addresses)
            return False
        if not self._addresses:
            raise UsageError(
                "a token needs an address to join by: --join HOST:PORT, as `p2pnn token create` shows",
                setting="token",
            )
        self._tell(["connecting"] * len(self._addresses))
        self._tasks.spawn(self._run())
        return True

    async def close(self) -> None:
        await self._tasks.close()

    async def _run(self) -> None:
        pause_s = AGAIN_S
        while not self._identity.has_joined(self._token):  # or a person has joined it by another address
            try:
                await self._identity.join(self._token, self._addresses)
                break
            except P2pnnError as error:
                self._tell(error.reasons if isinstance(error, NotJoined) else [str(error)] * len(self._addresses))
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, AGAIN_MAX_S)
        self.unjoined = ()

    def _tell(self, reasons: Sequence[str]) -> None:
        now, before = time.monotonic(), {one.address: one for one in self.unjoined}
        self.unjoined = tuple(
            Unjoined(address, reason, before[address].since if address in before else now)
            for address, reason in zip(self._addresses, reasons, strict=True)
        )
