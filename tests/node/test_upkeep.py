"""A node sees to its certificate and to the addresses that it will need."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pnn.node.peers import PeersFile, load
from p2pnn.node.upkeep import Upkeep
from p2pnn.wire.messages import CharterWanted
from tests.node.lone import ME, Rest, charter
from tests.node.lone import node as lone
from tests.node.nodes import B, until
from tests.node.test_identity import daemons, identity, joined, linked, secured

pytestmark = pytest.mark.asyncio


async def test_a_certificate_is_renewed_when_a_third_is_left_and_links_stay(tmp_path: Path) -> None:
    async with daemons(*(secured(tmp_path, name) for name in "ab")) as (a, b):
        await joined(a, b)
        assert b.secured is not None
        first = identity(b).credentials.certificate
        assert first is not None
        await b.secured.upkeep.renew(first.renews_s - 1)
        assert identity(b).credentials.certificate == first
        await b.secured.upkeep.renew(first.renews_s + 1)
        second = identity(b).credentials.certificate
        assert second is not None
        assert second != first
        assert second.key == first.key
        assert linked(a, b)
        assert second.pem in (tmp_path / "b" / "credentials.pem").read_bytes()


async def test_where_members_are_is_written_down_and_removed_ones_are_forgotten(tmp_path: Path) -> None:
    async with daemons(*(secured(tmp_path, name) for name in "abc")) as (a, b, c):
        await joined(a, b, c)
        file = tmp_path / "a" / "peers.json"
        both = {b.node: b.address, c.node: c.address}
        await until(lambda: load(file) == both)
        await identity(a).remove("c")
        await until(lambda: load(file) == {b.node: b.address})


async def test_who_has_no_charter_yet_asks_whoever_it_has_a_link_to(tmp_path: Path) -> None:
    rest = Rest()
    one = lone(tmp_path, rest)
    upkeep = Upkeep(one, PeersFile(tmp_path))
    upkeep.ask_for_charter()
    assert {node for node, message in rest.sent if message == CharterWanted(0, 0)} == rest.peers
    rest.committed, rest.sent = charter(ME, B), []
    upkeep.ask_for_charter()
    assert rest.sent == []
    await one.close()
