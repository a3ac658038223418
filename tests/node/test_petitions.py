"""Petitions: answered by the coordinator wherever they are asked, again where need be, and not for ever."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from p2pnn.cluster.petitions import Admit, MakeToken, Remove, encode
from p2pnn.errors import NotAllowedError, TimedOutError
from p2pnn.identity.tokens import VALID_S
from p2pnn.node import petitions as module
from p2pnn.node.door import BadToken
from p2pnn.wire.messages import Petition, Ruling
from tests.node.nodes import until
from tests.node.test_identity import coordinating, daemons, identity, joined, members, secured

pytestmark = pytest.mark.asyncio


async def test_many_at_once_on_all_nodes_are_all_decided(tmp_path: Path) -> None:
    async with daemons(*(secured(tmp_path, name) for name in "abc")) as (a, b, c):
        await joined(a, b, c)
        made = await asyncio.gather(*(identity(one).make_token(VALID_S) for one in (a, b, c) for _ in range(4)))
        held = {record.id for record in identity(a).token_records()}
        assert {token.id for token, _ in made} <= held


async def test_without_a_coordinator_it_ends_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DEADLINE_S", 0.5)
    async with daemons(secured(tmp_path, "a"), secured(tmp_path, "b")) as (a, b):
        await joined(a, b)
        await a.close("gone")
        with pytest.raises(TimedOutError, match=r"the cluster decided nothing in 0\.5 s: nobody coordinates"):
            await identity(b).make_token(VALID_S)


async def test_a_coordinator_answers_members_only_and_bounds_what_is_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with daemons(secured(tmp_path, "a"), secured(tmp_path, "b")) as (a, b):
        await joined(a, b)
        sent: list[Ruling] = []
        monkeypatch.setattr(a.post, "send", lambda node, message: sent.append(message))
        identity(a).petitions.asked(b.node, Petition(1, b"garbage"))
        await until(lambda: len(sent) == 1)
        assert "cannot be read" in sent[0].error
        assert not sent[0].again
        monkeypatch.setattr(module, "UNDER_WAY_MAX", 0)
        identity(a).petitions.asked(b.node, Petition(2, encode(Remove("b"))))
        assert sent[1].again
        assert members(a) == {"a", "b"}
        monkeypatch.undo()


async def test_wrong_tokens_are_told_apart_from_other_refusals(tmp_path: Path) -> None:
    async with daemons(secured(tmp_path, "a")) as (a,):
        await coordinating(a)
        key = identity(a).credentials.key.public.der
        with pytest.raises(BadToken, match="no such token"):
            await identity(a).petitions.ask(Admit("0" * 8, "0" * 32, key, "x", "192.0.2.1"))
        with pytest.raises(NotAllowedError, match="no public key"):
            await identity(a).petitions.ask(Admit("0" * 8, "0" * 32, b"key", "x", "192.0.2.2"))
        _, record = await identity(a).make_token(VALID_S)
        assert await identity(a).petitions.ask(MakeToken(record)) == b"", "asked twice, decided once"
