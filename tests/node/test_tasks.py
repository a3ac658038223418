"""Tasks end with their owner, and their exceptions arrive."""

from __future__ import annotations

import asyncio

import pytest

from p2pnn.node.tasks import Tasks


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
