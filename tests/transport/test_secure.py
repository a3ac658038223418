"""TLS: links as without it, between nodes that the authority has certified and the door admits; others are told why not."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from p2pnn.errors import PeerGone, StorageError
from p2pnn.identity.authority import DAY_S, SKEW_S, Authority
from p2pnn.identity.keys import NodeKey, PublicKey
from p2pnn.transport import Limits, LocalIdentity, Transport
from p2pnn.transport.admission import Refuse
from p2pnn.transport.secure import SecureStream, Security
from p2pnn.types import NodeId
from p2pnn.wire.codec import encode
from p2pnn.wire.frame import encode_frame
from p2pnn.wire.messages import VERSION_MAX, VERSION_MIN, CloseReason, Granted, Hello, LinkKind, Tensor
from tests.transport.harness import (
    FAST,
    LOCAL,
    MIB,
    SHORT,
    Node,
    Recorder,
    condition,
    connect,
    data_link,
    on_both_loops,
    read_slowly,
)

AUTHORITY = Authority.found(time.time())
OTHER = Authority.found(time.time())


class Door:
    """Admits all but those who were shut out."""

    def __init__(self) -> None:
        self.shut_out: dict[NodeId, Refuse] = {}
        self.guests: list[SecureStream] = []
        self.words: list[str] = []

    def admits(self, key: PublicKey) -> Refuse | None:
        return self.shut_out.get(key.node)

    def name_of(self, key: PublicKey) -> str:
        return "known"

    def told_removed(self, words: str) -> None:
        self.words.append(words)

    def guest(self, stream: SecureStream, host: str) -> None:
        self.guests.append(stream)


class SecureNode(Node):
    """A transport with a key and a certificate. now: when it was issued."""

    def __init__(
        self,
        folder: Path,
        name: str,
        authority: Authority = AUTHORITY,
        now: float | None = None,
        limits: Limits = FAST,
        claims: NodeId | None = None,
    ) -> None:
        self.key = NodeKey.generate()
        self.door = Door()
        chain, key_file = folder / f"{name}.pem", folder / f"{name}.key"
        chain.write_bytes(authority.issue(self.key.public, now or time.time()).pem)
        key_file.write_bytes(self.key.pem)
        self.security = Security(chain, key_file, authority.certificate.der, self.door)
        self.id = claims or self.key.public.node
        self.events = Recorder()
        self.address = LOCAL
        identity = LocalIdentity(self.id, name, "test", "boot")
        self.transport = Transport(identity, self.events, limits, self.security)


@contextlib.asynccontextmanager
async def running(*nodes: SecureNode) -> AsyncIterator[None]:
    try:
        for node in nodes:
            await node.start()
        yield
    finally:
        for node in nodes:
            await node.transport.close("the test is over")
            for guest in node.door.guests:
                guest.abort()


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def make(name: str, **more: object) -> SecureNode:
    return SecureNode(Path.cwd(), name, **more)  # type: ignore[arg-type]


async def failure(a: SecureNode, b: SecureNode) -> str:
    """Why `a` cannot have a link to `b`."""
    a.transport.dial(b.address)
    await a.events.until(lambda: a.events.failed)
    assert a.events.connected == []
    return a.events.failed[0][1]


@on_both_loops
async def test_nodes_of_one_authority_are_linked_and_send_bodies_of_any_size() -> None:
    a, b = make("a"), make("b")
    async with running(a, b):
        await connect(a, b)
        sizes = [0, 1, 7, 16383, 16384, 16385, 65536, MIB, MIB + 1, 3 * MIB + 77]
        for number, size in enumerate(sizes):
            await a.transport.send_body(b.id, Tensor("j", 1, 0, number), memoryview(bytes([number]) * size))
            a.transport.send(b.id, Granted("j", number))
        await b.events.until(lambda: len(b.events.bodies) == len(sizes))
        assert [(len(body), set(body)) for _, _, body in b.events.bodies] == [
            (size, {number} if size else set()) for number, size in enumerate(sizes)
        ]
        await b.events.until(lambda: len(b.events.messages) == len(sizes))
        assert [message for _, message in b.events.messages] == [Granted("j", n) for n in range(len(sizes))]


@on_both_loops
async def test_a_buffer_overwritten_after_send_body_returned_arrives_unchanged() -> None:
    a, b = make("a"), make("b")
    async with running(a, b):
        await connect(a, b)
        await a.transport.send_body(b.id, Tensor("j", 1, 0, 99), memoryview(b""))
        await b.events.until(lambda: b.events.bodies)
        for node, peer in ((a, b), (b, a)):
            sock = data_link(node, peer)._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        read_slowly(b, a)
        buffer = bytearray(4 * MIB)
        for number in range(3):
            buffer[:] = bytes([number]) * len(buffer)
            await a.transport.send_body(b.id, Tensor("j", 1, 0, number), memoryview(buffer))
        buffer[:] = b"\xff" * len(buffer)
        await b.events.until(lambda: len(b.events.bodies) == 4)
        assert all(set(body) <= {message.micro_batch} for _, message, body in b.events.bodies)


@on_both_loops
async def test_a_recalled_body_that_has_begun_arrives_whole() -> None:
    a, b = make("a"), make("b")
    async with running(a, b):
        await connect(a, b)
        b.events.on_body_for = lambda: data_link(b, a)._transport.pause_reading()
        buffer = bytearray(b"z" * 16 * MIB)
        leaving = a.transport.start_body(b.id, Tensor("j", 1, 0, 1), memoryview(buffer))
        await b.events.until(lambda: b.events.asked)
        await condition(lambda: data_link(a, b)._transport.waiting)
        assert leaving is not None
        leaving.recall()
        buffer[:] = bytes(len(buffer))
        b.events.on_body_for = lambda: None
        data_link(b, a)._transport.resume_reading()
        await b.events.until(lambda: b.events.bodies)
        assert bytes(b.events.bodies[0][2]) == b"z" * 16 * MIB
        assert a.events.lost == []


@on_both_loops
async def test_both_ways_at_once_and_many_small_messages() -> None:
    a, b = make("a"), make("b")
    async with running(a, b):
        await connect(a, b)
        body = memoryview(bytes(MIB))

        async def flood(one: SecureNode, other: SecureNode) -> None:
            for number in range(500):
                one.transport.send(other.id, Granted("j", number))
            for number in range(20):
                await one.transport.send_body(other.id, Tensor("j", 1, 0, number), body)

        await asyncio.gather(flood(a, b), flood(b, a))
        for node in (a, b):
            await node.events.until(
                lambda node=node: len(node.events.bodies) == 20 and len(node.events.messages) == 500
            )


@on_both_loops
async def test_a_node_of_another_cluster_is_told_so_on_both_sides() -> None:
    a, b = make("a"), make("b", authority=OTHER)
    async with running(a, b):
        assert (await failure(a, b)).startswith("wrong cluster")
        assert (await failure(b, a)).startswith("wrong cluster")


@on_both_loops
async def test_a_listener_refuses_another_clusters_node_that_trusts_anybody() -> None:
    a, b = make("a"), make("b", authority=OTHER)
    b.security._client.verify_mode = ssl.CERT_NONE
    async with running(a, b):
        assert (await failure(b, a)).startswith("wrong cluster")
        assert a.events.connected == []


@pytest.mark.parametrize("shift_s", [-370 * DAY_S, SKEW_S + DAY_S], ids=["expired", "not yet valid"])
def test_a_certificate_outside_its_time_means_a_clock(shift_s: float) -> None:
    async def body() -> None:
        a, b = make("a"), make("b", now=time.time() + shift_s)
        async with running(a, b):
            assert (await failure(a, b)).startswith("clock")
            assert (await failure(b, a)).startswith("clock")

    asyncio.run(body())


@on_both_loops
async def test_who_calls_itself_another_node_than_its_key_is_refused() -> None:
    a, b, c = make("a"), make("b", claims=NodeId("0" * 32)), make("c")
    async with running(a, b, c):
        assert "its key is another node's" in await failure(b, a)
        assert a.events.connected == []
        assert "its key is another node's" in await failure(c, b)
        assert c.events.connected == []


@on_both_loops
async def test_who_is_not_in_the_charter_is_refused_before_it_says_hello() -> None:
    a, b = make("a"), make("b")
    a.door.shut_out[b.id] = Refuse(CloseReason.NOT_MEMBER, "the charter does not name it")
    async with running(a, b):
        assert await failure(b, a) == "not a member: the charter does not name it"
        assert await failure(a, b) == "not a member: the charter does not name it"


@on_both_loops
async def test_a_removed_node_loses_its_links_at_once_and_gets_no_new_one() -> None:
    a, b = make("a"), make("b")
    async with running(a, b):
        await connect(b, a)
        await b.transport.send_body(a.id, Tensor("j", 1, 0, 0), memoryview(bytes(100)))
        a.door.shut_out[b.id] = Refuse(CloseReason.REMOVED, "node b was removed")
        a.transport.expel(b.id, "node b was removed")
        await b.events.until(lambda: b.events.lost and b.events.failed)
        assert b.events.lost == [(a.id, "node b was removed", False)]
        assert b.events.failed[0][1] == "removed: node b was removed"
        assert b.door.words[:1] == ["node b was removed"]
        assert a.events.lost == [(b.id, "node b was removed", True)]
        with pytest.raises(PeerGone):
            a.transport.send(b.id, Granted("j", 1))


@on_both_loops
async def test_a_plain_node_and_a_secured_one_say_what_is_wrong() -> None:
    a, plain = make("a"), Node(7)
    async with running(a):
        await plain.start()
        try:
            assert "plain node" in await failure(a, plain)  # type: ignore[arg-type]
            plain.transport.dial(a.address)
            await plain.events.until(lambda: plain.events.failed)
        finally:
            await plain.transport.close("over")


async def stranger(node: SecureNode) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(node.address.host, node.address.port)


@on_both_loops
async def test_a_handshake_that_does_not_go_on_is_given_up() -> None:
    a = make("a", limits=SHORT)
    async with running(a):
        reader, writer = await stranger(a)
        writer.write(bytes.fromhex("1603010200"))  # the head of a ClientHello, and nothing more
        async with asyncio.timeout(5):
            assert await reader.read() == b""
        writer.close()
        await condition(lambda: not a.transport._links)


@on_both_loops
async def test_bytes_that_are_no_tls_end_the_connection() -> None:
    a = make("a")
    async with running(a):
        reader, writer = await stranger(a)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        async with asyncio.timeout(5):
            await reader.read()
        writer.close()
        await condition(lambda: not a.transport._links)


@on_both_loops
async def test_who_shows_no_certificate_is_a_guest_and_no_peer() -> None:
    a = make("a")
    async with running(a):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        _, writer = await asyncio.open_connection(a.address.host, a.address.port, ssl=context, server_hostname="")
        hello = Hello(VERSION_MIN, VERSION_MAX, LinkKind.CONTROL, "1" * 32, "x", "test", 0, "b")
        writer.write(encode_frame(encode(hello)))
        await condition(lambda: a.door.guests)
        assert a.events.connected == []
        assert not a.transport._links
        writer.transport.abort()


@on_both_loops
async def test_garbage_from_a_certified_peer_cuts_it_off_by_name_and_leaves_the_others() -> None:
    a, b, c = make("a"), make("b"), make("c")
    async with running(a, b, c):
        await connect(b, a)
        await connect(c, a)
        stream = c.transport._peers[a.id].control._transport
        assert stream is not None
        stream.write(b"\x00garbage" * 100)
        await a.events.until(lambda: a.events.lost)
        assert a.events.lost[0][0] == c.id
        assert "instead of b'p2nn'" in a.events.lost[0][1]
        await a.transport.send_body(b.id, Tensor("j", 1, 0, 0), memoryview(bytes(MIB)))
        await b.events.until(lambda: b.events.bodies)


@on_both_loops
async def test_renewed_credentials_serve_new_links_and_leave_old_ones() -> None:
    a, b, c = make("a"), make("b"), make("c")
    async with running(a, b, c):
        await connect(a, b)
        chain = Path.cwd() / "a.pem"
        chain.write_bytes(AUTHORITY.issue(a.key.public, time.time() + 10).pem)
        a.transport.adopt(Security(chain, Path.cwd() / "a.key", AUTHORITY.certificate.der, a.door), "test", moves=False)
        await connect(c, a)
        assert a.events.lost == []


def test_credentials_that_do_not_fit_together_are_named() -> None:
    make("a")
    make("b")
    with pytest.raises(StorageError, match=r"a\.pem and .*b\.key cannot be used"):
        Security(Path("a.pem"), Path("b.key"), AUTHORITY.certificate.der, Door())


@on_both_loops
async def test_one_address_cannot_take_all_places_at_the_door() -> None:
    a = make("a", limits=Limits(handshakes_of_host_max=4, redial_first_s=0.01, redial_max_s=0.05))
    b = make("b")
    async with running(a, b):
        idle = [await stranger(a) for _ in range(4)]
        await condition(lambda: len(a.transport._links) == 4)
        refused = [await stranger(a) for _ in range(90)]
        async with asyncio.timeout(5):
            for reader, _ in refused:
                assert await reader.read() == b""
        assert len(a.transport._links) == 4  # who is refused takes no place, not even while it goes
        idle += refused
        for _, writer in idle:
            writer.transport.abort()
        await connect(b, a)


@on_both_loops
async def test_who_comes_through_tls_after_it_was_closed_is_no_guest() -> None:
    a = make("a", limits=Limits(goodbye_s=5.0))
    async with running(a):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        reader, writer = await stranger(a)
        await condition(lambda: a.transport._links)
        (link,) = a.transport._links
        link.close(CloseReason.TOO_SLOW, "too late")
        async with asyncio.timeout(5):
            await writer.start_tls(context, server_hostname="")
            assert b"too late" in await reader.read()
        assert a.door.guests == []
        writer.transport.abort()


@on_both_loops
async def test_a_late_timer_reads_nothing_before_the_peer_has_proved_its_key() -> None:
    a, b = make("a"), make("b")
    async with running(a, b):
        _, writer = await stranger(a)
        await condition(lambda: a.transport._links)
        (link,) = a.transport._links
        stream = link._transport
        assert isinstance(stream, SecureStream)
        stream._read = lambda *_: pytest.fail("it was read within the handshake")
        link._timer_due = 0.0
        link._ring()
        assert not link.connection.is_closed
        writer.transport.abort()
        await connect(b, a)
