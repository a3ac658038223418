"""Versions of a shard's parameters: one live buffer, or several of which the newest never changes while somebody reads it.

With one buffer (`async`) updates are in place and readers see whatever is there. Otherwise an update goes from the newest
buffer into one that nobody reads; while all others are read, it waits. Two buffers do where every reader of one version is done
before the next one is made; a slow reader holds one more (`sync` with `backup:b` has 2 + b).
"""

from __future__ import annotations

import numpy as np

from p2pnn.ps.compression import Buffer, new
from p2pnn.ps.consistency import Consistency
from p2pnn.ps.space import Flat


def buffers(how: Consistency) -> int:
    """How many a shard has."""
    return 1 if how.kind == "async" else 2 + how.backup


class Versions:
    """initial: float32[size], copied. number: how many updates the newest version holds."""

    def __init__(self, initial: Flat, buffers: int, buffer: Buffer = new) -> None:
        self._buffers = [buffer(initial.nbytes).view(np.float32) for _ in range(buffers)]
        for made in self._buffers:
            np.copyto(made, initial)
        self._readers = [0] * buffers
        self._newest = 0
        self.number = 0

    @property
    def live(self) -> bool:
        return len(self._buffers) == 1

    @property
    def newest(self) -> Flat:
        return self._buffers[self._newest]

    def next(self) -> int | None:
        """The buffer for the next version: the only one, or one that nobody reads; None while there is none."""
        if self.live:
            return 0
        return next((i for i, n in enumerate(self._readers) if not n and i != self._newest), None)

    def buffer(self, index: int) -> Flat:
        return self._buffers[index]

    def publish(self, index: int) -> None:
        """The buffer holds the next version now."""
        self._newest = index
        self.number += 1

    def skip(self) -> None:
        """Count an update that changed nothing."""
        self.number += 1

    @property
    def spare(self) -> Flat:
        """Where `load` puts values: if possible in a buffer that nobody reads. They may lie there before."""
        index = self.next()
        return self._buffers[self._newest if index is None else index]

    def load(self, values: Flat, number: int) -> None:
        """Start from these."""
        index = self.next()
        self._newest = self._newest if index is None else index
        np.copyto(self.newest, values)
        self.number = number

    def pin(self) -> int:
        """Somebody reads the newest; to be given to `unpin`. −1 where buffers are live and nothing is held."""
        if self.live:
            return -1
        self._readers[self._newest] += 1
        return self._newest

    def unpin(self, index: int) -> None:
        if index >= 0:
            self._readers[index] -= 1
