"""What a record tells of a job, as events."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from p2pnn.job.records import JobRecord, SplitResult
from p2pnn.node import told
from p2pnn.types import BlobId
from tests.node.nodes import JOB, A

RECORD = JobRecord(JOB, "toy", "evaluate", BlobId("5" * 64), "running", A, "a", 2, epochs=3, starts=2)


def changed(**fields: Any) -> JobRecord:
    return msgspec.structs.replace(RECORD, **fields)


def test_every_later_record_tells_more_under_higher_numbers() -> None:
    history: tuple[dict[str, float], ...] = ()
    steps = [changed(state="queued"), RECORD]
    for epoch in (1, 2, 3):
        history += ({"epoch": float(epoch), "loss": 0.5},)
        steps.append(changed(history=history))
    results = (SplitResult("test", 10, 0.5, {}),)
    steps += [changed(history=history, state="done", results=results), changed(state="queued", generation=3, starts=3)]
    newest, kinds = 0, []
    for record in steps:
        for event in told.events(record):
            if event["number"] > newest:
                newest = event["number"]
                kinds.append(event.get("state") or event["kind"])
    epochs = ["epoch", "running"] * 3
    assert kinds == ["queued", "running", *epochs, "evaluation", "done", "queued"]


@pytest.mark.asyncio
async def test_a_stream_follows_the_record_to_the_jobs_end_and_is_taken_up_where_it_broke() -> None:
    now, event = [RECORD], [asyncio.Event()]

    def become(record: JobRecord) -> None:
        now[0], before, event[0] = record, event[0], asyncio.Event()
        before.set()

    stream = told.follow(lambda: now[0], lambda: event[0], 0)
    first = await anext(stream)
    assert (first["kind"], first["state"]) == ("state", "running")
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    assert not waiting.done()
    become(changed(history=({"epoch": 1.0, "step": 10.0},)))
    assert (await waiting)["epoch"] == 1
    become(changed(history=({"epoch": 1.0, "step": 10.0},), state="failed", reason="why"))
    last = [e async for e in stream][-1]
    assert (last["state"], last["reason"]) == ("failed", "why")
    again = [e async for e in told.follow(lambda: now[0], lambda: event[0], first["number"])]
    assert [e["kind"] for e in again] == ["epoch", "state"]
