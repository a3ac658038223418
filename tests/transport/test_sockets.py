"""The border to the operating system."""

from __future__ import annotations

import asyncio
import errno
import socket

import pytest

from p2pnn.errors import NotAllowedError, UsageError
from p2pnn.transport.sockets import bind_error, bindable, is_loopback, resolve, tune, why
from p2pnn.types import Address


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "x"), "refused: nothing listens there"),
        (OSError(errno.EHOSTUNREACH, "x"), "no route: the machine does not answer"),
        (TimeoutError(), "no route: no answer in time"),
        (TimeoutError(errno.ETIMEDOUT, "x"), "timed out"),
        (ConnectionResetError(errno.ECONNRESET, "x"), "connection reset"),
        (socket.gaierror(socket.EAI_NONAME, "x"), "no such host"),
        (OSError(errno.ENOSPC, "No space left"), "No space left"),
        (OSError(), "OSError"),
    ],
)
def test_errors_in_words(error: OSError, words: str) -> None:
    assert why(error) == words


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("fe80::1%eth0", False),
        ("127.0.0.1.example.org", False),
    ],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_names_that_cannot_be_looked_up() -> None:
    async def body() -> None:
        assert await resolve(Address("127.0.0.1", 7)) == [Address("127.0.0.1", 7)]
        for host in ("a" * 300, "a..b"):
            with pytest.raises(OSError):
                await resolve(Address(host, 7))
            with pytest.raises(UsageError, match=r"no such host; use 127\.0\.0\.1:7"):
                await bindable(Address(host, 7))

    asyncio.run(body())


def test_a_port_that_may_not_be_had() -> None:
    listen = Address("127.0.0.1", 80)
    assert isinstance(bind_error(listen, PermissionError(errno.EACCES, "x")), NotAllowedError)
    assert "port 80 on 127.0.0.1 is in use" in str(bind_error(listen, OSError(errno.EADDRINUSE, "x")))
    assert "no such address" in str(bind_error(listen, OSError(errno.EADDRNOTAVAIL, "x")))


def test_tuning_a_loopback_socket() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as sock:
        tune(sock)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        if hasattr(socket, "TCP_CONGESTION"):
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0") == b"reno"
