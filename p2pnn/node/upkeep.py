"""What a secured node sees to by itself: its certificate is renewed in time, a voter holds the authority's key and nobody
else does, and the members' addresses are remembered for the next start.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

from p2pnn.cluster.charter import NOTHING
from p2pnn.cluster.petitions import Renew
from p2pnn.errors import P2pnnError
from p2pnn.identity.authority import Certificate
from p2pnn.node.identity import Identity
from p2pnn.node.peers import PeersFile
from p2pnn.node.tasks import Tasks
from p2pnn.wire.messages import CharterWanted

log = logging.getLogger("p2pnn.identity")

ROUND_S: Final = 1.0
RENEW_AGAIN_S: Final = 600.0


class Upkeep:
    """Call `start`, then `close`."""

    def __init__(self, identity: Identity, peers: PeersFile) -> None:
        self._identity = identity
        self._peers = peers
        self._tasks = Tasks()
        self._renew_at = 0.0

    def start(self) -> None:
        self._tasks.spawn(self._run())

    async def close(self) -> None:
        await self._tasks.close()

    async def _run(self) -> None:
        while True:
            try:
                self._identity.custody.tend()
                self.ask_for_charter()
                await self.remember()
                await self.renew()
            except P2pnnError as error:
                log.warning("upkeep failed reason=%s", error)
            await asyncio.sleep(ROUND_S)

    def ask_for_charter(self) -> None:
        """A node that has joined gets its first charter from the member that admitted it, which need not be the coordinator."""
        part = self._identity.part
        if self._identity.charter is None:
            for node in self._identity.reached():
                part.post.send(node, CharterWanted(*NOTHING))

    async def renew(self, now: float | None = None) -> None:
        """Ask for the next certificate when a third of this one is left. now: seconds since 1970. Raises P2pnnError."""
        certificate = self._identity.credentials.certificate
        now = time.time() if now is None else now
        charter, me = self._identity.charter, self._identity.part.post.node
        if certificate is None or now < max(certificate.renews_s, self._renew_at):
            return
        if charter is None or charter.member(me) is None or self._identity.removed:
            return
        self._renew_at = now + RENEW_AGAIN_S
        await self._identity.take(Certificate(await self._identity.petitions.ask(Renew(certificate.key.der))))
        log.info("certificate renewed")

    async def remember(self) -> None:
        """Write down where the members are, if that has changed; those that are no members are forgotten. Raises StorageError."""
        async with self._peers.lock:
            charter = self._identity.charter
            if charter is None:
                return  # before a node that has joined has one, the file names who vouched for it
            members, reached = set(charter.nodes()), self._peers.known | self._identity.reached()
            await self._peers.replace({node: address for node, address in reached.items() if node in members})
