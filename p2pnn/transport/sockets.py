"""The border to the operating system: socket options, addresses, and its errors in words."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import socket
import ssl

from p2pnn.errors import NotAllowedError, P2pnnError, UsageError
from p2pnn.transport.alerts import words
from p2pnn.types import Address

_WORDS = {
    errno.ECONNREFUSED: "refused: nothing listens there",
    errno.EHOSTUNREACH: "no route: the machine does not answer",
    errno.ENETUNREACH: "no route: this machine has no way to that network",
    errno.ECONNRESET: "connection reset",
    errno.EPIPE: "connection reset",
    errno.ECONNABORTED: "connection aborted",
    errno.ETIMEDOUT: "timed out",
    errno.EMFILE: "this process has no file descriptors left",
    errno.ENFILE: "this machine has no file descriptors left",
    errno.EADDRNOTAVAIL: "no such address can be used from this machine",
    errno.EACCES: "the operating system does not allow it",
    errno.EPERM: "the operating system does not allow it",
}

LOOPBACK_CONGESTION = b"reno"
"""BBR, a usual default, paces loopback to half its speed. Empty: the system's default, for comparisons."""

_BACKLOG = 128
"""Connections that wait to be accepted: a mesh that starts at once."""


def why(error: BaseException) -> str:
    """An error of the operating system as one clause for a person."""
    if isinstance(error, socket.gaierror):
        return "no such host"
    if isinstance(error, ssl.SSLError):
        return words(error)
    if isinstance(error, TimeoutError) and error.errno is None:
        return "no route: no answer in time"
    if isinstance(error, OSError) and error.errno is not None:
        return _WORDS.get(error.errno) or error.strerror or str(error)
    return str(error) or type(error).__name__


def tune(sock: socket.socket) -> None:
    """Send at once (TCP_NODELAY); on loopback use LOOPBACK_CONGESTION."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if LOOPBACK_CONGESTION and is_loopback(str(sock.getpeername()[0])) and hasattr(socket, "TCP_CONGESTION"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, LOOPBACK_CONGESTION)


def is_loopback(host: str) -> bool:
    """Whether an IP address can only be this machine. A name is not an address: False."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


async def resolve(address: Address) -> list[Address]:
    """The IP addresses behind a host, in the system's order, without doubles. Raises OSError."""
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(address.host)
        return [address]  # asking the system would cost a thread
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    except UnicodeError:  # a name that no name server could be asked for
        raise socket.gaierror(socket.EAI_NONAME, "no such host") from None
    hosts = dict.fromkeys(str(entry[4][0]) for entry in found)
    return [Address(host, address.port) for host in hosts]


async def bindable(listen: Address, secured: bool = False) -> Address:
    """The IP address to listen on. Raises UsageError for none, NotAllowedError for one that others reach unless `secured`."""
    try:
        endpoints = await resolve(listen)
    except OSError:
        raise UsageError(f"cannot listen on {listen}: no such host; use 127.0.0.1:{listen.port}") from None
    outside = [endpoint for endpoint in endpoints if not is_loopback(endpoint.host)]
    if outside and not secured:
        raise NotAllowedError(
            f"without credentials a node listens on this machine only, because anybody who reaches it could run jobs on it, "
            f"and {listen.host} can be reached from other machines; listen on 127.0.0.1:{listen.port}, or leave out --plain",
            setting="listen",
        )
    return endpoints[0]


def listening(endpoint: Address) -> socket.socket:
    """A socket that listens on an IP address. Raises OSError."""
    family = socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
    return socket.create_server((endpoint.host, endpoint.port), family=family, backlog=_BACKLOG)


def bind_error(listen: Address, error: OSError) -> P2pnnError:
    """Why listening failed, and what to do."""
    if error.errno == errno.EADDRINUSE:
        return UsageError(
            f"port {listen.port} on {listen.host} is in use; stop the program that has it, or choose another port "
            f"with --listen {listen.host}:PORT (0 takes a free one)"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return NotAllowedError(
            f"the operating system does not let this user listen on port {listen.port}; choose one above 1023",
            setting="listen",
        )
    return UsageError(f"cannot listen on {listen}: {why(error)}")
