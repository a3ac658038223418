"""A listening socket under the loop: it accepts, and hands out the sockets."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Final

from p2pnn.transport.sockets import why

log = logging.getLogger("p2pnn.transport")

_ACCEPTS_MAX: Final = 64
"""Per turn of the loop, so that a crowd of strangers leaves time for the links that are open."""


class Listener:
    """Accepts connections and hands out their sockets, until `close`."""

    def __init__(self, sock: socket.socket, accepted: Callable[[socket.socket], None]) -> None:
        sock.setblocking(False)
        self.port = int(sock.getsockname()[1])
        self._sock = sock
        self._accepted = accepted
        self._loop = asyncio.get_running_loop()
        self._rest: asyncio.TimerHandle | None = None
        self._loop.add_reader(sock, self._accept)

    def close(self) -> None:
        if self._rest is not None:
            self._rest.cancel()
        if self._sock.fileno() < 0:
            return
        self._loop.remove_reader(self._sock)
        self._sock.close()

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_MAX):
            try:
                sock, _ = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # no descriptors or memory left: it would be told again and again
                log.warning("no connection can be accepted for a second: %s", why(error))
                self._loop.remove_reader(self._sock)
                self._rest = self._loop.call_later(1.0, self._loop.add_reader, self._sock, self._accept)
                return
            self._accepted(sock)
