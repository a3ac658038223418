"""Sums of losses and metrics, and named outputs, as micro-batches go by; and when to report them."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from p2pnn.data import chunks
from p2pnn.data.blobs import BlobStore
from p2pnn.job.script import Evaluation, Predictions, Progress
from p2pnn.types import BlobId

PROGRESS_INTERVAL_S: Final = 0.2


class Sums:
    """Loss and metrics over rows. rows are counted by one node only, which holds the first loss: nodes' sums add up. finite:
    no loss was left out for being no number."""

    def __init__(self) -> None:
        self.loss = 0.0
        self.rows = 0
        self.finite = True
        self.metrics: dict[str, tuple[float, float]] = {}

    def add_loss(self, loss: float, rows: int) -> None:
        self.loss += loss * rows

    def add_metric(self, name: str, pair: NDArray[Any]) -> None:
        total, count = self.metrics.get(name, (0.0, 0.0))
        self.metrics[name] = (total + float(pair[0]), count + float(pair[1]))

    def evaluation(self) -> Evaluation:
        return Evaluation(self.loss, self.rows, self.metrics)


class Pace:
    """Training sums and seconds since the last Progress. All times are the caller's clock."""

    def __init__(self, now: float, step: int) -> None:
        self._since = now
        self.sums = Sums()
        self.compute_s = 0.0
        self._step = step

    def due_in(self, now: float) -> float:
        """Seconds until a Progress may be sent."""
        return max(0.0, self._since + PROGRESS_INTERVAL_S - now)

    def report(self, step: int, now: float, *, always: bool = False) -> Progress | None:
        """The sums since the last one; None where nothing happened, unless it is wanted always."""
        if not always and step == self._step and not self.sums.rows and not self.sums.metrics:
            return None
        found = Progress(
            step, (self.sums.loss, self.sums.rows), self.sums.metrics, self.compute_s, max(now - self._since, 0.0)
        )
        self._since, self._step, self.compute_s, self.sums = now, step, 0.0, Sums()
        return found


class Outputs:
    """Named outputs of a prediction, written as data chunks whenever one is full."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._waiting: dict[str, list[NDArray[Any]]] = {}
        self._written: dict[str, list[tuple[BlobId, int]]] = {}
        self._kind: dict[str, tuple[str, tuple[int, ...]]] = {}

    def add(self, name: str, rows: NDArray[Any]) -> None:
        """Take a copy of some rows. Raises StorageError where the disk has no room for a full chunk."""
        self._kind[name] = (rows.dtype.name, rows.shape[1:])
        waiting = self._waiting.setdefault(name, [])
        waiting.append(rows.copy())
        if sum(len(array) for array in waiting) >= chunks.rows_per_chunk(*self._kind[name]):
            self._write(name)

    def finish(self) -> Predictions:
        """Write what is left and describe everything."""
        for name in self._kind:
            self._write(name)
        found = {name: (*self._kind[name], tuple(self._written[name])) for name in self._kind}
        self._waiting, self._written, self._kind = {}, {}, {}
        return Predictions(found)

    def _write(self, name: str) -> None:
        written = self._written.setdefault(name, [])
        waiting, self._waiting[name] = self._waiting[name], []
        if not waiting:
            return
        rows = np.concatenate(waiting)
        size = chunks.rows_per_chunk(*self._kind[name])
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            written.append((self._blobs.put(chunks.write(part)), len(part)))
