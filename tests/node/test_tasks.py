"""Tasks end with their owner, and their exceptions arrive."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest

from p2pnn.errors import NotAllowedError
from p2pnn.node import tasks as module
from p2pnn.node.tasks import Tasks, in_thread, saying_so


@pytest.mark.asyncio
async def test_closing_cancels_and_waits() -> None:
    tasks = Tasks()
    ended: list[str] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append("cleaned up")

    tasks.spawn(work())
    await asyncio.sleep(0)
    tasks.spawn(work())  # which has not had its first step yet
    await tasks.close()
    assert ended == ["cleaned up", "cleaned up"]


@pytest.mark.asyncio
async def test_what_is_to_be_finished_is_though_nobody_waits_any_more() -> None:
    tasks, gate = Tasks(), asyncio.Event()
    done: list[str] = []

    async def work() -> None:
        await gate.wait()
        done.append("done")

    waiting = asyncio.ensure_future(tasks.finish(work()))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.sleep(0)
    assert not waiting.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert done == ["done"]
    await tasks.close()
    with pytest.raises(NotAllowedError, match="stopping"):
        await tasks.finish(work())
    assert done == ["done"]


@pytest.mark.asyncio
async def test_what_is_to_be_finished_ends_with_its_owner_and_its_error_arrives() -> None:
    tasks = Tasks()

    async def fail() -> None:
        raise NotAllowedError("no")

    with pytest.raises(NotAllowedError, match="no"):
        await tasks.finish(fail())

    async def answer() -> int:
        return 7

    assert await tasks.finish(answer()) == 7

    async def wait() -> None:
        await asyncio.Event().wait()

    waiting = asyncio.ensure_future(tasks.finish(wait()))
    await asyncio.sleep(0)
    assert not tasks.closed
    await tasks.close()
    assert tasks.closed
    with pytest.raises(asyncio.CancelledError):
        await waiting


@pytest.mark.asyncio
async def test_nothing_begins_after_the_end() -> None:
    tasks = Tasks()
    await tasks.close()
    begun: list[str] = []

    async def late() -> None:
        begun.append("late")

    tasks.spawn(late())
    await tasks.drain()
    assert begun == []


@pytest.mark.asyncio
async def test_a_fault_is_logged_and_reaches_the_owner(caplog: pytest.LogCaptureFixture) -> None:
    faults: list[BaseException] = []
    tasks = Tasks(faults.append)

    async def work() -> None:
        raise ZeroDivisionError("nobody meant this")

    tasks.spawn(work())
    await tasks.drain()
    assert [str(f) for f in faults] == ["nobody meant this"]
    assert "a fault in this program" in caplog.text


@pytest.mark.asyncio
async def test_what_a_thread_works_on_is_left_to_it_until_it_is_done() -> None:
    entered, go = threading.Event(), threading.Event()
    done: list[str] = []

    def work(text: str) -> None:
        entered.set()
        go.wait(10)
        done.append(text)

    task = asyncio.ensure_future(in_thread(work, "it"))
    await asyncio.to_thread(entered.wait, 10)
    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == ["it"]


@pytest.mark.asyncio
async def test_work_that_moves_says_so_and_work_that_stands_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ALIVE_INTERVAL_S", 0.01)
    said = asyncio.Event()
    moved = 0

    def count() -> int:
        nonlocal moved
        moved += 1
        return moved

    async def until_said() -> None:
        await said.wait()

    async with asyncio.timeout(5):
        await saying_so(until_said(), count, said.set)
    silent: list[str] = []
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await saying_so(_forever(), lambda: 7, lambda: silent.append("alive"))
    assert silent == []


async def _forever() -> None:
    await asyncio.Event().wait()


@pytest.mark.asyncio
async def test_who_is_cancelled_leaves_no_work_and_no_error_behind(caplog: pytest.LogCaptureFixture) -> None:
    begun, ended = asyncio.Event(), list[str]()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("work")
            raise NotAllowedError("one of several that it does has failed")

    saying = asyncio.ensure_future(saying_so(work(), lambda: 7, lambda: None))
    await begun.wait()
    saying.cancel()
    await asyncio.wait([saying])
    assert saying.cancelled()
    assert ended == ["work"]
    del saying
    gc.collect()
    assert "never retrieved" not in caplog.text
