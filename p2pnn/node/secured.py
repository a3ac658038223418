"""What makes a node a secured one, put together in the order in which it is needed: credentials, founding, joining at the start.

A plain node imports none of this.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Final

from p2pnn.config import NodeConfig
from p2pnn.errors import UsageError
from p2pnn.identity.tokens import Token
from p2pnn.node.arrival import Arrival
from p2pnn.node.charter_file import CharterFile, Founding
from p2pnn.node.credentials import Credentials
from p2pnn.node.identity import Identity
from p2pnn.node.peers import PeersFile
from p2pnn.node.storage import Storage
from p2pnn.node.upkeep import Upkeep
from p2pnn.types import Address

JOURNAL: Final = "JOURNAL_STREAM"
"""Set by systemd, to device:inode of the journal's stream, for what writes there; a desktop's terminals inherit it and do not."""


@dataclass(slots=True)
class Secured:
    """identity, upkeep, and arrival where a token was given that is of another cluster.

    founds: whether to found a cluster, with `founding`, where the state folder has no charter. joins: which addresses to dial
    from the start.
    """

    identity: Identity
    upkeep: Upkeep
    arrival: Arrival | None
    founding: Founding
    founds: bool
    joins: tuple[Address, ...]

    async def start(self) -> None:
        """Raises UsageError where the token asks for what cannot be."""
        if self.arrival is not None and not self.arrival.start():
            self.arrival = None
        self.upkeep.start()

    async def close(self) -> None:
        if self.arrival is not None:
            await self.arrival.close()
        await self.upkeep.close()
        await self.identity.close()


def open_secured(config: NodeConfig, storage: Storage, software: str) -> Secured:
    """Raises StorageError for credentials that cannot be used, UsageError for a configuration that contradicts them."""
    key = storage.key
    assert key is not None, "a secured node's folder has a key"
    credentials = Credentials(storage.root, key)
    fresh = credentials.certificate is None
    if fresh and config.join and not config.token:
        raise UsageError(
            f"to join {config.join[0]} a token is needed: `p2pnn token create` on a member prints the line to type here; for a"
            " mesh without keys, on this machine only, add --plain",
            setting="join",
        )
    token = Token.parse(config.token) if config.token else None
    peers = PeersFile(storage.root)
    identity = Identity(config.name, software, key, credentials, peers)
    upkeep = Upkeep(identity, peers)
    known = peers.addresses()
    founds = fresh or (credentials.ca is not None and not known)
    first = founds and not CharterFile(storage.root).exists  # also after a start that came no further than its port
    listens = config.ready_fd is None and not _writes_to_journal()
    founding = identity.found(announces=first and token is None and listens)
    arrives = token is not None and (token.cluster != credentials.cluster or credentials.has_ended(time.time()))
    arrival = Arrival(identity, token, config.join) if token is not None and arrives else None
    joins = known if arrives else tuple(dict.fromkeys([*config.join, *known]))
    return Secured(identity, upkeep, arrival, founding, founds, joins)


def _writes_to_journal() -> bool:
    """Whether standard output goes to systemd's journal, where a token would stay. Source: systemd.exec(5)."""
    try:
        found = os.fstat(1)
    except OSError:
        return False
    return os.environ.get(JOURNAL, "") == f"{found.st_dev}:{found.st_ino}"
