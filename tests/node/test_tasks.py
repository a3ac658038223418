"""Tasks end with their owner, and their exceptions arrive."""

from __future__ import annotations

import asyncio
import threading

import pytest

from p2pnn.node.tasks import Tasks, in_thread


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
    await tasks.close()
    assert ended == ["cleaned up"]


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
