"""A job's events as its record tells them: for jobs that another node coordinates, or coordinated.

A record has no progress, but plan, epochs, state and results. Events are numbered so that the same record always gives the
same numbers, and a later one higher numbers: who lost the stream takes it up where it broke.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final

import msgspec

from p2pnn.job.records import JobRecord

PER_START: Final = 1 << 32
PER_EPOCH: Final = 32
_RANKS: Final = {
    "queued": 2, "preparing": 3, "running": 4, "pausing": 5, "finishing": 6,
    "recovering": 7, "parked": 8,
    "paused": 24, "failed": 25, "cancelled": 26, "done": 27,
}  # fmt: skip


async def follow(
    get: Callable[[], JobRecord], changed: Callable[[], asyncio.Event], after: int
) -> AsyncIterator[dict[str, Any]]:
    """Events numbered above `after`, as the record changes; ends with the job. changed: gives the event of the next change."""
    while True:
        change, record = changed(), get()
        for event in events(record):
            if event["number"] > after:
                after = event["number"]
                yield event
        if record.is_over:
            return
        await change.wait()


def events(record: JobRecord) -> Iterator[dict[str, Any]]:
    """What the record tells, in the order of the numbers."""
    first = max(record.starts, 1) * PER_START
    last = first + len(record.history) * PER_EPOCH
    if record.plan is not None:
        yield _event(record, first + 1, "plan", {"plan": msgspec.to_builtins(record.plan)})
    for index, entry in enumerate(record.history, 1):
        counts: dict[str, Any] = {name: int(entry[name]) for name in ("epoch", "step") if name in entry}
        yield _event(record, first + index * PER_EPOCH, "epoch", entry | counts | {"epochs": record.epochs})
    if record.state == "done":
        for index, result in enumerate(record.results):
            yield _event(record, last + 8 + index, "evaluation", msgspec.to_builtins(result))
        if record.kind == "train" and (outcome := record.outcome) is not None:
            result_fields = {
                "bits": record.bits,
                "step": outcome.step,
                "epoch": outcome.epoch,
                "stopped_early": record.stopped_early,
                "evaluation": msgspec.to_builtins(record.results),
            }
            yield _event(record, last + 20, "result", result_fields)
    yield _event(record, last + _RANKS.get(record.state, 1), "state", {"state": record.state, "reason": record.reason})


def _event(record: JobRecord, number: int, kind: str, fields: dict[str, Any]) -> dict[str, Any]:
    return {"number": number, "time": record.updated_s, "kind": kind, **fields}
