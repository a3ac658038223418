"""Ids and addresses, the only types that every layer shares, and how all of them say how long something lasts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NewType

from p2pnn.errors import UsageError

NodeId = NewType("NodeId", str)
"""32 lower-case hexadecimal digits, made once per state folder. Ordered as text."""

JobId = NewType("JobId", str)
"""A readable name with a number that is unique in the mesh: `digits-3f2a`."""

BlobId = NewType("BlobId", str)
"""SHA-256 of a blob's bytes as 64 lower-case hexadecimal digits."""


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """Where a node listens: a host name or IP address, and a TCP port (0 asks the system for a free one)."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, default_port: int = 7700) -> Address:
        """Read `host`, `host:port`, `[v6]` or `[v6]:port`.

        Raises UsageError with the text where it is none of these.
        """
        host, colon, port = text.strip().rpartition(":")
        if text.strip().startswith("["):
            inner, bracket, rest = text.strip()[1:].partition("]")
            if not bracket or (rest and not rest.startswith(":")):
                raise UsageError(f"{text!r} is not an address; write [IPv6]:PORT")
            host, colon, port = inner, rest[:1], rest[1:]
        elif not colon or ":" in host:  # no port, or a bare IPv6 address
            host, colon, port = text.strip(), "", ""
        if not host or (colon and not (port.isdigit() and int(port) <= 65535)):
            raise UsageError(f"{text!r} is not an address; write HOST:PORT, as in 192.168.1.20:7700")
        return cls(host, int(port) if colon else default_port)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def is_node_name(text: str) -> bool:
    """Whether a node may be called so: printable, and nothing that pins, addresses or lists of names give a meaning to."""
    return text != "" and text.isprintable() and not any(c in text for c in " /=*?[],")


def lasting(seconds: float) -> str:
    """A duration in the largest unit of which there are two: `12 s`, `3 min`, `5 h`, `2 days`."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
