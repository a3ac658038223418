"""The daemon's end of one executor: the process, its command socket, its arena.

Ending it is how work is aborted: the process is killed, not asked. An executor whose socket closes is reaped at once,
and its exit status becomes a sentence.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Final, cast

from p2pnn.errors import P2pnnError
from p2pnn.executor import channel, process
from p2pnn.executor.commands import FromExecutor, ToExecutor

log = logging.getLogger("p2pnn.executor")

UNREAD_BYTES_MAX: Final = 64 << 20
"""Commands that wait for the process to read them, some hundred thousand: far more than any pass leaves there, as long
as peers keep to the plan."""


class Executor(asyncio.Protocol):
    """Start one with `await Executor.start(…)`; afterwards `send`, `room`, and finally `kill` and `await end()`.

    on_message gets every message, on_exit one sentence when the process is gone without having been ended, or says what
    neither end understands.
    """

    def __init__(self, on_message: Callable[[FromExecutor], None], on_exit: Callable[[str], None]) -> None:
        self._on_message = on_message
        self._on_exit = on_exit
        self._codec: channel.Codec[FromExecutor] = channel.Codec(FromExecutor)
        self._ending = False
        self._gone = False
        self._reaping: asyncio.Task[None] | None = None
        self._transport: asyncio.WriteTransport
        self._spawned: process.Spawned

    @classmethod
    async def start(
        cls, arena_bytes: int, threads: int, on_message: Callable[[FromExecutor], None], on_exit: Callable[[str], None]
    ) -> Executor:
        """Spawn the process. Raises StorageError or OSError where the system gives no process or memory."""
        self = cls(on_message, on_exit)
        spawning = asyncio.ensure_future(asyncio.to_thread(process.spawn, arena_bytes, threads))
        try:
            self._spawned = await asyncio.shield(spawning)
        except asyncio.CancelledError:  # the thread goes on: what it starts must not be left over
            with contextlib.suppress(P2pnnError, OSError):
                await asyncio.to_thread((await spawning).kill)
            raise
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=self._spawned.socket)
        except BaseException:
            self._ending = True
            self._spawned.kill()
            raise
        return self

    @property
    def pid(self) -> int:
        return self._spawned.process.pid

    def room(self, offset: int, size: int) -> memoryview | None:
        """Shared memory that a tensor is received into or sent from; None once the executor is gone."""
        return None if self._gone else self._spawned.arena.view[offset : offset + size]

    def send(self, message: ToExecutor) -> None:
        """Queue a command; nothing happens once the executor is gone. Ends one that reads none of far too many."""
        if self._ending or self._gone or self._transport.is_closing():
            return
        if self._transport.get_write_buffer_size() > UNREAD_BYTES_MAX:
            self.kill()
            self._on_exit(
                f"its compute process left more than {UNREAD_BYTES_MAX >> 20} MiB of messages unread: it hangs, or a peer sends"
                " what no plan has; the daemon's log names a peer that was refused"
            )
            return
        self._transport.write(channel.encode(message))

    def kill(self) -> None:
        """End the process now; call `end` next."""
        self._ending = self._gone = True
        with contextlib.suppress(ProcessLookupError):
            self._spawned.process.kill()

    async def end(self) -> None:
        """Kill the process and wait until it is gone; harmless when it is."""
        self.kill()
        self._transport.abort()
        if self._reaping is not None:
            await self._reaping
        await asyncio.to_thread(self._spawned.kill)

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's are no subclasses

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._codec.feed(data):
                if self._ending:
                    return
                self._on_message(message)
        except P2pnnError as error:
            self._on_exit(str(error))

    def connection_lost(self, error: Exception | None) -> None:
        self._gone = True
        if not self._ending:
            self._reaping = asyncio.ensure_future(self._reap())

    async def _reap(self) -> None:
        reason = await asyncio.to_thread(self._spawned.reap)
        if not self._ending:
            self._ending = True
            self._on_exit(reason)
