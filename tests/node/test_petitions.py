"""Petitions: answered by the coordinator wherever they are asked, again where need be, and not for ever."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from p2pnn.cluster.charter import Charter, CharterMember, Version
from p2pnn.cluster.petitions import Admit, Change, MakeToken, Remove, encode
from p2pnn.errors import NotAllowedError, ProposalRefused, TimedOutError
from p2pnn.identity.authority import Authority
from p2pnn.identity.keys import NodeKey
from p2pnn.identity.tokens import VALID_S, create, revoked
from p2pnn.node import petitions as module
from p2pnn.node.door import BadToken
from p2pnn.node.petitions import Petitions
from p2pnn.node.tasks import Tasks
from p2pnn.types import NodeId
from p2pnn.wire.messages import Message, Petition, Ruling
from tests.node.nodes import A, B, post, until
from tests.node.test_identity import coordinating, daemons, identity, joined, members, secured

pytestmark = pytest.mark.asyncio


async def test_a_door_counts_a_guess_by_the_rulings_flag_and_not_by_its_words() -> None:
    charter = SimpleNamespace(coordinator=B)
    here, outside = post(A)
    found = Petitions(here, cast(Any, charter), lambda: None, Tasks())
    admit = Admit("0" * 8, "0" * 32, b"key", "x", "192.0.2.1")
    for flag, words, kind in ((True, "no luck", BadToken), (False, "bad token weather", NotAllowedError)):
        asking = asyncio.ensure_future(found.ask(admit))
        await until(lambda flag=flag: len(outside.of(Petition)) == 2 - flag)
        found.answered(B, Ruling(outside.of(Petition)[-1].request, error=words, bad_token=flag))
        with pytest.raises(NotAllowedError, match=words) as caught:
            await asking
        assert type(caught.value) is kind


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
        send = a.post.send  # what else a says, b must hear

        def keep(node: NodeId, message: Message) -> None:
            if isinstance(message, Ruling):
                sent.append(message)
            else:
                send(node, message)

        monkeypatch.setattr(a.post, "send", keep)
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


class Coordinator:
    """A charter that this node coordinates: what is proposed holds at once. refuses: proposals that are refused, each after what
    `between` does."""

    def __init__(self, charter: Charter) -> None:
        self.committed = charter
        self.coordinator, self.coordinates = A, True
        self.proposed: list[Change] = []
        self.refuses = 0
        self.between = lambda: None
        self.petitions: Petitions | None = None

    def propose_members(self, change: Change) -> Version:
        if self.refuses:
            self.refuses -= 1
            self.between()
            raise ProposalRefused("another change is under way")
        self.proposed.append(change)
        self.committed = self.committed.successor()
        assert self.petitions is not None
        asyncio.get_running_loop().call_soon(self.petitions.committed, self.committed)
        return self.committed.version


def coordinator(ca: Any, **fields: Any) -> tuple[Petitions, Coordinator]:
    members = tuple(CharterMember(node, node * 2, node[0]) for node in (A, B))
    charter = Coordinator(Charter(1, "c", 1, 1, (A,), members, **fields))
    found = charter.petitions = Petitions(post(A)[0], cast(Any, charter), ca, Tasks())
    return found, charter


async def test_a_token_that_is_revoked_while_it_is_looked_at_admits_nobody() -> None:
    token, record = create("ab" * 32, "a", time.time(), VALID_S, os.urandom)
    found, charter = coordinator(lambda: Authority.found(time.time()), tokens=(record,))
    admit = Admit(token.id, token.secret, NodeKey.generate().public.der, "x", "192.0.2.1")

    def revoke() -> None:
        charter.committed = charter.committed.successor(tokens=revoked((record,), record.id))

    charter.refuses, charter.between = 1, revoke
    with pytest.raises(BadToken, match="it was revoked"):
        await found.ask(admit)
    assert charter.proposed == []
    assert [source.wrong for source in found._guesses._sources.values()] == [1], "counted once"


async def test_a_member_is_removed_only_after_a_while_in_which_it_can_give_the_authoritys_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[SimpleNamespace] = []
    found, charter = coordinator(lambda: given[0] if given else None)
    asking = asyncio.ensure_future(found.ask(Remove("b")))
    for _ in range(5):
        await asyncio.sleep(0)
    assert charter.proposed == []
    given.append(SimpleNamespace())
    await asking
    assert [change.dismiss for change in charter.proposed] == [(B,)]
    given.clear()
    monkeypatch.setattr(module, "KEY_S", 0.0)  # it gives none
    await found.ask(Remove("b"))
    assert len(charter.proposed) == 2
