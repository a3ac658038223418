"""Which buffer holds which version of the parameters, where mini-batches of several steps are in flight.

Version v is the parameters after v updates. On a node that runs d updates behind, the passes of step t read version
max(0, t − d), and update t reads the newest version, t, and writes version t + 1 into another buffer. The engine is given
sets of parameters at fixed places; version v lies in set v mod n. Behind the sets there are as few arrays as will do:

- one for a parameter that never changes, and for all where d is 0: updates are in place;
- d + 1 for one that backward passes read, because step t's comes after t updates and wants version t − d;
- two for any other (the first layers' weights, biases): while work flows, the forward pass of step t runs just when its
  version is the newest. Where it does not, because everything was drained for an evaluation or a checkpoint, the version
  that an update would overwrite is copied *aside*, and lent to the forward pass that asks for it.

So what a step reads never depends on how the run was cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set

import numpy as np

from p2pnn.engine.base import Array

Held = dict[str, Array]


def sets_needed(delay: int) -> int:
    """How many sets of parameters a node needs: a multiple of two and of delay + 1."""
    kept = delay + 1
    return kept if kept == 1 or kept % 2 == 0 else 2 * kept


class Versions:
    """sets: `Tensors.versions`, `sets_needed(delay)` of them; some of their arrays are replaced here by shared ones.

    changing: the parameters that updates change. read_back: those of them that backward passes read. updates: how many
    there were, which is the newest version's number.
    """

    def __init__(self, sets: list[Held], delay: int, changing: Set[str], read_back: Set[str]) -> None:
        self.updates = 0
        self._sets = sets
        self._delay = delay
        self._changing = sorted(changing)
        self._twofold = sorted(changing - read_back) if delay > 1 else []
        self._aside: dict[int, Held] = {}
        for name in sets[0]:
            buffers = 1 if name not in changing else 2 if name in self._twofold else delay + 1
            for number, held in enumerate(sets):
                held[name] = sets[number % buffers][name]

    @property
    def memory_bytes(self) -> int:
        """All buffers, and what lies aside at most."""
        arrays = {id(array): array.nbytes for held in self._sets for array in held.values()}
        aside = max(0, self._delay - 1) * sum(self._sets[0][name].nbytes for name in self._twofold)
        return sum(arrays.values()) + aside

    @property
    def delay(self) -> int:
        """How many updates behind this node's passes run."""
        return self._delay

    @property
    def overwrites(self) -> frozenset[str]:
        """The parameters of which fewer versions are kept in buffers than coming steps read; empty for a delay of 0 or 1."""
        return frozenset(self._twofold)

    def buffers(self) -> Iterator[tuple[int, Held]]:
        """(version, its set) of the versions before the newest that coming steps read, right after an update.

        The arrays of what `overwrites` names may hold a newer version.
        """
        for version in range(max(0, self.updates - self._delay), self.updates):
            yield version, self._sets[self._set(version)]

    def slot(self, step: int) -> int:
        """The set that the passes of a training step read."""
        return self._set(max(0, step - self._delay))

    @property
    def newest_slot(self) -> int:
        return self._set(self.updates)

    @property
    def next_slot(self) -> int:
        """Where the next update goes; where updates are in place it holds the arrays of `newest_slot`.

        What backward passes read may be written there before `advance`, once the step's own backward pass has read it; other
        parameters only where the delay is at most 1, because `advance` lays their old version aside.
        """
        return self._set(self.updates + 1)

    @property
    def newest(self) -> Held:
        """The parameters after all updates."""
        return self._sets[self.newest_slot]

    def lend(self, step: int) -> bool:
        """Exchange what lies aside for a step's forward passes with what is in its set; False where nothing does.

        Call it before the pass and, where it was True, after it again.
        """
        version = max(0, step - self._delay)
        aside = self._aside.get(version) if self._aside else None
        if aside is None:
            return False
        held = self._sets[self._set(version)]
        for name, array in aside.items():
            aside[name] = held[name].copy()
            np.copyto(held[name], array)
        return True

    def advance(self, forwarded: int) -> tuple[Held, Held]:
        """Begin the next update: (the newest parameters, where the next ones go); the same where it is in place.

        forwarded: all forward passes of steps below it are done.
        """
        for version in [v for v in self._aside if v + self._delay < forwarded]:
            del self._aside[version]
        overwritten = self.updates - 1
        if self._twofold and overwritten >= 0 and overwritten + self._delay >= forwarded:
            held = self._sets[self._set(overwritten)]
            self._aside[overwritten] = {name: held[name].copy() for name in self._twofold}
        newest = self.newest
        self.updates += 1
        return newest, self.newest

    def older(self) -> Iterator[tuple[int, Mapping[str, Array]]]:
        """(version, the parameters that changed since) of the versions before the newest that coming steps read, oldest first.

        Only between steps: no pass of a step that begins before `updates` may be left.
        """
        for version in range(max(0, self.updates - self._delay), self.updates):
            held, aside = self._sets[self._set(version)], self._aside.get(version, {})
            yield version, {name: aside.get(name, held[name]) for name in self._changing}

    def restart(self, updates: int) -> None:
        """Begin at this version, with room for the older ones; then fill `newest` and what `older` gives."""
        self.updates = updates
        self._aside = {
            version: {name: np.zeros_like(self._sets[0][name]) for name in self._twofold}
            for version in range(max(0, updates - self._delay), updates - 1)
            if self._twofold
        }

    def _set(self, version: int) -> int:
        return version % len(self._sets)
