"""An owner for the tasks that a part of the node starts: they end with it, and their exceptions arrive somewhere."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final, ParamSpec, TypeVar

from p2pnn.errors import NotAllowedError

log = logging.getLogger("p2pnn.node")

ALIVE_INTERVAL_S: Final = 5.0

P = ParamSpec("P")
R = TypeVar("R")


async def in_thread(call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """`asyncio.to_thread`, which when cancelled leaves only once the thread is done with what it was given."""
    return await _to_its_end(asyncio.ensure_future(asyncio.to_thread(call, *args, **kwargs)))


async def _to_its_end(running: asyncio.Future[R]) -> R:
    """Its result; when cancelled, this leaves only once that has ended, which it does by itself."""
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        while not running.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([running])
        if not running.cancelled():
            running.exception()  # retrieved: the caller leaves for another reason
        raise


class Tasks:
    """on_fault gets an exception that no task was meant to raise; without it the exception is only logged."""

    def __init__(self, on_fault: Callable[[BaseException], None] | None = None) -> None:
        self._on_fault = on_fault
        self._running: set[asyncio.Task[Any]] = set()
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether the owner has closed: who is cancelled by that begins nothing more."""
        return self._closed

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run it in the background until it ends or the owner closes; nothing is begun once it has closed."""
        if self._closed:
            work.close()
            return
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._ended)

    async def finish(self, work: Coroutine[Any, Any, R]) -> R:
        """Do the work and return what it returns: only `close` cancels it, not whoever waits here. Raises what it raises, and
        NotAllowedError where the owner has closed."""
        if self._closed:
            work.close()
            raise NotAllowedError("this node is stopping")
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await _to_its_end(task)

    async def drain(self) -> None:
        """Wait until all have ended by themselves."""
        await asyncio.gather(*self._running, return_exceptions=True)

    async def close(self) -> None:
        """Cancel all and wait until they are gone. Each has had its first step before, so that it can undo what was begun."""
        self._closed = True
        await asyncio.sleep(0)
        for task in self._running:
            task.cancel()
        await self.drain()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        log.error("a fault in this program", exc_info=error)
        if self._on_fault is not None:
            self._on_fault(error)


async def saying_so(work: Coroutine[Any, Any, None], moved: Callable[[], int], alive: Callable[[], None]) -> None:
    """Do the work, and call `alive` every few seconds in which `moved` grew: one large blob may take long on a slow link."""
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            before = moved()
            await asyncio.wait([task], timeout=ALIVE_INTERVAL_S)
            if not task.done() and moved() > before:
                alive()
        await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)  # where this is cancelled the work ends too, however
