"""The daemon's end of one executor: the process, its command socket, its arena.

Ending it is how work is aborted: the process is killed, not asked. An executor whose socket closes is reaped at once,
and its exit status becomes a sentence.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from p2pnn.executor import channel, process
from p2pnn.executor.commands import FromExecutor, ToExecutor

log = logging.getLogger("p2pnn.executor")


class Executor(asyncio.Protocol):
    """Start one with `await Executor.start(…)`; afterwards `send`, `arena`, and finally `await end()`.

    on_message gets every message, on_exit one sentence when the process is gone without having been ended.
    """

    def __init__(self, on_message: Callable[[FromExecutor], None], on_exit: Callable[[str], None]) -> None:
        self._on_message = on_message
        self._on_exit = on_exit
        self._codec: channel.Codec[FromExecutor] = channel.Codec(FromExecutor)
        self._ending = False
        self._reaping: asyncio.Task[None] | None = None
        self._transport: asyncio.WriteTransport
        self._spawned: process.Spawned

    @classmethod
    async def start(
        cls, arena_bytes: int, threads: int, on_message: Callable[[FromExecutor], None], on_exit: Callable[[str], None]
    ) -> Executor:
        """Spawn the process. Raises StorageError or OSError where the system gives no process or memory."""
        self = cls(on_message, on_exit)
        self._spawned = await asyncio.to_thread(process.spawn, arena_bytes, threads)
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=self._spawned.socket)
        except BaseException:
            self._spawned.kill()
            raise
        return self

    @property
    def pid(self) -> int:
        return self._spawned.process.pid

    @property
    def arena(self) -> memoryview:
        """The shared memory that tensors are received into and sent from."""
        return self._spawned.arena.view

    def send(self, message: ToExecutor) -> None:
        """Queue a command; nothing happens once the executor is gone."""
        if not self._ending and not self._transport.is_closing():
            self._transport.write(channel.encode(message))

    async def end(self) -> None:
        """Kill the process and wait until it is gone; harmless when it is."""
        self._ending = True
        self._transport.abort()
        await asyncio.to_thread(self._spawned.kill)

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        for message in self._codec.feed(data):
            if self._ending:
                return
            self._on_message(message)

    def connection_lost(self, error: Exception | None) -> None:
        if not self._ending:
            self._reaping = asyncio.ensure_future(self._reap())

    async def _reap(self) -> None:
        reason = await asyncio.to_thread(self._spawned.reap)
        if not self._ending:
            self._ending = True
            self._on_exit(reason)
