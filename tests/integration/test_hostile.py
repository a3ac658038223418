"""Bytes from people who mean harm, or from programs that are something else, on a raw socket beside a peer at work."""

from __future__ import annotations

import asyncio
import logging
import struct
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import msgspec
import pytest

from p2pnn.errors import RemoteProtocolError
from p2pnn.wire.codec import encode
from p2pnn.wire.connection import Connection, Role
from p2pnn.wire.events import Closed
from p2pnn.wire.frame import FLAG_MORE, encode_frame
from p2pnn.wire.messages import CloseReason, Granted, Hello, LinkKind, LinkProbe, Roster, Tensor
from tests.transport.harness import DEADLINE_S, PATIENT, Node, on_both_loops, pair

STRANGER = "e" * 32


def hello(**changes: object) -> Hello:
    told = Hello(1, 1, LinkKind.CONTROL, STRANGER, "stranger", "test", 1, "boot")
    return msgspec.structs.replace(told, **changes)


def frame(message: object) -> bytes:
    return encode_frame(encode(message))


class Raw:
    """A raw socket to a node; `reason` reads until the node closes and tells the reason of its Close."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def reason(self) -> int:
        received = b""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                try:
                    chunk = await self.reader.read(65536)
                except ConnectionError:
                    break
                if not chunk:
                    break
                received += chunk
        return reason_in(received)


def reason_in(received: bytes) -> int:
    """The Close in what a node sent, read by our own dialling side."""
    for offset in range(0, len(received), 8):  # frames are aligned; skip the Welcome
        connection = Connection(Role.DIALER, hello(), lambda message, nbytes: None)
        for event in connection.receive(received[offset:], 0.0):
            if isinstance(event, Closed) and event.by_peer:
                return event.reason
    return 0


@asynccontextmanager
async def raw(node: Node) -> AsyncIterator[Raw]:
    reader, writer = await asyncio.open_connection(node.address.host, node.address.port)
    try:
        yield Raw(reader, writer)
    finally:
        writer.transport.abort()


@asynccontextmanager
async def at_work() -> AsyncIterator[Node]:
    """A node whose peer sends it messages and bodies all the time; the peer must not notice anything."""
    async with pair(PATIENT) as (a, b):
        body = bytes(range(256)) * 1000
        stop = asyncio.Event()

        async def once(count: int) -> None:
            b.transport.send(a.id, Granted("job", count))
            await b.transport.send_body(a.id, Tensor("job", 1, 0, count), memoryview(body))
            await a.events.until(lambda: len(a.events.bodies) > count and len(a.events.messages) > count)
            assert a.events.bodies[count][2] == body
            a.events.bodies[count][2].clear()

        async def work() -> int:
            count = 0
            while not stop.is_set():
                await once(count)
                count += 1
            return count

        working = asyncio.ensure_future(work())
        try:
            await a.events.until(lambda: a.events.bodies)
            yield a
            count = len(a.events.bodies)
            await a.events.until(lambda: len(a.events.bodies) > count + 1)
        finally:
            stop.set()
        assert await working > 0
        assert b.events.lost == []
        assert [node for node, _, _ in a.events.lost if node == b.id] == []


BAD: dict[str, tuple[tuple[object, ...], CloseReason]] = {
    "an HTTP request": ((b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",), CloseReason.MALFORMED),
    "another layout": ((b"p2nn\x09" + bytes(27),), CloseReason.VERSION),
    "a header of 4 GiB": (
        (struct.pack("<4sBBHIIIQI", b"p2nn", 1, 0, 0, 2**32 - 1, 0, 0, 0, 0),),
        CloseReason.TOO_LARGE,
    ),
    "a wrong checksum": ((frame(hello())[:28] + b"\0\0\0\0" + frame(hello())[32:],), CloseReason.MALFORMED),
    "nested arrays": ((encode_frame(b"\x91" * 60_000),), CloseReason.MALFORMED),
    "a message that is none": ((encode_frame(msgspec.msgpack.encode([4711, "x"])),), CloseReason.MALFORMED),
    "no greeting": ((Granted("job", 1),), CloseReason.UNEXPECTED),
    "a body before the greeting": (
        (encode_frame(encode(LinkProbe(1)), FLAG_MORE, 1000, 1, 2000),),
        CloseReason.UNEXPECTED,
    ),
    "another cluster": ((hello(cluster="tesT"),), CloseReason.WRONG_CLUSTER),
    "another version": ((hello(version_min=7, version_max=9),), CloseReason.VERSION),
    "a session that is not": ((hello(link=LinkKind.DATA, session="guess"),), CloseReason.NO_SESSION),
    "a body on a control link": (
        (hello(), encode_frame(encode(LinkProbe(1)), 0, 4, 1, 4) + b"abcd"),
        CloseReason.UNEXPECTED,
    ),
    "a second greeting": ((hello(), hello()), CloseReason.UNEXPECTED),
    "silence": ((), CloseReason.TOO_SLOW),
    "half a greeting": ((frame(hello())[:40],), CloseReason.TOO_SLOW),
    "half a message": ((hello(), frame(Granted("job", 1))[:35]), CloseReason.TOO_SLOW),
    "silence after the greeting": ((hello(),), CloseReason.SILENT),
}


@on_both_loops
async def test_each_bad_stranger_is_told_its_reason_while_a_peer_works() -> None:
    async with at_work() as node:

        async def visit(name: str, parts: tuple[object, ...], expected: CloseReason, number: int) -> None:
            async with raw(node) as stranger:
                for part in parts:
                    told = msgspec.structs.replace(part, node=f"{number:032x}") if isinstance(part, Hello) else part
                    stranger.writer.write(told if isinstance(told, bytes) else frame(told))
                seen = await stranger.reason()
                assert seen == expected, f"{name}: {seen} instead of {expected!r}"

        async with asyncio.TaskGroup() as group:
            for number, (name, (parts, expected)) in enumerate(BAD.items(), start=100):
                group.create_task(visit(name, parts, expected, number))


@on_both_loops
async def test_a_dribble_does_not_outlast_the_handshake() -> None:
    async with at_work() as node, raw(node) as stranger:

        async def dribble() -> None:
            for byte in frame(hello()):
                stranger.writer.write(bytes([byte]))
                await asyncio.sleep(0.05)

        dribbling = asyncio.ensure_future(dribble())
        assert await stranger.reason() == CloseReason.TOO_SLOW
        dribbling.cancel()


@on_both_loops
async def test_random_and_mutated_bytes_cost_neither_memory_nor_the_peer() -> None:
    random = Random(2)
    good = frame(hello()) + frame(Roster(())) + frame(Granted("job", 1))
    inputs = [random.randbytes(random.randint(1, 100_000)) for _ in range(15)]
    for _ in range(25):
        mutated = bytearray(good)
        for _ in range(random.randint(1, 6)):
            mutated[random.randrange(len(mutated))] = random.randrange(256)
        inputs.append(bytes(mutated[: random.randint(1, len(mutated))]))

    async def visit(node: Node, data: bytes) -> None:
        async with raw(node) as stranger:
            stranger.writer.write(data)
            await stranger.reason()

    async with at_work() as node:
        tracemalloc.start()
        try:
            await asyncio.gather(*(visit(node, data) for data in inputs))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 40 * 200_000 + 16_000_000, peak  # a link's buffer, the test's own, and the peer's bodies


@on_both_loops
async def test_a_crowd_that_says_nothing_is_bounded() -> None:
    async with at_work() as node:
        crowd = await asyncio.gather(
            *(asyncio.open_connection(node.address.host, node.address.port) for _ in range(PATIENT.handshakes_max + 20))
        )
        reasons = await asyncio.gather(*(Raw(reader, writer).reason() for reader, writer in crowd))
        for _, writer in crowd:
            writer.transport.abort()
        assert set(reasons) == {CloseReason.TOO_MANY, CloseReason.TOO_SLOW}
        assert reasons.count(CloseReason.TOO_MANY) >= 20


def test_a_bad_peer_is_a_warning_and_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> None:
        async with pair(PATIENT) as (a, _), raw(a) as stranger:
            stranger.writer.write(frame(hello()) + frame(hello()))
            assert await stranger.reason() == CloseReason.UNEXPECTED
            await a.events.until(lambda: a.events.lost)

    with caplog.at_level(logging.INFO, "p2pnn.transport"):
        asyncio.run(body())
    (line,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert line.exc_info is None
    assert (
        "node=eeeeeeee name=stranger kind=control by=us reason=12 text=Hello came after the handshake"
        in line.getMessage()
    )


@on_both_loops
async def test_what_the_owner_refuses_closes_the_link_with_its_reason() -> None:
    async with pair() as (a, b):

        def refuse() -> None:
            raise RemoteProtocolError(CloseReason.UNEXPECTED, "nobody asked for this")

        b.events.on_body_for = refuse
        sending = asyncio.ensure_future(a.transport.send_body(b.id, LinkProbe(1), memoryview(b"x")))
        await a.events.until(lambda: a.events.lost)
        assert "nobody asked for this" in a.events.lost[0][1]
        await asyncio.wait([sending])


def test_a_fault_of_ours_is_logged_loudly_and_closes_the_link(caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> None:
        async with pair() as (a, b):

            def fail() -> None:
                raise KeyError("a bug")

            b.events.on_body_for = fail
            sending = asyncio.ensure_future(a.transport.send_body(b.id, LinkProbe(1), memoryview(b"x")))
            await a.events.until(lambda: a.events.lost)
            await asyncio.wait([sending])
            assert sending.done()

    asyncio.run(body())
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert errors
    assert errors[0].exc_info is not None
