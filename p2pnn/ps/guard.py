"""The guard of a shard: which gradients are refused for what they hold, how often each worker was refused, and who is set aside.

A gradient with NaN or infinite elements would spoil the parameters for everybody, and so does one whose norm has run away. How
large is normal a shard learns from what it took: a norm above `runaway_factor` times the running mean is refused, once enough
were seen. What was refused moves the mean as the limit itself would have, so a real change of scale is followed after a few. A
worker whose bad pushes follow one another `strikes` times is set aside; the last that is left never is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from p2pnn.ps.messages import BAD, Refusal, Worker
from p2pnn.ps.norms import norm_squared
from p2pnn.ps.space import Flat

SEEN_MIN: Final = 20
"""Norms that are seen before any is called too large: the first of a run differ much."""

KEPT: Final = 0.95
"""Share of the running mean that stays: it follows over some twenty pushes."""


@dataclass
class Guard:
    """runaway_factor: 0 for no limit. refused: (worker, why) → how often; it grows only by workers of the job."""

    runaway_factor: float = 100.0
    strikes: int = 3
    refused: Counter[tuple[Worker, Refusal]] = field(default_factory=Counter)
    set_aside: set[Worker] = field(default_factory=set)
    _mean: float = 0.0
    _seen: int = 0
    _in_a_row: Counter[Worker] = field(default_factory=Counter)

    def judge(self, gradient: Flat) -> tuple[Refusal | None, float]:
        """Whether to refuse it for what it holds, and its norm."""
        squared = norm_squared(gradient)
        if not math.isfinite(squared):
            if not np.isfinite(gradient).all():
                return Refusal.NOT_FINITE, math.nan
            squared = float(np.square(gradient, dtype=np.float64).sum())  # rare: elements above 10¹⁹
        norm = math.sqrt(squared)
        limit = self.runaway_factor * self._mean
        runs_away = limit > 0 and self._seen >= SEEN_MIN and norm > limit
        counted = limit if runs_away else norm
        self._mean = KEPT * self._mean + (1 - KEPT) * counted if self._seen else counted
        self._seen += 1
        return (Refusal.RUNAWAY if runs_away else None), norm

    def took(self, worker: Worker) -> None:
        """A push of this worker was good."""
        self._in_a_row.pop(worker, None)

    def refuse(self, worker: Worker, why: Refusal, others: int) -> bool:
        """Count a refused push. others: workers that are left besides this one. True where this one is set aside with it."""
        self.refused[worker, why] += 1
        if why not in BAD:
            return False
        self._in_a_row[worker] += 1
        if self._in_a_row[worker] < self.strikes or not others or worker in self.set_aside:
            return False
        self.set_aside.add(worker)
        return True

    @property
    def in_a_row(self) -> dict[Worker, int]:
        """How many bad pushes of each worker have followed one another."""
        return dict(self._in_a_row)

    def load(
        self, refused: Mapping[tuple[Worker, Refusal], int], in_a_row: Mapping[Worker, int], aside: Iterable[Worker]
    ) -> None:
        """Become what another guard of this shard is, apart from what norms it has seen."""
        self.refused, self._in_a_row = Counter(refused), Counter(in_a_row)
        self.set_aside.clear()
        self.set_aside.update(aside)
