"""How a part speaks to the other nodes of its start, and to itself."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from p2pnn.node.company import AT_ONCE, COPY_BYTES, Company
from p2pnn.types import NodeId
from p2pnn.wire import messages as wire
from tests.node.nodes import JOB, NAMES, A, B, C, post, until

pytestmark = pytest.mark.asyncio

MESSAGE = wire.Values(JOB, 1, 0, 0, 0, 0, 0, 0, True, 0)


class Here:
    """The part, which has one place for bodies."""

    def __init__(self, room: int = 0) -> None:
        self.post, self.outside = post(A)
        self.memory = bytearray(room)
        self.arrivals: list[NodeId] = []
        self.lost: list[tuple[NodeId, str]] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.left = 0
        lost = lambda node, reason: self.lost.append((node, reason))  # noqa: E731
        self.company = Company((JOB, 1), 0, [A, B], NAMES, self.post, self, self.spawn, lost)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self.tasks.append(asyncio.get_running_loop().create_task(work))

    def body_for(self, node: NodeId, message: wire.Message, nbytes: int) -> memoryview | None:
        return memoryview(self.memory)[:nbytes] if self.memory else None

    def arrived(self, node: NodeId, message: wire.Message) -> None:
        self.arrivals.append(node)

    def send(self, index: int, body: bytes) -> None:
        def left() -> None:
            self.left += 1

        self.company.send_body(index, MESSAGE, memoryview(body), 1, left)


async def test_a_body_to_this_node_is_copied_a_little_at_a_time() -> None:
    here = Here(room=3 * COPY_BYTES)
    body = bytes(range(256)) * (2 * COPY_BYTES // 256) + b"end"
    here.send(0, body)
    assert (here.arrivals, here.left) == ([], 0), "the loop has its turn before"
    await until(lambda: here.left)
    assert (here.arrivals, bytes(here.memory[: len(body)])) == ([A], body)
    assert here.outside.bodies == []


async def test_a_body_that_this_node_does_not_want_has_left_as_well() -> None:
    here = Here()
    here.send(0, b"abcd")
    await until(lambda: here.left)
    assert here.arrivals == []


async def test_a_body_to_a_node_that_is_gone_is_told_and_free() -> None:
    here = Here()
    here.send(1, b"abcd")
    assert (here.left, [node for node, _, _ in here.outside.bodies]) == (1, [B])
    here.outside.peers.discard(B)
    here.send(1, b"abcd")
    await until(lambda: here.lost)
    assert here.lost == [(B, "it is not connected")]
    assert here.left == 2
    here.company.send_body(1, MESSAGE, None, 1, lambda: pytest.fail("nothing was sent"))


async def test_the_transport_has_few_bodies_at_once_and_then_those_that_are_needed_first() -> None:
    here = Here()
    here.outside.hold = asyncio.Event()
    for number in range(AT_ONCE + 3):
        here.company.send_body(1, MESSAGE, memoryview(bytes([number % 256])), 9 - number % 3, lambda: None)
    here.send(1, b"urgent")
    await until(lambda: len(here.outside.bodies) == AT_ONCE)
    await asyncio.sleep(0)
    assert len(here.outside.bodies) == AT_ONCE
    here.outside.hold.set()
    await until(lambda: len(here.outside.bodies) == AT_ONCE + 4)
    assert here.outside.bodies[AT_ONCE][2] == b"urgent"
    await until(lambda: here.left == 1)


async def test_what_is_recalled_has_left_whether_the_transport_has_it_or_not() -> None:
    here = Here()
    here.outside.hold = asyncio.Event()
    left: list[int] = []
    for token in range(1, AT_ONCE + 3):
        here.company.send_body(1, MESSAGE, memoryview(b"abcd"), 1, lambda token=token: left.append(token), token)
    await until(lambda: len(here.outside.bodies) == AT_ONCE)
    here.company.recall(1, {3, AT_ONCE + 1, 999})
    await until(lambda: len(left) == 2)
    assert sorted(left) == [3, AT_ONCE + 1]
    assert len(here.outside.recalled) == 1
    here.outside.hold.set()
    await until(lambda: len(left) == AT_ONCE + 2)
    assert len(here.outside.bodies) == AT_ONCE + 1, "what had not begun never left"
    assert here.lost == []


async def test_nodes_are_known_by_their_place_and_messages_go_to_any() -> None:
    here = Here()
    assert (here.company.index_of(B), here.company.index_of(C)) == (1, -1)
    assert (here.company.name(B), here.company.name(NodeId("d" * 32))) == ("b", "dddddddd")
    for index in (0, 1):
        here.company.send(index, wire.Mark(JOB, 1, 0, 0, 1))
    await until(lambda: len(here.outside.sent) == 2)
    assert {node for node, _ in here.outside.sent} == {A, B}


async def test_of_many_refused_messages_of_a_kind_only_some_are_told(caplog: pytest.LogCaptureFixture) -> None:
    company = Here().company
    for number in range(1000):
        company.refused("push refused", B, f"no worker sends {number}")
    company.refused("values refused", B, "nor that")
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 16 + 5 + 1
    assert lines[0] == f"push refused job={JOB} node={NAMES[B]} reason=no worker sends 0"
    assert lines[-2].endswith("no worker sends 511; 512 of these so far, not all of which are told")
