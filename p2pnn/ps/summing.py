"""The sum of a round's gradients, in the workers' order and in pairs, as one process sums its micro-batches' (`model.sums`)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from p2pnn.model import sums
from p2pnn.ps.space import Flat


class Summing:
    """size: elements of a gradient. workers: how many gradients there are at most. It holds as many sums as there are at once."""

    def __init__(self, size: int, workers: int) -> None:
        self._size = size
        self._own: list[Flat] = []
        self.grow(workers)

    def grow(self, workers: int) -> None:
        """Take up to so many."""
        self._own += [np.empty(self._size, np.float32) for _ in range(sums.most(workers) - len(self._own))]

    def sum(self, gradients: Iterable[Flat], *, kept: bool) -> Flat:
        """The sum of at least one gradient, each of them only read. kept: they stay as they are until all are summed; else each
        may lie where the one before did. The sum is valid until the next call, and as long as they are."""
        held: list[Flat] = []
        for index, gradient in enumerate(gradients):
            before, added = sums.place(index)
            if added:
                held[-1] = np.add(held[-1], gradient, out=self._own[before - 1])
            elif kept:
                held.append(gradient)
            else:
                np.copyto(self._own[before], gradient)
                held.append(self._own[before])
            for _ in range(added - 1):
                self._add_last(held)
        while len(held) > 1:
            self._add_last(held)
        return held[0]

    def _add_last(self, held: list[Flat]) -> None:
        newest = held.pop()
        held[-1] = np.add(held[-1], newest, out=self._own[len(held) - 1])
