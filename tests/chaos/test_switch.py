"""The switch by itself: what passes, what waits, what ends, between two sockets of this process."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from p2pnn.types import Address
from tests.chaos.node import through
from tests.chaos.switch import Switch, behind, door


@dataclass
class Pair:
    """a has dialled b through the switch."""

    switch: Switch
    port: int
    a: socket.socket
    b: socket.socket

    async def says(self, source: socket.socket, data: bytes) -> bytes:
        """What the other one hears of it."""
        await asyncio.get_running_loop().sock_sendall(source, data)
        return await self.hears(self.b if source is self.a else self.a)

    async def hears(self, target: socket.socket) -> bytes:
        async with asyncio.timeout(10):
            return await asyncio.get_running_loop().sock_recv(target, 1 << 16)


@contextlib.asynccontextmanager
async def pair() -> AsyncIterator[Pair]:
    switch, loop = Switch(), asyncio.get_running_loop()
    await switch.start()
    try:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            port = listener.getsockname()[1]
            switch.names[port] = "b"
            dialling = asyncio.ensure_future(through(switch.port, "a", Address("127.0.0.1", port)))
            accepted, _ = await loop.sock_accept(listener)
            accepted.setblocking(False)
            with await dialling as dialled, accepted:
                yield Pair(switch, port, dialled, accepted)
    finally:
        await switch.close()


async def silent(p: Pair, target: socket.socket, way: tuple[str, str]) -> bool:
    """Whether a piece waits in this way, and nothing has come out of it."""
    async with asyncio.timeout(10):
        while not p.switch.way(*way).held:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    with pytest.raises(BlockingIOError):
        target.recv(1)
    return True


def test_every_port_has_a_door_of_its_own() -> None:
    assert [behind(door(port)) for port in (1, 255, 256, 65_535)] == [1, 255, 256, 65_535]


@pytest.mark.asyncio
async def test_bytes_pass_both_ways_and_ends_are_passed_on_one_by_one() -> None:
    async with pair() as p:
        assert await p.says(p.a, b"to b") == b"to b"
        assert await p.says(p.b, b"to a") == b"to a"
        p.a.shutdown(socket.SHUT_WR)
        assert await p.hears(p.b) == b""
        assert await p.says(p.b, b"still") == b"still"
        assert (p.switch.way("a", "b").passed_bytes, p.switch.way("b", "a").passed_bytes) == (4, 9)


@pytest.mark.asyncio
async def test_a_cut_way_holds_what_is_sent_and_the_other_way_goes_on() -> None:
    async with pair() as p:
        p.switch.cut("a", "b")
        await asyncio.get_running_loop().sock_sendall(p.a, b"held")
        assert await silent(p, p.b, ("a", "b"))
        assert await p.says(p.b, b"back") == b"back"
        p.switch.heal("a", "b")
        assert await p.hears(p.b) == b"held"


@pytest.mark.asyncio
async def test_new_connections_need_both_ways() -> None:
    async with pair() as p:
        p.switch.cut("b", "a")
        dialling = asyncio.ensure_future(through(p.switch.port, "a", Address("127.0.0.1", p.port)))
        assert await silent(p, p.b, ("b", "a"))
        assert not dialling.done()
        p.switch.heal("b", "a")
        async with asyncio.timeout(10):
            (await dialling).close()


@pytest.mark.asyncio
async def test_a_reset_ends_all_connections_and_a_new_one_can_be_made() -> None:
    async with pair() as p:
        assert await p.says(p.a, b"there") == b"there"
        assert p.switch.connections("a", "b") == 1
        p.switch.reset("b", "a")
        for one in (p.a, p.b):
            with pytest.raises(ConnectionResetError):
                await p.hears(one)
        async with asyncio.timeout(10):
            again = await through(p.switch.port, "a", Address("127.0.0.1", p.port))
        again.close()


@pytest.mark.asyncio
async def test_who_dials_by_the_address_that_a_peer_seems_to_have_comes_to_the_same_one() -> None:
    async with pair() as p:
        seen = p.a.getpeername()
        async with asyncio.timeout(10):
            again = await through(p.switch.port, "a", Address(*seen))
        assert again.getpeername() == seen == (door(p.port), p.switch.port)
        again.close()


@pytest.mark.asyncio
async def test_nobody_listening_is_a_refusal_and_strangers_are_sent_away() -> None:
    async with pair() as p:
        with socket.create_server(("127.0.0.1", 0)) as gone:
            port = gone.getsockname()[1]
        with pytest.raises(ConnectionRefusedError):
            await through(p.switch.port, "a", Address("127.0.0.1", port))
        with socket.create_connection(("127.0.0.1", p.switch.port)) as stranger:
            stranger.setblocking(False)
            await asyncio.get_running_loop().sock_sendall(stranger, b"x" * 64)
            with contextlib.suppress(ConnectionResetError):
                assert await p.hears(stranger) == b""


@pytest.mark.asyncio
async def test_a_slow_way_keeps_the_order_and_takes_its_time() -> None:
    async with pair() as p:
        way = p.switch.way("a", "b")
        way.delay_s = 0.05
        begin = asyncio.get_running_loop().time()
        for byte in b"abc":
            await asyncio.get_running_loop().sock_sendall(p.a, bytes([byte]))
        heard = b""
        while len(heard) < 3:
            heard += await p.hears(p.b)
        assert heard == b"abc"
        assert asyncio.get_running_loop().time() - begin >= way.delay_s
