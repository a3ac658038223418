"""What a server did for each push, written into its ring (`job.spans`): judge, log, apply. Receiving and sending sees the daemon.

A shard has no clock. It says what it has done (`ps.report.Phase`), one thing after the other within one verb, and the time is
taken here: each began when the one before it ended, or the verb began.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final

from p2pnn.job.spans import ALL_WORKERS, HEAD_BYTES, RECORD, RING_BYTES, Kind, Ring, of_push
from p2pnn.ps.messages import Worker
from p2pnn.ps.report import Phase

_KINDS: Final = {Phase.JUDGED: Kind.JUDGE, Phase.LOGGED: Kind.LOG, Phase.APPLIED: Kind.APPLY}


class ServingSpans:
    """memory: begins with the ring; None for one that nobody reads. numbers: of the workers."""

    def __init__(
        self,
        memory: memoryview | None,
        numbers: Mapping[Worker, int],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._numbers = numbers
        self._ring = Ring(bytearray(HEAD_BYTES + RECORD.size) if memory is None else memory[:RING_BYTES])
        self._clock = clock
        self._since = 0.0

    def begins(self, now: float) -> None:
        """A shard's verb begins."""
        self._since = now

    def did(self, shard: int, phase: Phase, worker: Worker | None, sequence: int, version: int) -> None:
        """It has done this with a push of the worker's, None for a round of all; version: of the shard when it began."""
        now = self._clock()
        what = of_push(shard, ALL_WORKERS if worker is None else self._numbers[worker])
        self._ring.add(self._since, now, -1 if worker is None else sequence, version, _KINDS[phase], what)
        self._since = now
