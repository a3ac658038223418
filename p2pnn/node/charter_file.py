"""The file `charter` in the state folder: term, vote and charter (`cluster.durable`), always found old or new, whole.

Where it is damaged or newer the daemon does not start: a node that forgets its vote votes twice. After a recovery the
former cluster's charter lies beside it, as `charter.<cluster id>`.
"""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass
from pathlib import Path

from p2pnn.cluster import durable, recovery
from p2pnn.cluster.charter import CharterMember, found
from p2pnn.cluster.durable import Durable
from p2pnn.data.blobs import storage_error
from p2pnn.identity.tokens import TokenRecord
from p2pnn.node.storage import replace_file
from p2pnn.types import NodeId

log = logging.getLogger("p2pnn.charter")


@dataclass(frozen=True, slots=True)
class Founding:
    """How this node founds a cluster. tokens: by which others join; of a secured cluster."""

    founder: CharterMember
    tokens: tuple[TokenRecord, ...] = ()


class CharterFile:
    """Blocking: all but `load`, which runs before anything else, belong into threads. They raise StorageError."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "charter"

    def load(self, founding: Founding | None) -> Durable:
        """What the file holds, or a new state; the charter of a cluster that is founded is on the disk before it is used.

        founding: None where this node shall not found one. Raises CharterError for a file that is damaged or newer.
        """
        try:
            for torn in self._path.parent.glob(f".{self._path.name}.*"):
                torn.unlink(missing_ok=True)
            data = self._path.read_bytes()
        except FileNotFoundError:
            if founding is None:
                return Durable()
            state = Durable(charter=found(secrets.token_hex(8), founding.founder, founding.tokens))
            self.replace(state)
            return state
        except OSError as error:
            raise storage_error(error, self._path) from error
        return durable.decode(data, str(self._path))

    @property
    def exists(self) -> bool:
        """Whether this node has founded or joined a cluster."""
        return self._path.exists()

    @property
    def is_recovered(self) -> bool:
        """Whether this cluster was begun anew from the charter of another."""
        return any(self._path.parent.glob(f"{self._path.name}.*"))

    def replace(self, state: Durable) -> None:
        replace_file(self._path, durable.encode(state))

    def forget(self) -> None:
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            raise storage_error(error, self._path) from error

    def begin_anew(self, node: NodeId, old: str) -> Durable:
        """Put the charter of a new cluster, whose one member is `node`, in the place of that of cluster `old`, and keep that.

        Raises CharterError for a file that is damaged or newer.
        """
        try:
            data = self._path.read_bytes()
        except OSError as error:
            raise storage_error(error, self._path) from error
        state = recovery.recovered(durable.decode(data, str(self._path)), node, secrets.token_hex(8))
        replace_file(self._path.with_name(f"{self._path.name}.{old}"), data)
        self.replace(state)
        return state
