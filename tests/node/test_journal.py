"""Following a job."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from p2pnn.node.journal import Journal
from p2pnn.node.storage import Storage
from p2pnn.types import JobId

JOB = JobId("toy-1")


async def collect(journal: Journal, after: int = 0) -> list[dict[str, Any]]:
    return [event async for event in journal.follow(after)]


@pytest.mark.asyncio
async def test_followers_get_everything_once_and_end_with_the_job(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    journal = Journal(JOB, storage)
    journal.add("state", {"state": "queued"})
    early = asyncio.ensure_future(collect(journal))
    await asyncio.sleep(0)
    journal.add("epoch", {"epoch": 1})
    journal.add("state", {"state": "done"})
    async with asyncio.timeout(5):
        assert [e["kind"] for e in await early] == ["state", "epoch", "state"]
        assert [e["number"] for e in await collect(journal, 1)] == [2, 3]
    storage.close()


@pytest.mark.asyncio
async def test_a_resumed_job_is_followed_beyond_its_first_end(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    journal = Journal(JOB, storage)
    journal.add("state", {"state": "failed"})
    journal.add("state", {"state": "queued"})
    follower = asyncio.ensure_future(collect(journal))
    await asyncio.sleep(0)
    assert not follower.done()
    journal.add("state", {"state": "done"})
    async with asyncio.timeout(5):
        assert [e["state"] for e in await follower] == ["failed", "queued", "done"]
    storage.close()


@pytest.mark.asyncio
async def test_only_the_newest_progress_is_kept_and_none_in_the_file(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    journal = Journal(JOB, storage)
    for step in range(100):
        journal.add("progress", {"step": step})
    journal.add("state", {"state": "done"})
    async with asyncio.timeout(5):
        assert [e.get("step") for e in await collect(journal)] == [99, None]
    assert [e["kind"] for e in storage.load_events(JOB)] == ["state"]
    again = Journal(JOB, storage)
    again.add("state", {"state": "queued"})
    assert storage.load_events(JOB)[-1]["number"] == 102
    storage.close()


def test_the_number_of_the_newest_event(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    journal = Journal(JOB, storage)
    assert journal.number == 0
    journal.add("state", {"state": "queued"})
    assert journal.number == 1
    assert Journal(JOB, storage).number == 1
    storage.close()


@pytest.mark.asyncio
async def test_who_reads_along_gets_every_character_and_the_file_none(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    journal = Journal(JOB, storage)
    for token in range(100):
        journal.add("tokens", {"tokens": [token]})
    journal.add("state", {"state": "done"})
    async with asyncio.timeout(5):
        assert [e.get("tokens") for e in await collect(journal, 1)] == [*([token] for token in range(1, 100)), None]
    assert [e["kind"] for e in storage.load_events(JOB)] == ["state"]
    storage.close()
