"""One connected TCP socket under the loop, without a write buffer between a body and the system.

The loop only tells when the socket can be read or written (`add_reader`, `add_writer`); the system calls are made here, because
two of them do what asyncio's transports cannot:

* `recvmsg_into` scatters: the rest of a body goes straight into its place, and the next frame's header, in the same call,
  into the link's own buffer. One call per body instead of two, and nothing of it is copied by Python.
* `sendmsg` gathers: header and body leave with one call, without being joined, and what it returns is known at once. What
  the system took is sent, so a body is free when `write` returns with nothing `waiting`. Usually it is.

What the system did not take is kept as views of the callers' memory, and nothing more should be written until
`User.drained` is called: then all of it has left. (An asyncio transport reads that memory at some later time.)
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from typing import Any, Final, Protocol

_VIEWS_MAX: Final = 64
"""Per system call, far below every system's IOV_MAX."""


class User(Protocol):
    """Who reads and writes. `readable` should call `receive` until that returns None or enough was read for one turn."""

    def readable(self) -> None: ...
    def drained(self) -> None: ...
    def connection_lost(self, exc: Exception | None) -> None: ...


class Nobody:
    """The user of a stream that nobody reads from, until it is handed to somebody or aborted."""

    def readable(self) -> None: ...
    def drained(self) -> None: ...
    def connection_lost(self, exc: Exception | None) -> None: ...


class Stream:
    """A connected socket, which it owns from now on; call `start` to be told of bytes.

    waiting: bytes of what was written that the system did not take yet. dry: the last `receive` found less than it had room for,
    so asking again would find little. Whatever ends the connection is told once, by `connection_lost`, from the loop.
    """

    def __init__(self, sock: socket.socket, user: User) -> None:
        sock.setblocking(False)
        self.waiting = 0
        self.dry = False
        self._sock = sock
        self._user = user
        self._loop = asyncio.get_running_loop()
        self._pending: deque[memoryview] = deque()
        self._reading = False
        self._closing = False
        self._ending = False  # nothing more will be written

    def start(self) -> None:
        self.resume_reading()

    def hand_to(self, user: User) -> None:
        """Whoever reads from now on."""
        self._user = user

    def get_extra_info(self, name: str) -> Any:
        """The `socket`, as asyncio's transports give it."""
        return self._sock if name == "socket" else None

    def is_closing(self) -> bool:
        return self._closing

    @property
    def is_reading(self) -> bool:
        return self._reading

    # --- receiving

    def receive(self, views: list[memoryview]) -> int | None:
        """Bytes received into these views, one after the other; 0 when the peer has ended, None when nothing is there now."""
        try:
            count = self._sock.recvmsg_into(views)[0]
            self.dry = count < len(views[0])
            return count
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as error:
            self._break(error)
            return None

    def pause_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._sock)

    def resume_reading(self) -> None:
        if not self._reading and not self._closing:
            self._reading = True
            self._loop.add_reader(self._sock, self._user.readable)

    # --- sending

    def write(self, *views: bytes | memoryview) -> bool:
        """Send; True when the system has taken everything. Otherwise the views must not change until `drained`."""
        if self._closing or self._ending:
            return False
        sent = 0
        if not self._pending:
            try:
                sent = self._sock.sendmsg(views)
            except (BlockingIOError, InterruptedError):
                pass
            except OSError as error:
                self._break(error)
                return False
        for view in views:
            size = len(view)
            if sent >= size:
                sent -= size
                continue
            if not self._pending:
                self._loop.add_writer(self._sock, self._writable)
            self._pending.append(memoryview(view)[sent:])
            self.waiting += size - sent
            sent = 0
        return not self._pending

    def copy(self) -> None:
        """What waits may change from now on: it leaves from a copy."""
        self._pending = deque(memoryview(bytes(view)) for view in self._pending)

    def write_eof(self) -> None:
        """Tell the peer that nothing more comes, once everything has left."""
        self._ending = True
        if not self._pending and not self._closing:
            try:
                self._sock.shutdown(socket.SHUT_WR)
            except OSError as error:
                self._break(error)

    # --- ending

    def close(self) -> None:
        """Close once everything has left."""
        if not self._closing and not self._pending:
            self._break(None)
        elif not self._closing:
            self._ending = True
            self.pause_reading()

    def abort(self) -> None:
        """Close now; what waits is dropped."""
        self._break(None)

    def _break(self, error: Exception | None) -> None:
        if self._closing:
            return
        self._closing = True
        self.pause_reading()
        if self._pending:
            self._loop.remove_writer(self._sock)
        self._loop.call_soon(self._lose, error)

    def _lose(self, error: Exception | None) -> None:
        self._pending.clear()
        self._user.connection_lost(error)
        self._sock.close()

    def _writable(self) -> None:
        pending = self._pending
        views = [pending[at] for at in range(min(len(pending), _VIEWS_MAX))]
        try:
            sent = self._sock.sendmsg(views)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._break(error)
            return
        self.waiting -= sent
        while pending and sent >= len(pending[0]):
            sent -= len(pending.popleft())
        if pending:
            pending[0] = pending[0][sent:]
            return
        del views
        self._loop.remove_writer(self._sock)
        if not self._ending:
            self._user.drained()
        elif self._reading:
            self.write_eof()
        else:
            self._break(None)
