"""What has happened to a job, as numbered events that any number of readers follow (`node.bulletin` brings them here).

Progress is kept in memory only, and only the newest: who comes late wants to know where it stands, not every step on the way.
The tokens of a text are kept in memory only, too, but all of them: they are for who reads along.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Container
from typing import Any, Final

from p2pnn.errors import StorageError
from p2pnn.job import life
from p2pnn.node.storage import Storage
from p2pnn.types import JobId

log = logging.getLogger("p2pnn.jobs")

IDLE_MAX: Final = 64
"""Event lists of jobs that do not run here, in memory; others are read from their files when somebody asks."""

EVENTS_MAX: Final = 5_000
"""Events of one job in memory; the oldest are forgotten there, the file has them."""

PASSING: Final = frozenset({"progress", "preparing"})
UNWRITTEN: Final = PASSING | {"tokens"}


class Journal:
    """One job's events since this daemon heard of it, and before its start from its file."""

    def __init__(self, job: JobId, storage: Storage) -> None:
        self._job = job
        self._storage = storage
        found = storage.load_events(job)
        self._first = found[0] if found else None
        self._events: deque[dict[str, Any]] = deque(found, maxlen=EVENTS_MAX)
        self._number = self._events[-1].get("number", 0) if self._events else 0
        self._changed = asyncio.Event()

    @property
    def number(self) -> int:
        """That of the newest event; 0 before the first."""
        return self._number

    def add(self, kind: str, fields: dict[str, Any]) -> None:
        """Number an event, keep it, wake who follows."""
        self._number += 1
        event = {"number": self._number, "time": time.time(), "kind": kind, **fields}
        self._first = self._first or event
        if kind in PASSING and self._events and self._events[-1]["kind"] == kind:
            self._events.pop()
        self._events.append(event)
        if kind not in UNWRITTEN:
            log.info("job=%s event=%s %s", self._job, kind, fields.get("state") or fields.get("text") or "")
            try:
                self._storage.append_events(self._job, [event])
            except StorageError as error:
                log.warning("job=%s event not stored reason=%s", self._job, error)
        self._changed.set()
        self._changed = asyncio.Event()

    @property
    def begins_with_the_job(self) -> bool:
        """Whether it has events from the beginning of a start on: a node that joined later knows only what came then."""
        return self._first is not None and self._first["kind"] == "state" and self._first["state"] == "queued"

    @property
    def ended(self) -> bool:
        """Whether the newest state that it tells is an end of the job."""
        last = self._last_state()
        return last is not None and last["state"] in life.ENDED

    async def follow(self, after: int) -> AsyncIterator[dict[str, Any]]:
        """Events numbered above `after`, as they come; ends behind the newest event once that is an end of the job."""
        while True:
            changed = self._changed
            for event in [e for e in self._events if e["number"] > after]:
                after = event["number"]
                yield event
            last = self._last_state()
            if (
                last is not None
                and last["state"] in life.ENDED
                and last["number"] <= after
                and changed is self._changed
            ):
                return
            await changed.wait()

    def _last_state(self) -> dict[str, Any] | None:
        return next((e for e in reversed(self._events) if e["kind"] == "state"), None)


class Journals:
    """The journals of a node's jobs. running: the jobs whose journals must stay in memory."""

    def __init__(self, storage: Storage, running: Container[JobId]) -> None:
        self._storage = storage
        self._running = running
        self._found: dict[JobId, Journal] = {}

    def of(self, job: JobId) -> Journal:
        """The journal of a job, begun or read from its file where it is not in memory."""
        found = self._found.pop(job, None) or Journal(job, self._storage)
        self._found[job] = found  # the newest last
        idle = [other for other in self._found if other not in self._running and other != job]
        for other in idle[: max(0, len(idle) - IDLE_MAX)]:
            del self._found[other]
        return found
