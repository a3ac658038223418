"""A peer's bodies: bounded, given up cleanly, and failed together with it."""

from __future__ import annotations

import asyncio

import pytest

from p2pnn.errors import LocalProtocolError, PeerGone
from p2pnn.transport import Limits
from p2pnn.wire.messages import LinkKind, LinkProbe
from tests.transport.harness import MIB, condition, data_link, on_both_loops, pair, read_slowly


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
async def test_a_cancelled_send_on_a_slow_link_is_given_time_while_its_bytes_move() -> None:
    async with pair(Limits(cancel_grace_s=0.05)) as (a, b):
        read_slowly(b, a, rest_s=0.02)
        sending = asyncio.ensure_future(a.transport.send_body(b.id, LinkProbe(1), memoryview(bytes(64 * MIB))))
        await b.events.until(lambda: b.events.asked)
        began = asyncio.get_running_loop().time()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        assert asyncio.get_running_loop().time() - began > 0.06, "this was no slow link"
        await b.events.until(lambda: b.events.bodies)
        assert a.events.lost == []


@on_both_loops
async def test_a_cancelled_send_that_takes_too_long_gives_up_the_links() -> None:
    async with pair(Limits(goodbye_s=0.2, cancel_grace_s=0.1, cancel_max_s=0.1)) as (a, b):
        read_slowly(b, a, rest_s=0.05)
        sending = asyncio.ensure_future(a.transport.send_body(b.id, LinkProbe(1), memoryview(bytes(128 * MIB))))
        await b.events.until(lambda: b.events.asked)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        await a.events.until(lambda: a.events.lost)
        assert "given up in the middle" in a.events.lost[0][1]


@on_both_loops
async def test_a_cancelled_send_that_is_stuck_gives_up_the_links() -> None:
    async with pair(Limits(redial_first_s=0.01, redial_max_s=0.05, goodbye_s=0.2, cancel_grace_s=0.05)) as (a, b):
        b.events.on_body_for = lambda: data_link(b, a)._transport.pause_reading()
        buffer = bytearray(b"z" * 64 * MIB)
        view = memoryview(buffer)
        sending = asyncio.ensure_future(a.transport.send_body(b.id, LinkProbe(1), view))
        await b.events.until(lambda: b.events.asked)
        await condition(lambda: data_link(a, b)._transport.waiting)
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
async def test_a_recalled_body_is_free_at_once_and_what_has_begun_arrives_whole() -> None:
    async with pair() as (a, b):
        b.events.on_body_for = lambda: data_link(b, a)._transport.pause_reading()
        memories = [bytearray(bytes([number]) * size) for number, size in ((1, 16 * MIB), (2, 1000))]
        views = [memoryview(memory) for memory in memories]
        begun = a.transport.start_body(b.id, LinkProbe(1), views[0], 0)
        await b.events.until(lambda: b.events.asked)
        await condition(lambda: data_link(a, b)._transport.waiting)
        other = a.transport.start_body(b.id, LinkProbe(2), views[1], 9)
        for leaving, view, memory in zip((begun, other), views, memories, strict=True):
            assert leaving is not None
            leaving.recall()
            leaving.recall()
            await leaving
            view.release()
            memory[:] = bytes(len(memory))
            memory.append(1)  # BufferError if anybody still looked at it
        b.events.on_body_for = lambda: None
        data_link(b, a)._transport.resume_reading()
        await a.transport.send_body(b.id, LinkProbe(3), memoryview(b"behind"), 9)
        await b.events.until(lambda: len(b.events.bodies) == 2)
        assert [(message, bytes(body)) for _, message, body in b.events.bodies] == [
            (LinkProbe(1), b"\1" * 16 * MIB),
            (LinkProbe(3), b"behind"),
        ]
        assert a.events.lost == []


@on_both_loops
async def test_a_body_that_is_recalled_before_there_is_a_link_never_leaves() -> None:
    async with pair() as (a, b):
        first, second = (
            a.transport.start_body(b.id, LinkProbe(number), memoryview(bytes([number]))) for number in (1, 2)
        )
        assert first is not None
        assert second is not None
        first.recall()
        await first
        await second
        await b.events.until(lambda: b.events.bodies)
        assert [message for _, message, _ in b.events.bodies] == [LinkProbe(2)]


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
