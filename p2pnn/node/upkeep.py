"""What a secured node sees to by itself: its certificate is renewed in time, a voter holds the authority's key and nobody
else does, and the members' addresses are remembered for the next start.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from p2pnn.cluster.petitions import Renew
from p2pnn.errors import P2pnnError, StorageError, UsageError
from p2pnn.identity.authority import Certificate
from p2pnn.node.identity import Identity
from p2pnn.node.storage import replace_file
from p2pnn.node.tasks import Tasks, in_thread
from p2pnn.types import Address, NodeId
from p2pnn.wire.messages import AuthorityWanted

log = logging.getLogger("p2pnn.identity")

ROUND_S: Final = 1.0
RENEW_AGAIN_S: Final = 600.0
FORMAT: Final = 1
FILE_BYTES_MAX: Final = 1 << 20


class Upkeep:
    """Call `start`, then `close`. addresses: of the members that are connected now, by id."""

    def __init__(self, identity: Identity, folder: Path, addresses: Callable[[], dict[NodeId, Address]]) -> None:
        self._identity = identity
        self._path = folder / "peers.json"
        self._addresses = addresses
        self._tasks = Tasks()
        self._known = load(self._path)
        self._renew_at = 0.0

    def known(self) -> tuple[Address, ...]:
        """Where members were last reached."""
        return tuple(dict.fromkeys(self._known.values()))

    def start(self) -> None:
        self._tasks.spawn(self._run())

    async def close(self) -> None:
        await self._tasks.close()

    async def _run(self) -> None:
        while True:
            try:
                self.tend_authority()
                await self.remember()
                await self.renew()
            except P2pnnError as error:
                log.warning("upkeep failed reason=%s", error)
            await asyncio.sleep(ROUND_S)

    def tend_authority(self) -> None:
        """A voter without the authority's key asks the others for it; who is none any more deletes it. Raises StorageError."""
        charter, credentials = self._identity.part.charter.committed, self._identity.credentials
        if charter is None:
            return
        me = self._identity.part.post.node
        if me in charter.voters and credentials.ca is None:
            for voter in charter.voters:
                if voter != me:
                    self._identity.part.post.send(NodeId(voter), AuthorityWanted())
        elif me not in charter.voters and charter.member(me) is not None and credentials.ca is not None:
            credentials.drop_ca()
            log.info("this node is no voter any more, and has deleted the authority's key")

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
        charter = self._identity.charter
        if charter is None:
            return
        members = set(charter.nodes())
        found = {node: address for node, address in (self._known | self._addresses()).items() if node in members}
        if found == self._known:
            return
        data = {"format": FORMAT, "peers": {node: str(address) for node, address in sorted(found.items())}}
        await in_thread(replace_file, self._path, json.dumps(data, indent=1).encode() + b"\n")
        self._known = found


def load(path: Path) -> dict[NodeId, Address]:
    """What the file says; nothing where it is missing or damaged, since it can be had anew from any member."""
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(FILE_BYTES_MAX))
        if found["format"] > FORMAT:
            raise ValueError(f"format {found['format']}")
        return {NodeId(str(node)): Address.parse(str(text)) for node, text in found["peers"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UsageError, StorageError) as error:
        log.warning("the members' addresses are forgotten file=%s reason=%s", path, error)
        return {}
