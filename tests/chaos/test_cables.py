"""Network namespaces that hold nodes, and their cables."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.chaos import cables
from tests.chaos.mesh import mesh

pytestmark = pytest.mark.skipif(bool(cables.missing()), reason=cables.missing())


@pytest.fixture
def room() -> Iterator[cables.Cables]:
    with closing(cables.Cables()) as found:
        yield found


def within(namespace: int, do: Callable[[], Any]) -> Any:
    """What `do` gives in a namespace, from a thread that is moved there and ends."""
    found: list[Any] = []

    def work() -> None:
        cables.enter(os.dup(namespace))
        found.append(do())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return found[0]


def received(sock: socket.socket) -> int:
    """How many bytes come until for a while none do."""
    came = 0
    with contextlib.suppress(TimeoutError):
        while got := len(sock.recv(1 << 20)):
            came += got
    return came


def test_bytes_pass_until_the_cable_is_pulled_and_wait_until_it_is_back(room: cables.Cables) -> None:
    one, _ = room.lay("a")
    other, host = room.lay("b")
    assert room.lay("b") == (other, host)
    with within(other, lambda: socket.create_server((host, 0))) as listener:
        near = within(one, lambda: socket.create_connection(listener.getsockname(), 10))
        far, _ = listener.accept()
        with near, far:
            near.sendall(b"a")
            assert far.recv(8) == b"a"
            room.pull("b")
            near.sendall(b"b")
            far.settimeout(0.05)
            with pytest.raises(TimeoutError):
                far.recv(8)
            room.plug_in("b")
            far.settimeout(20)
            assert far.recv(8) == b"b"


@pytest.mark.skipif(shutil.which("tc") is None, reason="the program tc is not installed (package iproute2)")
def test_a_shaped_cable_holds_bytes_back_in_both_directions(room: cables.Cables) -> None:
    one, _ = room.lay("a")
    other, host = room.lay("b")
    room.shape("b", 8_000_000)
    room.shape("b", 8_000)  # a second one takes the place of the first
    much = bytes(4 * cables.BURST_BYTES_MIN)
    with within(other, lambda: socket.create_server((host, 0))) as listener:
        near = within(one, lambda: socket.create_connection(listener.getsockname(), 10))
        far, _ = listener.accept()
        for sender, receiver in ((near, far), (far, near)):
            sender.setblocking(False)
            sender.send(much)
            receiver.settimeout(0.2)
            assert received(receiver) < len(much)
        near.close()
        far.close()


def test_nothing_of_it_is_seen_outside(room: cables.Cables) -> None:
    before = {name for _, name in socket.if_nameindex()}
    namespace, _ = room.lay("a")
    assert {name for _, name in socket.if_nameindex()} == before
    assert {"lo", "eth0"} <= {name for _, name in within(namespace, socket.if_nameindex)}


@pytest.mark.asyncio
async def test_a_coordinator_whose_cable_is_pulled_is_replaced_and_comes_back(tmp_path: Path) -> None:
    async with mesh(tmp_path, "abc", cabled=True) as m:
        first = m.who("coordinator")
        assert m.cables is not None
        m.cables.pull(first)
        others = [name for name in m.nodes if name != first]
        await m.coordinator(within=30, other_than=first, among=others)

        async def parked() -> bool:
            said = await m.get(first, "cluster")
            return bool(said and said["parked"])

        await m.until(f"{first} is not parked", 30, parked)
        m.cables.plug_in(first)
        await m.agreed(within=60)
