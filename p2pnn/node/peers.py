"""The file `peers.json` in the state folder: where members were last reached, for the next start.

It can be had anew from any member, so what is damaged is forgotten. Only of a node that has joined, and has no charter yet, is
it more: then it names the member that vouched for the cluster, the only one that the node links with (`node.door`).
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

from p2pnn.errors import StorageError, UsageError
from p2pnn.node.storage import replace_file
from p2pnn.node.tasks import in_thread
from p2pnn.types import Address, NodeId

log = logging.getLogger("p2pnn.identity")

FORMAT: Final = 1
FILE_BYTES_MAX: Final = 1 << 20


class PeersFile:
    """known: addresses by node, as the file has them. Writes happen one at a time, while `lock` is held."""

    def __init__(self, folder: Path) -> None:
        self.lock = asyncio.Lock()
        self._path = folder / "peers.json"
        self.known = load(self._path)

    def addresses(self) -> tuple[Address, ...]:
        return tuple(dict.fromkeys(self.known.values()))

    def nodes(self) -> Collection[NodeId]:
        return self.known.keys()

    async def replace(self, found: Mapping[NodeId, Address]) -> None:
        """To be called with `lock` held. Raises StorageError."""
        if found == self.known:
            return
        data = {"format": FORMAT, "peers": {node: str(address) for node, address in sorted(found.items())}}
        await in_thread(replace_file, self._path, json.dumps(data, indent=1).encode() + b"\n")
        self.known = dict(found)


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
