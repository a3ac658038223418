"""A node that was started with a token: it goes on trying, and says by which address it is not joined, and why."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pnn.api import views
from p2pnn.errors import UsageError
from p2pnn.identity.tokens import Token
from p2pnn.node import arrival as module
from p2pnn.node.daemon import Daemon
from p2pnn.types import Address
from tests.node.nodes import until
from tests.node.test_identity import daemons, identity, joined, linked, secured, token_of

pytestmark = pytest.mark.asyncio
CLOSED = Address("127.0.0.1", 1)
TOKEN = f"p2pnn1.{'ab' * 32}.01234567.{'cd' * 16}"


def reasons(daemon: Daemon) -> list[str]:
    return [row["reason"] for row in views.peers(daemon) if row["state"] == "unreachable"]


async def test_a_token_that_is_none_is_told_and_a_good_one_joins_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AGAIN_S", 0.05)
    async with daemons(secured(tmp_path, "a")) as (a,):
        good = await token_of(a)
        wrong = Token(good.cluster, "0" * 8, "0" * 32)
        async with daemons(secured(tmp_path, "b", token=str(wrong), join=(a.address, CLOSED))) as (b,):
            await until(lambda: any("bad token" in reason for reason in reasons(b)))
            assert reasons(b)[1] == "refused: nothing listens there"
        async with daemons(secured(tmp_path, "c", token=str(good), join=(CLOSED, a.address))) as (c,):
            await until(lambda: linked(a, c))
            await until(lambda: not reasons(c))


async def test_whom_a_person_has_joined_by_another_address_does_not_go_on_trying(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AGAIN_S", 0.05)
    async with daemons(secured(tmp_path, "a")) as (a,):
        good = await token_of(a)
        async with daemons(secured(tmp_path, "b", token=str(good), join=(CLOSED,))) as (b,):
            await until(lambda: reasons(b) == ["refused: nothing listens there"])
            await identity(b).join(good, [a.address])
            await until(lambda: linked(a, b))
            await until(lambda: not reasons(b))


async def test_a_token_without_an_address_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs an address to join by") as caught:
        await Daemon(secured(tmp_path, "x", token=TOKEN)).start()
    assert caught.value.setting == "token"


async def test_a_member_starts_with_a_token_of_another_cluster_and_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As a service whose credential is that of a cluster that it has left."""
    async with daemons(secured(tmp_path, "a")) as (a,):
        async with daemons(secured(tmp_path, "b")) as (b,):
            await joined(a, b)
        async with daemons(secured(tmp_path, "b", token=TOKEN, join=(a.address,))) as (b,):
            assert b.secured is not None
            assert b.secured.arrival is None
            await until(lambda: linked(a, b))
    assert "the token is of another cluster than this node's, and is not used" in caplog.text
