"""The conversation with a joiner: the secret goes to a member of the token's cluster and to nobody else."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from pathlib import Path

import pytest

from p2pnn.errors import NotAllowedError, P2pnnError
from p2pnn.identity.authority import SKEW_S, Authority, Certificate
from p2pnn.identity.keys import NodeKey, PublicKey
from p2pnn.identity.tokens import Token, create
from p2pnn.transport import joining
from p2pnn.transport.joining import Guest, knock
from p2pnn.transport.secure import SecureStream
from p2pnn.types import Address
from p2pnn.wire.codec import encode
from p2pnn.wire.frame import encode_frame
from p2pnn.wire.messages import Close, CloseReason, Join, Joined, Offer
from tests.transport.harness import condition, on_both_loops
from tests.transport.test_secure import AUTHORITY, OTHER, Door, SecureNode, running

KEY = NodeKey.generate()
NOW = time.time()


class Porter(Door):
    """A door that offers its cluster and answers with what it is told to."""

    def __init__(self, authority: Authority, answer: Joined | None) -> None:
        super().__init__()
        self.authority = authority
        self.reply = answer
        self.asked: list[Join] = []
        self.ended = 0

    def guest(self, stream: SecureStream, host: str) -> None:
        Guest(stream, host, Offer(self.authority.certificate.der), self._asked, self._ended)

    def _asked(self, guest: Guest, join: Join) -> None:
        self.asked.append(join)
        if self.reply is not None:
            guest.answer(self.reply)

    def _ended(self, guest: Guest) -> None:
        self.ended += 1


def token(authority: Authority = AUTHORITY) -> Token:
    return create(authority.certificate.digest, "a", NOW, 3600, os.urandom)[0]


def member(authority: Authority, answer: Joined | None, offers: Authority | None = None) -> tuple[SecureNode, Porter]:
    node = SecureNode(Path.cwd(), "m", authority)
    porter = Porter(offers or authority, answer)
    node.security.door = porter
    return node, porter


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


async def ask(address: Address, said: Token, now: float = NOW) -> tuple[Certificate, Certificate, PublicKey]:
    return await knock(address, said, KEY.public, "joiner", "p2pnn test", now)


@on_both_loops
async def test_a_joiner_with_the_right_token_gets_its_certificate() -> None:
    issued = AUTHORITY.issue(KEY.public, NOW)
    node, porter = member(AUTHORITY, Joined(issued.der))
    async with running(node):
        said = token()
        found = await ask(node.address, said)
        assert found == (issued, AUTHORITY.certificate, found[2])
        assert found[2].node == node.id
        assert porter.asked == [Join(said.id, said.secret, KEY.public.der, "joiner", "p2pnn test")]
        await condition(lambda: porter.ended == 1)


@on_both_loops
async def test_another_cluster_never_sees_the_secret() -> None:
    node, porter = member(OTHER, Joined())
    async with running(node):
        with pytest.raises(NotAllowedError, match="wrong cluster: it belongs to another one than the token"):
            await ask(node.address, token())
        await condition(lambda: porter.ended == 1)
        assert porter.asked == []


@on_both_loops
async def test_who_offers_the_right_authority_without_a_certificate_of_it_never_sees_the_secret() -> None:
    """The authority's certificate is no secret: anybody can offer it. The TLS handshake is what proves."""
    node, porter = member(OTHER, Joined(), offers=AUTHORITY)
    async with running(node):
        with pytest.raises(NotAllowedError, match="wrong cluster: the peer's certificate was not issued"):
            await ask(node.address, token())
        await condition(lambda: porter.ended == 1)
        assert porter.asked == []


@on_both_loops
async def test_a_joiner_whose_clock_is_wrong_is_told_so_and_says_nothing() -> None:
    node, porter = member(AUTHORITY, Joined())
    async with running(node):
        with pytest.raises(NotAllowedError, match="clock: "):
            await ask(node.address, token(), NOW - SKEW_S - 3600)
        assert porter.asked == []


@on_both_loops
async def test_a_refusal_is_told_in_the_members_words() -> None:
    node, _ = member(AUTHORITY, Joined(error="bad token: it has expired\x1b[31m"))
    async with running(node):
        with pytest.raises(NotAllowedError, match=r"^bad token: it has expired\?\[31m$"):
            await ask(node.address, token())


@on_both_loops
async def test_a_certificate_for_another_key_is_not_taken() -> None:
    node, _ = member(AUTHORITY, Joined(AUTHORITY.issue(NodeKey.generate().public, NOW).der))
    async with running(node):
        with pytest.raises(NotAllowedError, match="another node's"):
            await ask(node.address, token())


@on_both_loops
async def test_nobody_there_is_told_in_a_clause() -> None:
    with pytest.raises(P2pnnError, match="refused: nothing listens there"):
        await ask(Address("127.0.0.1", 1), token())


@on_both_loops
async def test_a_name_that_cannot_be_one_is_told_in_a_clause() -> None:
    for host in ("a..b", "x" * 64 + ".invalid"):
        with pytest.raises(P2pnnError, match="no such host"):
            await ask(Address(host, 1), token())


@pytest.mark.parametrize("silent", [True, False], ids=["no answer", "refused"])
def test_one_dead_address_behind_a_name_does_not_hide_the_others(silent: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        node, _ = member(AUTHORITY, Joined(AUTHORITY.issue(KEY.public, NOW).der))
        with socket.create_server(("127.0.0.1", 0)) as dead:  # it takes connections and never speaks TLS
            port = dead.getsockname()[1] if silent else 1
            async with running(node):

                async def resolved(_: Address) -> list[Address]:
                    return [Address("127.0.0.1", port), node.address]

                monkeypatch.setattr(joining, "resolve", resolved)
                monkeypatch.setattr(joining, "CONNECT_S", 1.0)
                await ask(Address("two.invalid", 1), token())

    asyncio.run(body())


@on_both_loops
async def test_a_guest_that_says_anything_else_is_closed_with_the_reason() -> None:
    node, porter = member(AUTHORITY, None)
    async with running(node):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        unexpected = encode_frame(encode(Joined()))
        for said, reason in ((b"GET / HTTP/1.1\r\n" * 3, CloseReason.MALFORMED), (unexpected, CloseReason.UNEXPECTED)):
            reader, writer = await asyncio.open_connection(
                node.address.host, node.address.port, ssl=context, server_hostname=""
            )
            writer.write(said)
            async with asyncio.timeout(5):
                heard = await reader.read()
            assert encode(Close(reason, ""))[:2] in heard
            writer.transport.abort()
        assert porter.asked == []
        await condition(lambda: porter.ended == 2)


@on_both_loops
async def test_a_joiner_that_leaves_while_it_is_looked_at_is_noticed() -> None:
    node, porter = member(AUTHORITY, None)
    async with running(node):
        asking = asyncio.ensure_future(ask(node.address, token()))
        await condition(lambda: porter.asked)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await condition(lambda: porter.ended == 1)


@on_both_loops
async def test_what_listens_there_and_is_no_member_is_told_in_a_clause() -> None:
    async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(other, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        with pytest.raises(P2pnnError, match="no TLS"):
            await ask(Address("127.0.0.1", port), token())
