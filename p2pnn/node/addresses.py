"""This machine's addresses, as others may reach it: for the line by which they join.

Loopback is left out, and so are the bridges and cables of containers and virtual machines, which lead nowhere from
another machine; and IPv6 addresses of one link (fe80::), which mean nothing without the name of an interface. Source:
getifaddrs(3).
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import re
import socket
import struct
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from p2pnn.config import advertised
from p2pnn.errors import UsageError
from p2pnn.types import Address

INSIDE: Final = re.compile("(docker|veth|virbr|vnet|cni|podman|lxcbr|lxdbr|flannel|cali|kube).*|br-[0-9a-f]{12}")
"""The names of interfaces that lead to containers and virtual machines of this machine.

A bridge to the LAN may be called br-lan; docker's have the beginning of a network's id in their names."""

_UP: Final = 0x1
_LOOPBACK: Final = 0x8


@dataclass(frozen=True, slots=True)
class Interface:
    """One address of one interface."""

    name: str
    host: str
    up: bool = True
    loopback: bool = False


def join_addresses(listen: Address, advertise: Sequence[str], found: Iterable[Interface]) -> list[Address]:
    """What a joiner should try, in this order.

    listen: where the node listens; a certain address means only that one. advertise: what the person said: addresses that
    take the place of the machine's own, or, with a `+` before them, are added. Raises UsageError for a text that is no
    address, and where there is none.
    """
    added = [advertised(text, listen.port) for text in advertise if text.startswith("+")]
    instead = [advertised(text, listen.port) for text in advertise if not text.startswith("+")]
    if instead:
        return list(dict.fromkeys([*instead, *added]))
    if listen.host not in ("0.0.0.0", "::"):
        return list(dict.fromkeys([listen, *added]))
    wanted = [one for one in found if one.up and not one.loopback and not INSIDE.fullmatch(one.name)]
    hosts = [one.host for one in wanted if (":" in one.host) == (listen.host == "::") and _leads_here(one.host)]
    if not hosts and not added:
        raise UsageError(
            "no address was found by which other machines reach this one; name one: start the node with --advertise HOST",
            setting="advertise",
        )
    return list(dict.fromkeys([*(Address(host, listen.port) for host in hosts), *added]))


def interfaces() -> list[Interface]:
    """All addresses of this machine; where the system has no getifaddrs as we know it, the one that its default route uses.

    A service without netlink (RestrictAddressFamilies=) gets its IPv4 addresses by ioctl.
    """
    if sys.platform.startswith("linux"):
        for ask in (_getifaddrs, _ifconf):
            with contextlib.suppress(OSError, AttributeError):
                return ask()
    return [Interface("default", host) for host in _default_hosts()]


def _leads_here(host: str) -> bool:
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_link_local or address.is_unspecified or address.is_multicast)


class _Record(ctypes.Structure):
    pass


_Record._fields_ = [
    ("next", ctypes.POINTER(_Record)),
    ("name", ctypes.c_char_p),
    ("flags", ctypes.c_uint),
    ("address", ctypes.c_void_p),
    ("mask", ctypes.c_void_p),
    ("other", ctypes.c_void_p),
    ("data", ctypes.c_void_p),
]


def _getifaddrs() -> list[Interface]:
    library = ctypes.CDLL(None, use_errno=True)
    first = ctypes.POINTER(_Record)()
    if library.getifaddrs(ctypes.byref(first)):
        raise OSError(ctypes.get_errno(), "getifaddrs")
    found = []
    try:
        record = first
        while record:
            host = _host(record.contents.address)
            if host:
                name, flags = record.contents.name.decode("utf-8", "replace"), record.contents.flags
                found.append(Interface(name, host, bool(flags & _UP), bool(flags & _LOOPBACK)))
            record = record.contents.next
    finally:
        library.freeifaddrs(first)
    return found


_SIOCGIFCONF: Final = 0x8912
_SIOCGIFFLAGS: Final = 0x8913
_REQUEST: Final = struct.Struct("16s24s")
"""struct ifreq where pointers have 8 bytes: an interface's name, and a struct sockaddr_in or flags (netdevice(7))."""


def _ifconf() -> list[Interface]:
    room = ctypes.create_string_buffer(_REQUEST.size * 256)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        asked = struct.pack("iL", len(room), ctypes.addressof(room))
        (length, _) = struct.unpack("iL", fcntl.ioctl(sock, _SIOCGIFCONF, asked))
        found = []
        for raw, address in _REQUEST.iter_unpack(room.raw[: length - length % _REQUEST.size]):
            (flags,) = struct.unpack_from("H", fcntl.ioctl(sock, _SIOCGIFFLAGS, _REQUEST.pack(raw, b"")), 16)
            name = raw.rstrip(b"\0").decode("utf-8", "replace").partition(":")[0]
            host = socket.inet_ntop(socket.AF_INET, address[4:8])
            found.append(Interface(name, host, bool(flags & _UP), bool(flags & _LOOPBACK)))
    return found


def _host(address: int | None) -> str:
    """Of a struct sockaddr of Linux; empty for other families than IP."""
    if not address:
        return ""
    family = int.from_bytes(ctypes.string_at(address, 2), sys.byteorder)
    if family == socket.AF_INET:
        return socket.inet_ntop(family, ctypes.string_at(address + 4, 4))
    if family == socket.AF_INET6:
        return socket.inet_ntop(family, ctypes.string_at(address + 8, 16))
    return ""


def _default_hosts() -> list[str]:
    """Connecting a datagram socket sends nothing, and tells the address that would be used. The targets are for documentation."""
    hosts = []
    for family, target in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((target, 9))
            hosts.append(str(sock.getsockname()[0]))
    return hosts
