"""How the trainings that p2pnn is compared with tell their loss against time; for any environment."""

from __future__ import annotations

import time

NOTE_S = 0.2
"""How often the loss is noted: as often as p2pnn reports it."""


class Notes:
    """Mean losses against time: [seconds since the beginning, steps, loss]."""

    def __init__(self) -> None:
        self.start = self.since = time.perf_counter()
        self.rows: list[tuple[float, int, float]] = []
        self.losses: list[float] = []

    def add(self, step: int, loss: float, *, last: bool) -> None:
        self.losses.append(loss)
        now = time.perf_counter()
        if now - self.since >= NOTE_S or last:
            self.rows.append((round(now - self.start, 4), step, sum(self.losses) / len(self.losses)))
            self.since, self.losses = now, []
