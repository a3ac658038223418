"""Bodies: whole, in place, not released early, not in the way of control messages, and given up cleanly."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import pytest
import uvloop

from p2pnn.errors import LocalProtocolError, PeerGone
from p2pnn.transport import Limits
from p2pnn.transport.link import Link
from p2pnn.wire.messages import Granted, LinkKind, LinkProbe, Tensor
from tests.transport.harness import FAST, PATIENT, SHORT, Node, condition, on_both_loops, pair

MIB = 1 << 20


def data_link(node: Node, peer: Node) -> Link:
    link = node.transport._peers[peer.id].data
    assert link is not None
    return link


def read_slowly(node: Node, peer: Node) -> None:
    """From the first body on, `node` reads its data link in bursts of a few milliseconds with rests between."""
    loop = asyncio.get_running_loop()

    def rest(link: Link) -> None:
        if link._transport is not None and not link._transport.is_closing():
            link._transport.pause_reading()
            loop.call_later(0.003, wake, link)

    def wake(link: Link) -> None:
        if link._transport is not None and not link._transport.is_closing():
            link._transport.resume_reading()
            loop.call_later(0.002, rest, link)

    def begin() -> None:
        node.events.on_body_for = lambda: None
        rest(data_link(node, peer))

    node.events.on_body_for = begin


async def send_and_overwrite(a: Node, b: Node) -> None:
    """One buffer for all bodies, filled anew as soon as send_body returns; sockets that hold far less than a piece."""
    await a.transport.send_body(b.id, LinkProbe(0), memoryview(b""))
    await b.events.until(lambda: b.events.bodies)
    b.events.bodies.clear()
    for node, peer in ((a, b), (b, a)):
        sock = data_link(node, peer)._transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    read_slowly(b, a)
    buffer = bytearray(16 * MIB)
    for number in range(3):
        buffer[:] = bytes([number]) * len(buffer)
        await a.transport.send_body(b.id, Tensor("job", 1, 0, number), memoryview(buffer))
    buffer[:] = b"\xff" * len(buffer)
    await b.events.until(lambda: len(b.events.bodies) == 3)


def intact(b: Node) -> bool:
    return all(set(body) == {number} for number, (_, _, body) in enumerate(b.events.bodies))


@on_both_loops
async def test_a_buffer_overwritten_after_send_body_returned_arrives_unchanged() -> None:
    async with pair() as (a, b):
        await send_and_overwrite(a, b)
        assert intact(b)


def test_the_same_without_waiting_for_an_empty_write_buffer_arrives_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    transmit = Link._transmit

    def hasty(link: Link) -> None:
        """The ablation of the test above: written counts as sent."""
        transmit(link)
        for sending in link._draining:
            sending.finish()
        link._draining.clear()

    monkeypatch.setattr(Link, "_transmit", hasty)

    async def body() -> None:
        async with pair() as (a, b):
            await send_and_overwrite(a, b)
            assert not intact(b)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(body())


@on_both_loops
async def test_large_bodies_both_ways_at_once() -> None:
    async with pair() as (a, b):
        sizes = [8 * MIB + 1, 3, 0, 5 * MIB, 64 * 1024, MIB, 70_001, 2 * MIB]
        bodies = [bytes([number + 1]) * size for number, size in enumerate(sizes)]
        async with asyncio.TaskGroup() as group:
            for number, body in enumerate(bodies):
                for here, there in ((a, b), (b, a)):
                    message = Tensor("job", 1, number, 0)
                    group.create_task(
                        here.transport.send_body(there.id, message, memoryview(body), priority=number % 3)
                    )
        for node in (a, b):
            await node.events.until(lambda node=node: len(node.events.bodies) == len(bodies))
            for _, message, body in node.events.bodies:
                assert isinstance(message, Tensor)
                assert body == bodies[message.transfer]


@on_both_loops
async def test_control_messages_pass_a_data_link_that_is_stuck() -> None:
    async with pair() as (a, b):
        b.events.on_body_for = lambda: data_link(b, a)._transport.pause_reading()
        sending = asyncio.ensure_future(a.transport.send_body(b.id, LinkProbe(1), memoryview(bytes(64 * MIB))))
        await b.events.until(lambda: b.events.asked)
        await condition(lambda: data_link(a, b)._paused)
        for number in range(100):
            a.transport.send(b.id, Granted("job", number))
        await b.events.until(lambda: len(b.events.messages) == 100)
        assert not sending.done()
        assert not b.events.bodies
        data_link(b, a)._transport.resume_reading()
        await sending
        await b.events.until(lambda: b.events.bodies)


@on_both_loops
async def test_a_body_that_nobody_wants_is_dropped() -> None:
    async with pair() as (a, b):
        b.events.drop_bodies = True
        await a.transport.send_body(b.id, LinkProbe(1), memoryview(bytes(3 * MIB)))
        await b.events.until(lambda: b.events.asked)
        b.events.drop_bodies = False
        await a.transport.send_body(b.id, LinkProbe(2), memoryview(b"wanted"))
        await b.events.until(lambda: b.events.bodies)
        assert b.events.bodies == [(a.id, LinkProbe(2), bytearray(b"wanted"))]


@on_both_loops
async def test_a_peer_that_reads_no_bodies_is_given_up() -> None:
    async with pair(SHORT) as (a, b):
        b.events.on_body_for = lambda: data_link(b, a)._transport.pause_reading()
        with pytest.raises(PeerGone, match=r"read nothing for 0\.15 s|is gone"):
            await a.transport.send_body(b.id, LinkProbe(1), memoryview(bytes(64 * MIB)))
        await a.events.until(lambda: a.events.lost)


@on_both_loops
async def test_a_slow_reader_is_not_given_up() -> None:
    async with pair(PATIENT) as (a, b):
        read_slowly(b, a)
        await a.transport.send_body(b.id, LinkProbe(1), memoryview(bytes(64 * MIB)))
        await b.events.until(lambda: b.events.bodies)
        assert a.events.lost == []


@on_both_loops
async def test_waiting_bodies_are_bounded() -> None:
    async with pair(Limits(bodies_max=3)) as (a, b):
        sends = [asyncio.ensure_future(a.transport.send_body(b.id, LinkProbe(n), memoryview(b"x"))) for n in range(4)]
        done, _ = await asyncio.wait(sends)
        errors = [task.exception() for task in done if task.exception() is not None]
        assert [type(error) for error in errors] == [LocalProtocolError]
        await a.transport.send_body(b.id, LinkProbe(9), memoryview(b"x"))


@on_both_loops
async def test_a_cancelled_send_that_has_not_begun_leaves_no_trace() -> None:
    async with pair() as (a, b):
        b.events.on_body_for = lambda: data_link(b, a)._transport.pause_reading()
        first = asyncio.ensure_future(a.transport.send_body(b.id, LinkProbe(1), memoryview(bytes(16 * MIB)), 0))
        await b.events.until(lambda: b.events.asked)
        buffer = bytearray(1000)
        view = memoryview(buffer)
        second = asyncio.ensure_future(a.transport.send_body(b.id, LinkProbe(2), view, 9))
        await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        view.release()
        buffer.append(1)  # BufferError if anybody still looked at it
        b.events.on_body_for = lambda: None
        data_link(b, a)._transport.resume_reading()
        await first
        await b.events.until(lambda: b.events.bodies)
        assert [message for _, message, _ in b.events.bodies] == [LinkProbe(1)]
        assert a.events.lost == []


@on_both_loops
async def test_a_cancelled_send_that_has_begun_is_finished_if_it_can_be() -> None:
    async with pair() as (a, b):
        read_slowly(b, a)
        buffer = bytearray(b"z" * 16 * MIB)
        sending = asyncio.ensure_future(a.transport.send_body(b.id, LinkProbe(1), memoryview(buffer)))
        await b.events.until(lambda: b.events.asked)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        buffer[:] = bytes(len(buffer))
        await b.events.until(lambda: b.events.bodies)
        assert b.events.bodies[0][2] == b"z" * 16 * MIB
        assert a.events.lost == []


@on_both_loops
async def test_a_cancelled_send_that_is_stuck_gives_up_the_links() -> None:
    async with pair(Limits(redial_first_s=0.01, redial_max_s=0.05, goodbye_s=0.2, cancel_grace_s=0.05)) as (a, b):
        b.events.on_body_for = lambda: data_link(b, a)._transport.pause_reading()
        buffer = bytearray(b"z" * 64 * MIB)
        view = memoryview(buffer)
        sending = asyncio.ensure_future(a.transport.send_body(b.id, LinkProbe(1), view))
        await b.events.until(lambda: b.events.asked)
        await condition(lambda: data_link(a, b)._paused)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        view.release()
        buffer.append(1)  # the transport has let go of it
        await a.events.until(lambda: a.events.lost)
        assert "given up in the middle" in a.events.lost[0][1]
        await b.events.until(lambda: b.events.lost)
        assert b.events.bodies == []
        await a.events.until(lambda: len(a.events.connected) == 2)


@on_both_loops
async def test_losing_the_peer_fails_every_waiting_send() -> None:
    async with pair() as (a, b):
        b.events.on_body_for = lambda: data_link(b, a)._transport.pause_reading()
        sends = [
            asyncio.ensure_future(a.transport.send_body(b.id, LinkProbe(n), memoryview(bytes(16 * MIB)), n % 2))
            for n in range(8)
        ]
        await b.events.until(lambda: b.events.asked)
        a.transport.forget(b.address)
        for link in list(b.transport._links):
            if link.kind is LinkKind.CONTROL:
                link._transport.abort()
        done, _ = await asyncio.wait(sends, timeout=5)
        assert len(done) == len(sends)
        assert all(isinstance(task.exception(), PeerGone) for task in done)


def test_limits_that_contradict_each_other_are_refused() -> None:
    changes: list[Callable[[], Limits]] = [
        lambda: Limits(redial_first_s=9),
        lambda: Limits(bodies_max=FAST.wire.queue_messages_max),
        lambda: Limits(handshakes_max=0),
        lambda: Limits(turn_bytes=1),
    ]
    for change in changes:
        with pytest.raises(ValueError, match="must satisfy"):
            change()
