"""Snapshots: after every k-th update the executor copies its state into a slot of the arena, and goes on.

The copy is all that the training path pays: no hash, no file, no waiting. A slot belongs to the daemon from then on, which
gives it back (`commands.Freed`) when neither this node nor another needs it any more; where none is free the cut is left out.

In `sync` the state after update s is one consistent cut of the run, since every pass of an earlier step is over on every node.
With several mini-batches in flight the cut also holds the d older versions of the parameters that coming steps read, as a
checkpoint does (`executor.versions`). Most of them still lie in their buffers; those that were overwritten meanwhile are copied
ahead, when they are the newest, into the slot of the cut that will need them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from p2pnn.engine.base import Array, Engine
from p2pnn.executor.arena import Arena
from p2pnn.executor.weights import Weights
from p2pnn.job.spec import JobSpec
from p2pnn.train.cuts import COUNTER_BYTES, Entry, Places

Copy = tuple[NDArray[np.float32], Array]
"""Where to, and a view of what, in ONNX's layout."""


class Snapshots:
    """offset: where in the arena the counter and the slots lie; −1 for a job that takes no snapshots."""

    def __init__(
        self, spec: JobSpec, engine: Engine, weights: Weights, places: Places, arena: Arena, offset: int, step: int
    ) -> None:
        self._copied = 0
        self._seconds = 0.0
        self._spec = spec
        self._engine = engine
        self._weights = weights
        self._places = places
        self._free: list[int] = []
        self._filling: tuple[int, int, set[int]] | None = None  # (cut's step, slot, older versions copied ahead)
        self._ahead = max((entry.behind for entry in places.more), default=0) if weights.versions.overwrites else 0
        self._copies: dict[tuple[int, int], list[Copy]] = {}
        if offset < 0:
            self._counter = np.zeros(1, np.int64)
            return
        self._counter = arena.array(offset, (1,), "int64")
        self._counter[0] = step
        start = offset + COUNTER_BYTES
        slots = min(places.slots, (arena.size - start) // max(1, places.nbytes))
        self._slots = [arena.array(start + n * places.nbytes, (places.count,), "float32") for n in range(slots)]
        self._free = list(range(slots))

    def freed(self, slot: int) -> None:
        """The daemon needs a slot no more."""
        if 0 <= slot < len(self._slots) and slot not in self._free:
            self._free.append(slot)

    def taken(self) -> tuple[int, float]:
        """How many were taken since the last call, and the seconds for copying them."""
        found = self._copied, self._seconds
        self._copied, self._seconds = 0, 0.0
        return found

    def updated(self, step: int, every: int) -> int:
        """So many updates are done, right now. Copies where it is time for a cut; the slot that holds it, or −1."""
        self._counter[0] = step
        if not every or (not self._free and self._filling is None):
            return -1
        if not self._ahead:
            return self._copy(step, self._free.pop(0)) if step % every == 0 else -1
        return self._updated_behind(step, every)

    def _updated_behind(self, step: int, every: int) -> int:
        """The same, where older versions have to be copied ahead."""
        start = time.perf_counter()
        slot = -1
        if step % every == 0:
            filling, self._filling = self._filling, None
            if filling is not None and filling[0] == step and len(filling[2]) == min(step, self._ahead):
                slot = self._copy(step, filling[1])
            elif filling is not None:
                self._free.append(filling[1])
        cut = (step // every + 1) * every
        behind = cut - step
        if behind <= self._ahead:
            if self._filling is not None and self._filling[0] != cut:
                self._free.append(self._filling[1])
                self._filling = None
            if self._filling is None and self._free:
                self._filling = cut, self._free.pop(0), set()
            if self._filling is not None:
                newest = self._weights.versions.newest
                for entry in self._places.more:
                    if entry.behind == behind and entry.parameter.name in self._weights.versions.overwrites:
                        np.copyto(*self._pair(entry, self._slots[self._filling[1]], newest))
                self._filling[2].add(step)
                self._seconds += time.perf_counter() - start
        return slot

    def _copy(self, step: int, slot: int) -> int:
        start = time.perf_counter()
        key = slot, self._weights.versions.newest_slot
        copies = self._copies.get(key)
        if copies is None:
            copies = self._pairs(self._slots[slot])
            if step >= self._weights.versions.delay:  # before, there are fewer older versions
                self._copies[key] = copies
        for target, source in copies:
            np.copyto(target, source)
        self._copied += 1
        self._seconds += time.perf_counter() - start
        return slot

    def _pairs(self, slot: NDArray[np.float32]) -> list[Copy]:
        """What goes where, for a cut in this slot while the versions lie as they do now: views, made once."""
        weights = self._weights
        held: Mapping[str, Array] = {**weights.versions.newest, **weights.tensors.state}
        older = {weights.versions.updates - number: held for number, held in weights.versions.buffers()}
        found = []
        for entry in (*self._places.named, *self._places.more):
            if entry.behind:
                copied_ahead = self._ahead and entry.parameter.name in weights.versions.overwrites
                if entry.behind in older and not copied_ahead:
                    found.append(self._pair(entry, slot, older[entry.behind]))
            else:
                found.append(self._pair(entry, slot, weights.slots[entry.slot] if entry.slot else held))
        return found

    def _pair(self, entry: Entry, slot: NDArray[np.float32], held: Mapping[str, Array]) -> Copy:
        target = slot[entry.offset : entry.offset + entry.count].reshape(entry.parameter.shape)
        name = entry.parameter.name
        return target, self._engine.parameter_view(self._spec.graph, name, held[name])
