"""Strangers at the port of a daemon at work: the job goes on, the memory stays, the log says why each was sent away."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from p2pnn.wire.codec import encode
from p2pnn.wire.frame import encode_frame
from p2pnn.wire.messages import Hello, LinkKind
from tests.integration.mesh import Mesh, make_job, mesh, wait_until
from tests.integration.test_failures import blobs_of, small

GROWTH_BYTES_MAX = 24 << 20
"""What 150 strangers may add to a daemon's memory, for buffers that its allocator keeps."""


def frame(header: bytes, **changes: int) -> bytes:
    return encode_frame(header, **changes)


def hostile(dice: random.Random) -> list[bytes]:
    """First bytes of a connection, none of them a peer's."""
    hello = encode(Hello(1, 1, LinkKind.CONTROL, "e" * 32, "stranger", "p2pnn", 1, "boot"))
    good = frame(hello)
    mutated = bytearray(good)
    mutated[dice.randrange(len(mutated))] ^= 1 << dice.randrange(8)
    bomb = b"\xdd" + struct.pack(">I", 2**32 - 1) + b"\x91" * 60_000
    return [
        dice.randbytes(dice.randint(1, 4000)),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        good[: dice.randrange(len(good))],
        bytes(mutated),
        frame(bomb),
        frame(b"\x91" * 65_000),
        frame(msgspec.msgpack.encode([1, 1, 1, 0, "e" * 32, "s", "elsewhere", 1, "boot"])),
        frame(hello)[:8] + b"\xff" * 24,
        good + dice.randbytes(3000),
        b"p2nn\x01" + b"\xff" * 100_000,
    ]


def throw(address: tuple[str, int], data: bytes) -> None:
    """Connect, send, and read until the daemon has had enough."""
    with socket.create_connection(address, 10) as stranger, contextlib.suppress(ConnectionError):
        stranger.sendall(data)
        stranger.shutdown(socket.SHUT_WR)
        while stranger.recv(65536):
            pass


@pytest.fixture
def working(tmp_path: Path) -> Iterator[Mesh]:
    with mesh(tmp_path, 2) as m:
        yield m


def test_a_job_goes_on_while_strangers_throw_bytes_at_both_nodes(working: Mesh) -> None:
    m = working
    job = m.submit("a", *make_job(small(), blobs_of(rows=1200), epochs=200, nodes=("a", "b")))
    wait_until(lambda: m.job("a", job)["step"] > 0, "it trains")
    before = m["a"].get("node")["rss_bytes"], m["b"].get("node")["rss_bytes"]
    step = m.job("a", job)["step"]
    dice = random.Random(7)
    addresses = {}
    for name in "ab":
        host, _, port = m.nodes[name].address.rpartition(":")
        addresses[name] = (host, int(port))
    with contextlib.ExitStack() as stack:
        dribbling = []
        for address in addresses.values():  # some that begin a frame and then only dribble
            for _ in range(10):
                slow = stack.enter_context(socket.create_connection(address, 10))
                slow.sendall(b"p2nn")
                dribbling.append(slow)
        for _ in range(7):
            for data in hostile(dice):
                for address in addresses.values():
                    throw(address, data)
            for slow in dribbling:
                with contextlib.suppress(ConnectionError):
                    slow.sendall(b"\x01")
        for name, rss in zip("ab", before, strict=True):
            node = m[name].get("node")
            assert node["rss_bytes"] < rss + GROWTH_BYTES_MAX
            wait_until(lambda name=name: m.alive(name) == {"a", "b"}, "both are alive")  # a probe may be late
            assert m.nodes[name].log.count("reason=") > 20
            assert "Traceback" not in m.nodes[name].log
        wait_until(lambda: m.job("a", job)["step"] > step, "it trains on")
    m["a"].post(f"jobs/{job}/cancel")
    assert m.job("a", job)["state"] == "cancelled"
