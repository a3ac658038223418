"""Connections that have proved nothing yet: how many may be there, and how much of them the log tells.

Both are bounded, because anybody can make them. What is refused costs an `accept` and a `close`: no TLS, no link, no place.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from p2pnn.identity.guesses import group
from p2pnn.transport.limits import Limits

if TYPE_CHECKING:
    from p2pnn.transport.link import Link

log = logging.getLogger("p2pnn.transport")

WARNINGS_MAX: Final = 10
WARNINGS_WITHIN_S: Final = 60.0
"""So many warnings about strangers in so many seconds; the others are counted, and told at level debug."""


class Strangers:
    """now: seconds of a clock that never goes back, in every call."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._begun = float("-inf")
        self._told = 0
        self._left_out = 0

    def refuses(self, sock: socket.socket, links: Iterable[Link], now: float) -> bool:
        """Whether one more connection, just accepted, finds no place. Of IPv6 addresses the first 64 bits count."""
        try:
            host = str(sock.getpeername()[0])
        except OSError:  # it broke already
            return True
        crowd = [link.remote.host for link in links if not link.dialled and link.kind is None]
        same = sum(group(other) == group(host) for other in crowd)
        if len(crowd) < self._limits.handshakes_max and same < self._limits.handshakes_of_host_max:
            return False
        if self.may_warn(now):
            log.warning(
                "connection refused address=%s reason=%d strangers are here, %d of them from there",
                host,
                len(crowd),
                same,
            )
        return True

    def may_warn(self, now: float) -> bool:
        """Whether a warning about a stranger goes into the log; tells, now and then, how many did not."""
        if now - self._begun >= WARNINGS_WITHIN_S:
            if self._left_out:
                log.warning("%d more warnings about connections that proved nothing were left out", self._left_out)
            self._begun, self._told, self._left_out = now, 0, 0
        self._told += 1
        self._left_out += self._told > WARNINGS_MAX
        return self._told <= WARNINGS_MAX
