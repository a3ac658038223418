"""A socket under the loop: what was taken is free, what was not is kept and follows, and every end is told once."""

from __future__ import annotations

import asyncio
import socket

from p2pnn.transport.stream import Stream
from tests.transport.harness import MIB, condition, on_both_loops


class Reader:
    """Keeps what it is told and reads everything into one buffer per call."""

    def __init__(self, sock: socket.socket) -> None:
        self.received = bytearray()
        self.ended = False
        self.drains = 0
        self.lost: list[Exception | None] = []
        self.stream = Stream(sock, self)
        self.stream.resume_reading()

    def readable(self) -> None:
        first, second = bytearray(1000), bytearray(70_000)
        while (count := self.stream.receive([memoryview(first), memoryview(second)])) is not None:
            if count == 0:
                self.ended = True
                self.stream.pause_reading()
                return
            self.received += (first + second)[:count]

    def drained(self) -> None:
        assert self.stream.waiting == 0
        self.drains += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)


def pair() -> tuple[Reader, Reader]:
    left, right = socket.socketpair()
    return Reader(left), Reader(right)


@on_both_loops
async def test_what_fits_has_left_when_write_returns() -> None:
    a, b = pair()
    assert a.stream.write(b"head", memoryview(b"body"))
    assert a.stream.waiting == 0
    await condition(lambda: b.received == b"headbody")
    for side in (a, b):
        side.stream.abort()
    await condition(lambda: a.lost == b.lost == [None])


@on_both_loops
async def test_what_does_not_fit_is_kept_and_follows_in_order() -> None:
    a, b = pair()
    b.stream.pause_reading()
    first, second = bytes(range(256)) * (16 * MIB // 256), b"z" * 1000
    assert not a.stream.write(b"head", memoryview(first))
    before = a.stream.waiting
    assert 0 < before < len(first)
    assert not a.stream.write(memoryview(second))
    assert a.stream.waiting == before + len(second)
    assert a.drains == 0
    b.stream.resume_reading()
    await condition(lambda: len(b.received) == 4 + len(first) + len(second))
    assert b.received == b"head" + first + second
    assert a.drains == 1
    for side in (a, b):
        side.stream.abort()
    await condition(lambda: a.lost and b.lost)


@on_both_loops
async def test_an_end_of_file_comes_behind_what_waits() -> None:
    a, b = pair()
    b.stream.pause_reading()
    a.stream.write(memoryview(bytes(16 * MIB)))
    a.stream.write_eof()
    assert not a.stream.write(b"too late")
    b.stream.resume_reading()
    await condition(lambda: b.ended)
    assert len(b.received) == 16 * MIB
    assert a.lost == [], "the other direction is still open"
    b.stream.write(b"answer")
    await condition(lambda: a.received == b"answer")
    for side in (a, b):
        side.stream.abort()
    await condition(lambda: a.lost and b.lost)


@on_both_loops
async def test_closing_waits_for_what_was_written() -> None:
    a, b = pair()
    b.stream.pause_reading()
    a.stream.write(memoryview(bytes(16 * MIB)))
    a.stream.close()
    b.stream.resume_reading()
    await condition(lambda: b.ended)
    assert len(b.received) == 16 * MIB
    await condition(lambda: a.lost == [None])
    b.stream.abort()
    await condition(lambda: b.lost)


@on_both_loops
async def test_a_connection_that_breaks_is_told_once_and_not_from_within_write() -> None:
    a, b = pair()
    b.stream.abort()
    await condition(lambda: b.lost)
    a.stream.pause_reading()
    assert not a.stream.write(b"nobody is there")
    assert a.lost == []
    assert a.stream.is_closing()
    a.stream.write(b"and again")
    a.stream.abort()
    await condition(lambda: a.lost)
    await asyncio.sleep(0)
    assert len(a.lost) == 1
    assert isinstance(a.lost[0], OSError)
