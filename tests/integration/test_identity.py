"""Real secured daemons: they train over TLS, cut off a certified peer that sends garbage, and shut out whom they remove."""

from __future__ import annotations

import contextlib
import signal
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from p2pnn.errors import NotAllowedError
from p2pnn.types import Address
from p2pnn.wire.codec import encode
from p2pnn.wire.frame import encode_frame
from p2pnn.wire.messages import VERSION_MAX, VERSION_MIN, Hello, LinkKind
from tests.integration.mesh import Mesh, make_job, mesh, wait_until
from tests.integration.test_failures import blobs_of, small
from tests.integration.test_recovery import told


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with mesh(tmp_path_factory.mktemp("secured"), 3, secured=True) as m:
        wait_until(lambda: len(m["a"].get("cluster")["members"]) == 3, "all are members")
        yield m


def peer(m: Mesh, at: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(p for p in m[at].get("peers")["peers"] if p["name"] == name)
    return found


@contextlib.contextmanager
def connected(m: Mesh, as_node: str, to: str) -> Iterator[ssl.SSLSocket]:
    """A TLS connection with the key and certificate of one node, to another."""
    folder, address = m.nodes[as_node].folder, Address.parse(m.nodes[to].address)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(folder / "credentials.pem", folder / "key.pem")
    with (
        socket.create_connection((address.host, address.port), timeout=20) as plain,
        context.wrap_socket(plain) as sock,
    ):
        yield sock


def rest_of(sock: ssl.SSLSocket) -> bytes:
    """What comes until the other side closes. Raises TimeoutError where it does not."""
    found = bytearray()
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while piece := sock.recv(65536):
            found += piece
    return bytes(found)


def garbage(node: str, number: int) -> bytes:
    """Sometimes before a Hello, sometimes after one."""
    dice = Random(number)
    noise = dice.randbytes(dice.choice((1, 31, 5000)))
    hello = Hello(VERSION_MIN, VERSION_MAX, LinkKind.CONTROL, node, "c", "", 1, f"boot{number}")
    return (encode_frame(encode(hello)) if number % 2 else b"") + b"\x00" + noise


def test_a_certified_peer_that_sends_garbage_is_cut_off_and_named_and_the_others_train_on(three: Mesh) -> None:
    m = three
    node = m["c"].get("node")["node"]
    m.nodes["c"].kill(signal.SIGKILL)
    job = m.submit("a", *make_job(small(), blobs_of(rows=1200), epochs=4000, nodes=("a", "b")))
    wait_until(lambda: m.job("a", job)["step"] > 0, "it trains")
    for number in range(40):
        with connected(m, "c", "ab"[number % 2]) as sock:
            with contextlib.suppress(OSError):
                sock.sendall(garbage(node, number))
            rest_of(sock)
    begun = m.job("a", job)["step"]
    for name in "ab":
        blamed = [line for line in m.nodes[name].log.splitlines() if "link closed" in line and "by=us" in line]
        assert any(f"node={node[:8]} name=c" in line for line in blamed), m.nodes[name].log
    wait_until(lambda: m.job("a", job)["step"] > begun, "it trains on")
    m["a"].post(f"jobs/{job}/cancel")
    assert not told(m, "a", job), "nothing was lost"
    m.start("c")
    m.await_peers("a", "b", "c")


def test_a_removed_member_loses_its_links_and_is_refused_by_all(three: Mesh) -> None:
    m = three
    m["b"].post("members/remove", {"member": "c"})
    wait_until(lambda: m.alive("a") == m.alive("b") == {"a", "b"}, "a and b see it no more")
    for name in "ab":
        with connected(m, "c", name) as sock:
            assert b"was removed from the cluster" in rest_of(sock)
    wait_until(lambda: "removed" in str(m["c"].get("node")["secured"]["removed"]), "it knows that itself")
    assert "removed" in peer(m, "c", "a")["reason"]
    token = m["a"].post("tokens")["token"]
    m["c"].post("join", {"token": token, "addresses": [m.nodes["a"].address]})
    m.await_peers("a", "b", "c")


def test_a_revoked_token_admits_nobody(three: Mesh, tmp_path: Path) -> None:
    m = three
    made = m["b"].post("tokens")
    m["a"].post("tokens/revoke", {"id": made["id"]})
    with mesh(tmp_path, 1, secured=True) as other:
        ask = {"token": made["token"], "addresses": [m.nodes["b"].address]}
        with pytest.raises(NotAllowedError, match="bad token: it was revoked"):
            other["a"].post("join", ask)
        with pytest.raises(NotAllowedError, match="wrong cluster"):
            m["c"].post(
                "join",
                {"token": other["a"].post("tokens")["token"], "addresses": [m.nodes["a"].address], "force": True},
            )
    assert {member["name"] for member in m["a"].get("cluster")["members"]} == {"a", "b", "c"}
