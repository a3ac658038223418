"""Addresses for the next start: kept whole, and nothing where the file cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from p2pnn.node.peers import PeersFile, load
from p2pnn.types import Address, NodeId


def test_a_file_that_is_damaged_or_newer_means_nothing_known(tmp_path: Path) -> None:
    file = tmp_path / "peers.json"
    assert load(file) == {}
    good = {"format": 1, "peers": {"a" * 32: "10.0.0.1:7700"}}
    file.write_text(json.dumps(good))
    assert load(file) == {NodeId("a" * 32): Address("10.0.0.1", 7700)}
    for text in ("", "[]", "{}", json.dumps(good | {"format": 2}), json.dumps(good | {"peers": {"a": ":"}})):
        file.write_text(text)
        assert load(file) == {}


@pytest.mark.asyncio
async def test_what_is_written_is_there_at_the_next_start(tmp_path: Path) -> None:
    one, where = PeersFile(tmp_path), Address("10.0.0.1", 7700)
    assert (one.addresses(), list(one.nodes())) == ((), [])
    async with one.lock:
        await one.replace({NodeId("a" * 32): where, NodeId("b" * 32): where})
    again = PeersFile(tmp_path)
    assert again.known == one.known
    assert again.addresses() == (where,)
