"""Real transports on 127.0.0.1, under both event loops, and a recorder that can be waited on."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import uvloop

from p2pnn.transport import Limits, LocalIdentity, PeerIdentity, Transport
from p2pnn.transport.link import Link
from p2pnn.types import Address, NodeId
from p2pnn.wire.limits import Limits as WireLimits
from p2pnn.wire.messages import Message

DEADLINE_S = 10.0
MIB = 1 << 20
LOCAL = Address("127.0.0.1", 0)

FAST = Limits(redial_first_s=0.01, redial_max_s=0.05, goodbye_s=0.3, data_deadline_s=2.0)
"""As in production, but quick to dial again."""

SHORT = Limits(
    wire=WireLimits(
        handshake_deadline_s=0.15,
        frame_deadline_s=0.3,
        stall_deadline_s=0.15,
        ping_interval_s=0.05,
        silent_deadline_s=0.2,
    ),
    redial_first_s=0.01,
    redial_max_s=0.05,
    goodbye_s=0.1,
    data_deadline_s=0.5,
    cancel_grace_s=0.1,
)
"""Deadlines that a test can wait for."""

PATIENT = Limits(
    wire=WireLimits(
        handshake_deadline_s=0.5,
        frame_deadline_s=1.5,
        stall_deadline_s=0.5,
        ping_interval_s=0.2,
        silent_deadline_s=1.5,
    ),
    redial_first_s=0.01,
    redial_max_s=0.05,
    goodbye_s=0.2,
)
"""Deadlines that a test can wait for, and that a peer keeps on a machine that does other things as well."""


def on_both_loops(test: Callable[[], Awaitable[None]]) -> Callable[..., None]:
    """Run a coroutine test under asyncio and under uvloop; whatever reaches the loop's exception hook fails it."""

    @pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
    @functools.wraps(test)
    def run(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
        unhandled: list[dict[str, Any]] = []

        async def body() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
            async with asyncio.timeout(3 * DEADLINE_S):
                await test()

        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(body())
        assert unhandled == [], unhandled

    del run.__wrapped__  # type: ignore[attr-defined]  # else pytest takes the coroutine function's signature
    return run


class Recorder:
    """The owner of a transport: keeps what it is told. `until` waits for a condition over that."""

    def __init__(self) -> None:
        self.connected: list[PeerIdentity] = []
        self.lost: list[tuple[NodeId, str, bool]] = []
        self.messages: list[tuple[NodeId, Message]] = []
        self.bodies: list[tuple[NodeId, Message, bytearray]] = []
        self.asked: list[tuple[NodeId, Message, int]] = []
        self.failed: list[tuple[Address, str]] = []
        self.refused: list[bool] = []
        self.reached: list[tuple[Address, NodeId]] = []
        self.drop_bodies = False
        self.on_body_for: Callable[[], None] = lambda: None
        self._places: dict[tuple[NodeId, bytes], bytearray] = {}
        self._changed = asyncio.Event()

    def peer_connected(self, node: NodeId, hello: PeerIdentity) -> None:
        assert node == hello.node
        self.connected.append(hello)
        self._changed.set()

    def peer_lost(self, node: NodeId, reason: str, left: bool) -> None:
        self.lost.append((node, reason, left))
        self._changed.set()

    def message(self, node: NodeId, message: Message) -> None:
        self.messages.append((node, message))
        self._changed.set()

    def body_for(self, node: NodeId, message: Message, nbytes: int) -> memoryview | None:
        self.asked.append((node, message, nbytes))
        self.on_body_for()
        self._changed.set()
        if self.drop_bodies:
            return None
        place = self._places[node, repr(message).encode()] = bytearray(nbytes)
        return memoryview(place)

    def body(self, node: NodeId, message: Message) -> None:
        self.bodies.append((node, message, self._places.pop((node, repr(message).encode()))))
        self._changed.set()

    def dial_reached(self, address: Address, node: NodeId) -> None:
        self.reached.append((address, node))
        self._changed.set()

    def dial_failed(self, address: Address, reason: str, refused: bool) -> None:
        self.failed.append((address, reason))
        self.refused.append(refused)
        self._changed.set()

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def nodes(self) -> list[NodeId]:
        return [peer.node for peer in self.connected]


class Node:
    """A transport with its recorder, listening."""

    def __init__(self, number: int, limits: Limits = FAST, cluster: str = "test", boot: str = "boot") -> None:
        self.id = NodeId(f"{number:032x}")
        self.events = Recorder()
        self.transport = Transport(LocalIdentity(self.id, f"n{number}", cluster, boot), self.events, limits)
        self.address = LOCAL

    async def start(self, listen: Address = LOCAL) -> Node:
        self.address = await self.transport.start(listen)
        return self


@contextlib.asynccontextmanager
async def nodes(*numbers: int, limits: Limits = FAST) -> AsyncIterator[list[Node]]:
    """Listening nodes that know nothing of each other; closed at the end."""
    started = [await Node(number, limits).start() for number in numbers]
    try:
        yield started
    finally:
        for node in started:
            await node.transport.close("the test is over")


@contextlib.asynccontextmanager
async def pair(limits: Limits = FAST) -> AsyncIterator[tuple[Node, Node]]:
    """Two nodes with a control link, dialled by the first."""
    async with nodes(1, 2, limits=limits) as (a, b):
        await connect(a, b)
        yield a, b


async def connect(a: Node, b: Node) -> None:
    a.transport.dial(b.address)
    await a.events.until(lambda: a.transport.connected(b.id))
    await b.events.until(lambda: b.transport.connected(a.id))


async def condition(check: Callable[[], object]) -> None:
    """Wait for something that no recorder tells, by turns of the loop."""
    async with asyncio.timeout(DEADLINE_S):
        while not check():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def data_link(node: Node, peer: Node) -> Link:
    link = node.transport._peers[peer.id].data
    assert link is not None
    return link


def control_link(node: Node, peer: Node) -> Link:
    link = node.transport._peers[peer.id].control
    assert link is not None
    return link


def read_slowly(node: Node, peer: Node, rest_s: float = 0.003) -> None:
    """From the first body on, `node` reads its data link in bursts of a few milliseconds with rests of `rest_s` between."""
    loop = asyncio.get_running_loop()

    def rest(link: Link) -> None:
        if link._transport is not None and not link._transport.is_closing():
            link._transport.pause_reading()
            loop.call_later(rest_s, wake, link)

    def wake(link: Link) -> None:
        if link._transport is not None and not link._transport.is_closing():
            link._transport.resume_reading()
            loop.call_later(0.002, rest, link)

    def begin() -> None:
        node.events.on_body_for = lambda: None
        rest(data_link(node, peer))

    node.events.on_body_for = begin
