"""Mean, variance and greatest magnitude of rows that stream by.

Blocks are merged by the formula of Chan, Golub and LeVeque (1983), in float64: the sum of squares about the mean never
loses its digits to a large mean, as the textbook's Σx² − (Σx)²/n does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

CONSTANT_BELOW = 1e-7
"""A feature whose deviation is less than this part of its magnitude does not vary, within float32's precision."""


class Moments:
    """count: rows seen. magnitude: greatest absolute value of all. mean: float64 per entry of the row's first axis."""

    def __init__(self) -> None:
        self.count = 0
        self.magnitude = 0.0
        self.mean: NDArray[np.float64] = np.zeros(1)
        self._squares: NDArray[np.float64] = np.zeros(1)
        self._largest: NDArray[np.float64] = np.zeros(1)

    def add(self, rows: NDArray[Any]) -> None:
        """rows: [n, k, …]; the statistics are per k, over everything else. Of rows [n] there is one k."""
        if not len(rows):
            return
        if rows.dtype.kind in "iu":  # only their magnitude is asked for
            self.magnitude = max(self.magnitude, float(rows.max()), -float(rows.min()))
            return
        rows = rows[:, None] if rows.ndim == 1 else rows
        values = np.moveaxis(rows.astype(np.float64), 1, 0).reshape(rows.shape[1], -1)
        count = values.shape[1]
        mean = values.mean(axis=1)
        squares = np.square(values - mean[:, None]).sum(axis=1)
        self._largest = np.maximum(self._largest, np.abs(values).max(axis=1))
        self.magnitude = float(self._largest.max())
        total = self.count + count
        difference = mean - self.mean
        self.mean = self.mean + difference * (count / total)
        self._squares = self._squares + squares + difference**2 * (self.count * count / total)
        self.count = total

    @property
    def deviation(self) -> NDArray[np.float64]:
        """√variance (of the population) per entry; 1 where it does not vary, so that one may divide by it."""
        deviation = np.sqrt(self._squares / max(1, self.count))
        return np.where(deviation > CONSTANT_BELOW * self._largest, deviation, 1.0)
