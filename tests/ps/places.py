"""Slots of one shard without an arena, and a push that lies in them as a daemon would put it there."""

from __future__ import annotations

import numpy as np

from p2pnn.ps.compression import Bytes
from p2pnn.ps.layout import WINDOW, Slots, part_sizes
from p2pnn.ps.messages import Push
from p2pnn.ps.sharding import ShardRange


class Places:
    """slot: for a shard."""

    def __init__(self, shard: ShardRange, push: str = "float32") -> None:
        self._slots = Slots.of(part_sizes(shard, push), 1)
        self._made: dict[tuple[int, int], Bytes] = {}

    def slot(self, worker: int, number: int) -> Bytes:
        assert 0 <= number < WINDOW
        return self._made.setdefault((worker, number), np.zeros(self._slots.nbytes, np.uint8))

    def put(self, worker: int, push: Push, data: Bytes) -> None:
        """The bytes of one part, from worker number `worker`."""
        offset, nbytes = self._slots.parts[push.part]
        self.slot(worker, push.sequence % WINDOW)[offset : offset + nbytes] = data
