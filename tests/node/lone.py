"""One identity without a network: the rest of its node is a record of what it was told to do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from p2pnn.cluster.charter import Charter, CharterMember
from p2pnn.errors import StorageError
from p2pnn.identity.authority import Authority
from p2pnn.identity.keys import NodeKey
from p2pnn.identity.tokens import Token
from p2pnn.node import identity as module
from p2pnn.node.credentials import Credentials
from p2pnn.node.identity import Identity
from p2pnn.node.links import Post
from p2pnn.node.peers import PeersFile
from p2pnn.types import Address, NodeId
from tests.node.nodes import Recorder

THERE = Address("192.0.2.7", 7700)
KEY, VOUCHER = NodeKey.generate(), NodeKey.generate()
ME = KEY.public.node


class Rest(Recorder):
    """The rest of the node, as identity uses it: says in `calls` what was done. committed, held: of the charter. gate: `forget`
    waits for it. fails: `forget` does."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.expelled: list[NodeId] = []
        self.committed: Charter | None = None
        self.held: Charter | None = None
        self.coordinator: NodeId | None = None
        self.gate: asyncio.Event | None = None
        self.fails = False

    def expel(self, node: NodeId, text: str) -> None:
        self.expelled.append(node)

    def adopt(self, security: object, cluster: str, moves: bool) -> None:
        self.calls.append("adopt, no link stays" if moves else "adopt")

    def join(self, addresses: Sequence[Address]) -> None:
        self.calls.append(f"dial {addresses[0]}")

    async def stand_still(self) -> None:
        self.committed = None
        self.calls.append("stand still")

    async def forget(self) -> None:
        self.calls.append("forget")
        if self.gate is not None:
            await self.gate.wait()
        if self.fails:
            raise StorageError("the disk is full")

    def start(self) -> None:
        self.calls.append("start")


def node(folder: Path, rest: Rest, founded_s: float | None = None) -> Identity:
    """Of a cluster of its own, with the charter that `rest` holds."""
    credentials = Credentials(folder, KEY)
    (folder / "key.pem").write_bytes(KEY.pem)
    credentials.found(time.time() if founded_s is None else founded_s)
    one = Identity("me", "p2pnn test", KEY, credentials, PeersFile(folder))
    post = Post(ME, "me", rest, lambda node, message: None)
    one.attach(post, cast(Any, rest), cast(Any, rest), cast(Any, rest), lambda: "")
    return one


def charter(*nodes: str, voters: Sequence[str] = (), revision: int = 1) -> Charter:
    members = tuple(CharterMember(one, KEY.public.fingerprint if one == ME else one * 2, one[:2]) for one in nodes)
    return Charter(1, "c", 1, revision, tuple(voters or nodes[:1]), members)


def admitting(monkeypatch: pytest.MonkeyPatch, authority: Authority) -> Token:
    """Have every address admit this node to the authority's cluster."""
    issued = authority.issue(KEY.public, time.time())

    async def knock(*args: object) -> tuple[object, ...]:
        return issued, authority.certificate, VOUCHER.public

    monkeypatch.setattr(module, "knock", knock)
    return Token(authority.certificate.digest, "0" * 8, "0" * 32)
