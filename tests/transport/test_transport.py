"""Links between real transports: opening, racing, losing, leaving."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest

from p2pnn.errors import LocalProtocolError, NotAllowedError, PeerGone, UsageError
from p2pnn.types import Address
from p2pnn.wire.messages import Granted, JobFailed, LinkKind, LinkProbe, Tensor
from tests.transport.harness import SHORT, Node, condition, connect, control_link, nodes, on_both_loops, pair


def send_many(a: Node, b: Node) -> None:
    for number in range(100_000):
        a.transport.send(b.id, JobFailed("job", number, "x" * 4000))


def kinds(node: Node) -> list[LinkKind]:
    return [link.kind for link in node.transport.snapshot()]


@on_both_loops
async def test_messages_arrive_in_order_both_ways() -> None:
    async with pair() as (a, b):
        for number in range(3000):
            a.transport.send(b.id, Granted("job", number))
            b.transport.send(a.id, Granted("job", number))
        for node, peer in ((a, b), (b, a)):
            await node.events.until(lambda node=node: len(node.events.messages) == 3000)
            assert node.events.messages == [(peer.id, Granted("job", number)) for number in range(3000)]
        assert b.events.connected[0].address == a.address
        assert a.events.connected[0].address == b.address
        assert a.events.reached == [(b.address, b.id)]


@on_both_loops
async def test_both_dial_at_once_and_one_control_link_stays_without_an_outage() -> None:
    for turn in range(20):
        async with nodes(1, 2) as (a, b):
            a.transport.dial(b.address)
            for _ in range(turn % 5):
                await asyncio.sleep(0)
            b.transport.dial(a.address)
            await a.events.until(lambda: a.transport.connected(b.id) and a.events.reached)
            await b.events.until(lambda: b.transport.connected(a.id) and b.events.reached)
            a.transport.send(b.id, Granted("job", turn))
            b.transport.send(a.id, Granted("job", turn))
            await a.events.until(lambda: a.events.messages)
            await b.events.until(lambda: b.events.messages)
            assert kinds(a) == kinds(b) == [LinkKind.CONTROL]
            assert a.transport.snapshot()[0].dialled != b.transport.snapshot()[0].dialled
            for node in (a, b):
                await condition(lambda node=node: len(node.transport._links) == 1)
                assert len(node.events.connected) == 1
                assert node.events.lost == []
                assert node.events.failed == []


@on_both_loops
async def test_both_need_the_data_link_at_once_and_one_stays() -> None:
    for turn in range(20):
        async with pair() as (a, b):
            first = asyncio.ensure_future(a.transport.send_body(b.id, Tensor("j", 1, 0, turn), memoryview(b"a" * 3000)))
            for _ in range(turn % 7):
                await asyncio.sleep(0)
            await b.transport.send_body(a.id, Tensor("j", 1, 0, turn), memoryview(b"b" * 3000))
            await first
            await a.events.until(lambda: a.events.bodies)
            await b.events.until(lambda: b.events.bodies)
            assert kinds(a) == kinds(b) == [LinkKind.CONTROL, LinkKind.DATA]
            for node in (a, b):
                await condition(lambda node=node: len(node.transport._links) == 2)
                assert node.events.lost == []


@on_both_loops
async def test_a_node_known_by_two_addresses_is_linked_once() -> None:
    async with nodes(1, 2) as (a, b):
        other_name = Address("localhost", b.address.port)
        a.transport.dial(b.address)
        a.transport.dial(other_name)
        await a.events.until(lambda: set(a.events.reached) == {(b.address, b.id), (other_name, b.id)})
        a.transport.send(b.id, Granted("job", 1))
        await b.events.until(lambda: b.events.messages)
        await condition(lambda: len(a.transport._links) == len(b.transport._links) == 1)
        assert a.events.nodes() == [b.id]
        assert a.events.lost == b.events.lost == []


@on_both_loops
async def test_an_aborted_peer_is_lost_with_a_reason_and_found_again() -> None:
    async with pair() as (a, b):
        sending = asyncio.ensure_future(a.transport.send_body(b.id, Tensor("j", 1, 0, 0), memoryview(bytes(1 << 26))))
        await b.events.until(lambda: b.events.asked)
        for link in list(b.transport._links):
            link._transport.abort()
        await a.events.until(lambda: a.events.lost)
        with pytest.raises(PeerGone, match=r"n2|connection|link"):
            await sending
        node, reason, left = a.events.lost[0]
        assert node == b.id
        assert reason
        assert not left
        await a.events.until(lambda: len(a.events.connected) == 2)
        assert len(a.events.lost) == 1


@on_both_loops
async def test_a_goodbye_is_told_as_such() -> None:
    async with pair() as (a, b):
        await a.transport.send_body(b.id, LinkProbe(1), memoryview(b"x"))  # with a data link as well
        await b.transport.close("it goes home")
        await a.events.until(lambda: a.events.lost)
        assert a.events.lost == [(b.id, "it goes home", True)]
        assert b.events.lost == [], "no event after close"
        assert not a.transport.connected(b.id)
        with pytest.raises(PeerGone, match=b.id[:8]):
            a.transport.send(b.id, Granted("job", 1))
        with pytest.raises(PeerGone):
            await a.transport.send_body(b.id, LinkProbe(1), memoryview(b"x"))


@on_both_loops
async def test_a_restarted_node_takes_the_place_of_its_former_self_at_once() -> None:
    async with nodes(1) as (a,):
        old = await Node(2, boot="first").start()
        await connect(old, a)
        new = await Node(2, boot="second").start()
        try:
            new.transport.dial(a.address)
            await a.events.until(lambda: len(a.events.connected) == 2)
            assert a.events.lost == [(old.id, "it was restarted", False)]
            assert [peer.boot for peer in a.events.connected] == ["first", "second"]
        finally:
            await new.transport.close("")
            old.transport.forget(a.address)
            await old.transport.close("")


@on_both_loops
async def test_dials_that_cannot_succeed_say_why() -> None:
    stranger = await Node(3, cluster="elsewhere").start()
    async with nodes(1) as (a,):
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            nobody = Address("127.0.0.1", unused.getsockname()[1])
            expected = {
                nobody: "refused",
                a.address: "it is this node itself",
                stranger.address: "wrong cluster",
            }
            for address in expected:
                a.transport.dial(address)
            await a.events.until(lambda: {address for address, _ in a.events.failed} >= set(expected))
        for address, reason in a.events.failed:
            assert reason.startswith(expected[address]), (address, reason)
        assert a.events.connected == stranger.events.connected == []
    await stranger.transport.close("")


@on_both_loops
async def test_a_failing_dial_goes_on_until_forgotten() -> None:
    async with nodes(1) as (a,):
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            address = Address("127.0.0.1", unused.getsockname()[1])
            a.transport.dial(address)
            await a.events.until(lambda: len(a.events.failed) >= 3)
        b = await Node(2).start(address)
        await a.events.until(lambda: a.transport.connected(b.id))
        a.transport.forget(address)
        a.transport.send(b.id, Granted("job", 1))
        await b.events.until(lambda: b.events.messages)
        await b.transport.close("")
        await a.events.until(lambda: a.events.lost)
        assert not a.transport._tasks


@on_both_loops
async def test_who_stood_still_reads_what_came_meanwhile_before_it_calls_a_peer_silent() -> None:
    async with pair(limits=SHORT) as (a, b):
        for node, peer in ((a, b), (b, a)):
            node.transport.send(peer.id, Granted("job", 1))
            control_link(node, peer)._next_turn()  # it leaves before the loop has a turn to read it
        end = time.monotonic() + 3 * SHORT.wire.silent_deadline_s
        while time.monotonic() < end:
            pass  # as long as a stopped process
        for node, peer in ((a, b), (b, a)):
            control_link(
                node, peer
            )._ring()  # the first thing that happens there, as when a wait is interrupted by SIGCONT
        for node, peer in ((a, b), (b, a)):
            await node.events.until(lambda node=node: node.events.messages)
            node.transport.send(peer.id, Granted("job", 2))
        for node in (a, b):
            await node.events.until(lambda node=node: len(node.events.messages) == 2)
            assert node.events.lost == []


@on_both_loops
async def test_a_silent_peer_is_lost_within_its_deadline() -> None:
    async with pair(SHORT) as (a, b):
        started = asyncio.get_running_loop().time()
        a.transport.forget(b.address)
        for link in b.transport._links:
            link._transport.pause_reading()
            link._timer.cancel()
        await a.events.until(lambda: a.events.lost)
        assert "nothing was received" in a.events.lost[0][1]
        assert asyncio.get_running_loop().time() - started < 2


@on_both_loops
async def test_a_peer_that_does_not_read_its_control_link_is_closed() -> None:
    async with pair() as (a, b):
        for link in b.transport._links:
            link._transport.pause_reading()
        with pytest.raises(PeerGone, match="does not read"):
            send_many(a, b)
        await a.events.until(lambda: a.events.lost)
        assert "wait for a peer that does not read" in a.events.lost[0][1]


@on_both_loops
async def test_a_message_over_a_limit_is_our_own_mistake() -> None:
    async with pair() as (a, b):
        with pytest.raises(LocalProtocolError):
            a.transport.send(b.id, Granted("not a job's name", 1))
        assert a.transport.connected(b.id)


@on_both_loops
async def test_without_credentials_only_loopback_is_bound() -> None:
    node = Node(1)
    for host in ("0.0.0.0", "::", "10.1.2.3"):
        with pytest.raises(NotAllowedError, match=r"without credentials .* listen on 127\.0\.0\.1:7700"):
            await node.transport.start(Address(host, 7700))
    assert (await node.transport.start(Address("localhost", 0))).port > 0
    await node.transport.close("")


@on_both_loops
async def test_a_port_in_use_is_named() -> None:
    async with nodes(1) as (a,):
        with pytest.raises(UsageError, match=rf"port {a.address.port} on 127\.0\.0\.1 is in use.*--listen"):
            await Node(2).transport.start(a.address)


@on_both_loops
async def test_three_nodes_and_a_snapshot() -> None:
    async with nodes(1, 2, 3) as (a, b, c):
        await connect(b, a)
        await connect(c, a)
        await a.transport.send_body(b.id, LinkProbe(1), memoryview(b"xyz"))
        assert [(link.name, link.kind, link.dialled) for link in a.transport.snapshot()] == [
            ("n2", LinkKind.CONTROL, False),
            ("n2", LinkKind.DATA, True),
            ("n3", LinkKind.CONTROL, False),
        ]
        assert a.transport.snapshot()[1].sent_bytes > 3


@on_both_loops
async def test_a_data_link_that_breaks_takes_the_control_link_with_it() -> None:
    async with pair() as (a, b):
        await a.transport.send_body(b.id, LinkProbe(1), memoryview(b"xyz"))
        await b.events.until(lambda: b.events.bodies)
        b.transport._peers[a.id].data._transport.abort()
        for node in (a, b):
            await node.events.until(lambda node=node: node.events.lost)
            assert "data link broke" in node.events.lost[0][1]
