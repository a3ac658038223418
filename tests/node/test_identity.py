"""Secured daemons: founded, joined by a token, agreed on by keys, guessed at, removed, lied to, recovered."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from p2pnn.cluster import recovery
from p2pnn.cluster.petitions import Admit
from p2pnn.config import NodeConfig
from p2pnn.errors import NotAllowedError, P2pnnError, StorageError, TimedOutError, UsageError
from p2pnn.identity.authority import VALID_S as CERTIFICATE_VALID_S
from p2pnn.identity.authority import Authority
from p2pnn.identity.keys import NodeKey
from p2pnn.identity.tokens import VALID_S, Token
from p2pnn.node.daemon import Daemon
from p2pnn.node.identity import Identity, NotJoined
from p2pnn.node.peers import PeersFile
from p2pnn.transport.joining import knock
from p2pnn.types import Address, NodeId
from p2pnn.wire.codec import encode
from p2pnn.wire.frame import encode_frame
from p2pnn.wire.messages import Close, CloseReason, Join, Offer
from tests.node.lone import ME, THERE, VOUCHER, Rest, admitting, charter
from tests.node.lone import node as lone
from tests.node.nodes import B, C, config, until
from tests.node.test_door import Stream

pytestmark = pytest.mark.asyncio


def secured(folder: Path, name: str, **changes: Any) -> NodeConfig:
    return config(folder, name, secured=True, **changes)


@contextlib.asynccontextmanager
async def daemons(*configs: NodeConfig) -> AsyncIterator[list[Daemon]]:
    started: list[Daemon] = []
    try:
        for one in configs:
            daemon = Daemon(one)
            await daemon.start()
            started.append(daemon)
        yield started
    finally:
        for daemon in started:
            await daemon.close("the test is over")


def identity(daemon: Daemon) -> Identity:
    assert daemon.secured is not None
    return daemon.secured.identity


def members(daemon: Daemon) -> set[str]:
    charter = daemon.charter.committed
    return {member.name for member in charter.members} if charter is not None else set()


def linked(*nodes: Daemon) -> bool:
    """Whether each sees all the others as members with a link."""
    return all(len(node.members.names()) == len(nodes) and len(members(node)) == len(nodes) for node in nodes)


async def coordinating(daemon: Daemon) -> None:
    await until(lambda: daemon.charter.coordinates)


async def token_of(daemon: Daemon) -> Token:
    await coordinating(daemon)
    return (await identity(daemon).make_token(VALID_S))[0]


async def joined(first: Daemon, *others: Daemon) -> Token:
    token = await token_of(first)
    for other in others:
        await identity(other).join(token, [first.address])
    await until(lambda: linked(first, *others))
    return token


async def test_nodes_join_by_a_token_and_know_each_other_by_their_keys(tmp_path: Path) -> None:
    async with daemons(*(secured(tmp_path, name) for name in "abc")) as (a, b, c):
        await joined(a, b, c)
        charter = a.charter.committed
        assert charter is not None
        for daemon in (a, b, c):
            key = daemon.storage.key
            member = charter.member(daemon.node)
            assert key is not None
            assert member is not None
            assert member.fingerprint == key.public.fingerprint
            assert daemon.node == member.fingerprint[:32]
        assert (tmp_path / "a" / "key.pem").stat().st_mode & 0o777 == 0o600
        assert (tmp_path / "a" / "credentials.pem").stat().st_mode & 0o777 == 0o600


async def test_voters_and_they_alone_come_to_hold_the_authoritys_key(tmp_path: Path) -> None:
    async with daemons(*(secured(tmp_path, name) for name in "abc")) as (a, b, c):
        token = await token_of(a)
        await identity(b).join(token, [a.address])
        await until(lambda: linked(a, b))
        assert identity(b).credentials.ca is None, "one of two members votes"
        assert not (tmp_path / "b" / "authority.pem").exists()
        await identity(c).join(token, [b.address])
        await until(lambda: all(identity(one).credentials.ca is not None for one in (a, b, c)))
        assert (tmp_path / "c" / "authority.pem").stat().st_mode & 0o777 == 0o600
        await identity(a).remove("c")
        await until(lambda: identity(b).credentials.ca is None or identity(a).credentials.ca is None)
        assert not (tmp_path / "b" / "authority.pem").exists() or not (tmp_path / "a" / "authority.pem").exists()


async def test_a_restarted_member_finds_the_others_by_what_it_remembers(tmp_path: Path) -> None:
    async with daemons(secured(tmp_path, "a")) as (a,):
        async with daemons(secured(tmp_path, "b")) as (b,):
            await joined(a, b)
            file = tmp_path / "b" / "peers.json"
            await until(lambda: file.exists() and str(a.address) in file.read_text())
        async with daemons(secured(tmp_path, "b")) as (b,):
            await until(lambda: linked(a, b))
            assert b.node in {member.node for member in a.charter.committed.members}  # type: ignore[union-attr]


async def test_a_node_with_a_token_joins_by_itself_and_ignores_it_later(tmp_path: Path) -> None:
    async with daemons(secured(tmp_path, "a")) as (a,):
        token = str(await token_of(a))
        for _ in range(2):
            async with daemons(secured(tmp_path, "b", token=token, join=(a.address,))) as (b,):
                await until(lambda b=b: linked(a, b))
                assert b.secured is not None
                await until(lambda b=b: b.secured.arrival is None or not b.secured.arrival.unjoined)


async def test_a_node_without_a_token_is_not_started_to_join(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a token is needed"):
        Daemon(secured(tmp_path, "b", join=(Address("127.0.0.1", 1),)))
    async with daemons(secured(tmp_path, "b")):
        pass  # its folder is free again


async def test_tokens_are_revoked_on_any_node(tmp_path: Path) -> None:
    async with daemons(*(secured(tmp_path, name) for name in "abc")) as (a, b, c):
        token = await joined(a, b)
        await identity(b).revoke_token(token.id)
        await until(lambda: token.id in {record.id for record in identity(a).token_records() if record.revoked})
        with pytest.raises(NotJoined, match=r"bad token: it was revoked"):
            await identity(c).join(token, [a.address])
        with pytest.raises(NotAllowedError, match="no token 00000000"):
            await identity(b).revoke_token("00000000")
        with pytest.raises(UsageError, match="no token's id"):
            await identity(b).revoke_token("secret")


async def test_each_address_is_tried_and_each_failure_told(tmp_path: Path) -> None:
    async with daemons(secured(tmp_path, "a"), secured(tmp_path, "x"), secured(tmp_path, "b")) as (a, x, b):
        token = await token_of(a)
        closed = Address("127.0.0.1", 1)
        with pytest.raises(NotJoined) as caught:
            await identity(b).join(token, [closed, x.address])
        assert f"{closed}: refused: nothing listens there" in str(caught.value)
        assert f"{x.address}: wrong cluster: it belongs to another one than the token" in str(caught.value)
        assert await identity(b).join(token, [closed, x.address, a.address]) == a.address


async def test_a_node_with_members_or_a_job_does_not_leave_its_cluster(tmp_path: Path) -> None:
    async with daemons(*(secured(tmp_path, name) for name in "abxy")) as (a, b, x, y):
        await joined(a, b)
        token = await token_of(x)
        with pytest.raises(NotAllowedError, match="it belongs to a cluster with 1 other member; remove it there first"):
            await identity(b).join(token, [x.address])
        part = identity(y).part
        identity(y)._part = type(part)(
            part.post, part.transport, part.members, part.charter, lambda: "job digits-1 runs"
        )
        with pytest.raises(NotAllowedError, match="digits-1 runs"):
            await identity(y).join(token, [x.address])
        with pytest.raises(NotAllowedError, match="a member of the token's cluster already"):
            await identity(x).join(token, [x.address])
        await identity(b).join(token, [x.address], force=True)
        await until(lambda: linked(x, b))


async def test_a_removed_member_is_out_at_once_and_comes_back_with_a_new_token_only(tmp_path: Path) -> None:
    async with daemons(*(secured(tmp_path, name) for name in "abc")) as (a, b, c):
        token = await joined(a, b, c)
        await identity(b).remove("c")
        await until(lambda: not a.transport.connected(c.node) and not b.transport.connected(c.node))
        assert members(a) == {"a", "b"}
        await until(lambda: "was removed from the cluster" in identity(c).removed)
        assert await refusal(a, c) == CloseReason.REMOVED
        old = Admit(token.id, token.secret, identity(c).credentials.key.public.der, "c", "192.0.2.1")
        with pytest.raises(NotAllowedError, match="bad token: it was revoked"):
            await identity(b).petitions.ask(old)
        await identity(c).join(await token_of(a), [b.address])
        await until(lambda: linked(a, b, c))
        assert identity(c).removed == ""


@pytest.mark.parametrize("leaving", [0, 1], ids=["the-founder", "another"])
@pytest.mark.parametrize("count", [2, 3])
async def test_a_member_leaves_by_its_own_word(tmp_path: Path, count: int, leaving: int) -> None:
    async with daemons(*(secured(tmp_path, name) for name in "abc"[:count])) as nodes:
        await joined(*nodes)
        others = [node for node in nodes if node is not nodes[leaving]]
        await identity(nodes[leaving]).leave()
        await until(lambda: all(members(other) == {one.config.name for one in others} for other in others))
        await until(lambda: not any(other.transport.connected(nodes[leaving].node) for other in others))
        for other in others:
            assert await refusal(other, nodes[leaving]) == CloseReason.REMOVED
        await until(lambda: identity(nodes[leaving]).removed)
        await identity(nodes[leaving]).leave()  # again: it is no member
        await identity(nodes[leaving]).join(
            await token_of(*[o for o in others if o.charter.coordinates]), [others[0].address]
        )
        await until(lambda: linked(*nodes))


async def test_the_only_member_has_nothing_to_leave_and_without_a_majority_none_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2pnn.node.petitions.DEADLINE_S", 0.5)
    async with daemons(secured(tmp_path, "a"), secured(tmp_path, "b")) as (a, b):
        await coordinating(a)
        await identity(a).leave()
        assert members(a) == {"a"}
        await joined(a, b)
        await a.close("gone")
        with pytest.raises(TimedOutError, match="nobody coordinates the cluster"):
            await identity(b).leave()
        assert identity(b).removed == ""


async def refusal(listener: Daemon, caller: Daemon) -> int:
    """The reason of the Close with which a fresh connection of `caller` is answered before it says a word."""
    held = identity(caller).credentials
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(held.chain_file, held.key_file)
    address = listener.address
    reader, writer = await asyncio.open_connection(address.host, address.port, ssl=context, server_hostname="")
    try:
        async with asyncio.timeout(10):
            heard = await reader.read()
    finally:
        writer.transport.abort()
    return next(reason for reason in CloseReason if encode(Close(reason, ""))[:3] == heard[32:35])


async def test_the_coordinator_hands_over_before_it_is_removed(tmp_path: Path) -> None:
    async with daemons(secured(tmp_path, "a"), secured(tmp_path, "b")) as (a, b):
        await joined(a, b)
        cluster = identity(a).credentials.cluster
        with pytest.raises(NotAllowedError, match="no member is called 'nobody'"):
            await identity(b).remove("nobody")
        await identity(b).remove("a")
        await until(lambda: members(b) == {"b"} and not b.transport.connected(a.node))
        await coordinating(b)
        with pytest.raises(NotAllowedError, match="the only member"):
            await identity(b).remove("b")
        assert identity(b).credentials.ca is not None
        assert identity(b).credentials.cluster == cluster, "the key was given to b before a went; no other was made"


async def test_guesses_are_refused_and_soon_not_even_looked_at(tmp_path: Path) -> None:
    async with daemons(secured(tmp_path, "a")) as (a,):
        await coordinating(a)
        right, _ = await identity(a).make_token(VALID_S)
        said: list[str] = []

        async def guess(number: int) -> None:
            wrong = Token(right.cluster, right.id, f"{number:032x}")
            try:
                await knock(a.address, wrong, NodeKey.generate().public, "guesser", "", time.time())
            except P2pnnError as error:
                said.append(str(error))

        for number in range(0, 200, 4):
            await asyncio.gather(*(guess(number + at) for at in range(4)))
        assert len(said) == 200
        looked_at = sum("no such token" in one for one in said)
        assert 1 <= looked_at <= 20, "each one doubles the wait"
        assert sum("too many wrong tokens" in one for one in said) == 200 - looked_at
        assert members(a) == {"a"}
        with pytest.raises(NotAllowedError, match="too many wrong tokens"):
            await knock(a.address, right, NodeKey.generate().public, "late", "", time.time())


async def test_a_pretender_never_hears_the_secret(tmp_path: Path) -> None:
    """It has another authority's certificate, and offers that of the token's cluster, which is no secret."""
    heard = bytearray()
    other, key = Authority.found(time.time()), NodeKey.generate()
    (tmp_path / "chain.pem").write_bytes(other.issue(key.public, time.time()).pem)
    (tmp_path / "key.pem").write_bytes(key.pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "chain.pem", tmp_path / "key.pem")
    async with daemons(secured(tmp_path, "a"), secured(tmp_path, "b")) as (a, b):
        token = await token_of(a)
        authority = identity(a).credentials.authority
        assert authority is not None
        ended = asyncio.Event()

        async def pretend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(encode_frame(encode(Offer(authority.der))))
            with contextlib.suppress(OSError):
                heard.extend(await reader.read())
            writer.close()
            ended.set()

        async with await asyncio.start_server(pretend, "127.0.0.1", 0, ssl=context) as server:
            port = server.sockets[0].getsockname()[1]
            with pytest.raises(NotJoined, match="wrong cluster"):
                await identity(b).join(token, [Address("127.0.0.1", port)])
            async with asyncio.timeout(10):
                await ended.wait()
        assert heard == b""
        join = encode(Join(token.id, token.secret, b"", "b"))
        assert token.secret.encode() in join, "what is looked for would be found"


async def test_a_recovered_cluster_without_its_authoritys_key_makes_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "refusal", lambda *facts: "")
    async with daemons(secured(tmp_path, "a"), secured(tmp_path, "b")) as (a, b):
        await joined(a, b)
        before = identity(b).credentials.cluster
        assert identity(b).credentials.ca is None
        state = b.charter.committed
        assert state is not None
        await b.charter.recover(state.cluster)
        await until(lambda: members(b) == {"b"} and identity(b).credentials.ca is not None)
        await until(lambda: identity(b).credentials.cluster != before)
        assert b.charter.committed.removed == (a.node,)  # type: ignore[union-attr]
        token = await token_of(b)
        await identity(a).join(token, [b.address], force=True)
        await until(lambda: linked(a, b))


# --- one identity, without a network


async def test_a_commit_ends_links_that_were_opened_before_any(tmp_path: Path) -> None:
    """Just after a start, or a move, nobody is remembered; a link may be there by the charter that was held."""
    rest = Rest()
    one = lone(tmp_path, rest)
    rest.committed = charter(ME, B)
    one.charter_committed(rest.committed)
    assert set(rest.expelled) == rest.peers - {B}
    await one.close()


async def test_a_move_leaves_the_old_cluster_before_it_hears_of_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rest = Rest()
    one = lone(tmp_path, rest)
    new = Authority.found(time.time())
    taken: list[dict[NodeId, Address]] = []
    take = one.credentials.take
    monkeypatch.setattr(one.credentials, "take", lambda *a: (taken.append(PeersFile(tmp_path).known), take(*a)))
    assert await one.join(admitting(monkeypatch, new), [THERE]) == THERE
    assert rest.calls == ["stand still", "forget", "adopt, no link stays", "start", f"dial {THERE}"]
    assert taken == [{VOUCHER.public.node: THERE}], "after a crash there is somebody to dial"
    stranger = NodeKey.generate().public
    security = one.security()
    assert security.check(VOUCHER.public.node, VOUCHER.public) is None
    refused = security.check(stranger.node, stranger)
    assert refused is not None
    assert refused.reason is CloseReason.NOT_MEMBER
    await one.close()


async def test_who_asked_for_a_move_may_go_and_the_move_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rest = Rest()
    rest.gate = asyncio.Event()
    one = lone(tmp_path, rest)
    new = Authority.found(time.time())
    token = admitting(monkeypatch, new)
    asking = asyncio.ensure_future(one.join(token, [THERE]))
    await until(lambda: "forget" in rest.calls)
    asking.cancel()
    await asyncio.sleep(0)
    with pytest.raises(NotAllowedError, match="at this moment"):
        await one.join(token, [THERE])
    rest.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert rest.calls[-2:] == ["start", f"dial {THERE}"]
    assert one.credentials.cluster == new.certificate.digest
    await one.close()


async def test_a_move_that_the_disk_breaks_off_leaves_a_node_that_can_join_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rest = Rest()
    rest.fails = True
    one = lone(tmp_path, rest)
    token = admitting(monkeypatch, Authority.found(time.time()))
    with pytest.raises(StorageError, match="full"):
        await one.join(token, [THERE])
    assert rest.calls == ["stand still", "forget", "start"]
    rest.fails = False
    await one.join(token, [THERE])
    assert rest.calls[-1] == f"dial {THERE}"
    await one.close()


async def test_a_member_without_a_charter_may_join_by_its_own_clusters_token_and_others_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rest = Rest()
    one = lone(tmp_path, rest)
    assert one.credentials.ca is not None
    token = admitting(monkeypatch, one.credentials.ca)
    rest.committed = charter(ME, C)
    with pytest.raises(NotAllowedError, match="a member of the token's cluster already"):
        await one.join(token, [THERE])
    rest.committed = None
    await one.join(token, [THERE])
    assert "start" in rest.calls
    await one.close()


async def test_a_member_whose_certificate_has_ended_gets_a_new_one_and_keeps_its_votes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rest = Rest()
    one = lone(tmp_path, rest, time.time() - CERTIFICATE_VALID_S - 60)
    assert one.credentials.ca is not None
    assert one.credentials.has_ended(time.time())
    rest.committed = charter(ME, C)
    await one.join(admitting(monkeypatch, one.credentials.ca), [THERE])
    assert rest.calls == ["adopt", f"dial {THERE}"]
    assert not one.credentials.has_ended(time.time())
    await one.close()


async def test_only_one_new_authority_is_founded_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rest = Rest()
    one = lone(tmp_path, rest)
    one.credentials.drop_ca()
    founded: list[float] = []
    found = one.credentials.found
    monkeypatch.setattr(one.credentials, "found", lambda now: (founded.append(now), found(now)))
    rest.committed = charter(ME)
    for revision in range(1, 4):
        one.charter_committed(charter(ME, revision=revision))
    await until(lambda: one.credentials.ca is not None)
    await one.close()
    assert len(founded) == 1


async def test_joiners_are_dismissed_when_their_host_stops_and_no_more_are_let_in(tmp_path: Path) -> None:
    one = lone(tmp_path, Rest())
    early, late = Stream(), Stream()
    door = one.security().door
    door.guest(early, "192.0.2.1")  # type: ignore[arg-type]
    assert not early.aborted
    await one.close()
    door.guest(late, "192.0.2.1")  # type: ignore[arg-type]
    assert early.aborted
    assert late.aborted
