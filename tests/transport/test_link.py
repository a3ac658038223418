"""Bodies: whole, in place, not released early, not in the way of control messages, and given up cleanly."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import pytest
import uvloop

from p2pnn.errors import PeerGone
from p2pnn.transport import Limits
from p2pnn.transport.link import Link
from p2pnn.wire.messages import Granted, LinkProbe, Tensor
from tests.transport.harness import (
    FAST,
    MIB,
    PATIENT,
    SHORT,
    Node,
    condition,
    data_link,
    on_both_loops,
    pair,
    read_slowly,
)


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
        await condition(lambda: data_link(a, b)._transport.waiting)
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


@on_both_loops
async def test_what_waits_on_a_link_that_breaks_while_it_writes_was_not_sent() -> None:
    async with pair() as (a, b):
        await a.transport.send_body(b.id, LinkProbe(0), memoryview(b"x"))
        link = data_link(a, b)
        stream, link._turn_bytes = link._transport, 0
        assert stream is not None

        def breaks(*views: bytes | memoryview) -> bool:
            stream._break(ConnectionResetError())
            return False

        stream.write = breaks  # type: ignore[method-assign]
        sends = [asyncio.ensure_future(a.transport.send_body(b.id, LinkProbe(n), memoryview(b"x"))) for n in range(3)]
        done, _ = await asyncio.wait(sends)
        assert [type(task.exception()) for task in done] == [PeerGone] * 3
