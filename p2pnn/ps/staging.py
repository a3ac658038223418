"""Where pushes lie until they are decided: `layout.WINDOW` slots per worker, each as large as one push in its compressed form.

Push number n of a worker has its slot n mod WINDOW, and no other, so whoever receives needs not ask; its worker makes it when
push n − WINDOW is acknowledged. A push is applied only when it lies there whole: half a push could not be taken back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from p2pnn.ps.compression import Bytes
from p2pnn.ps.layout import WINDOW, Slots
from p2pnn.ps.messages import Push, Worker

Slot = Callable[[int, int], Bytes]
"""(number of the worker, number of its slot, below WINDOW) → the slot's bytes."""


@dataclass(eq=False, slots=True)
class Staged:
    """One push on its way in. header: of its newest part; missing: parts that are not here yet."""

    header: Push
    place: Bytes
    missing: set[int]


class Staging:
    """part_bytes: the size of each part of a push. workers: numbered as they are given. slot: is asked once for each slot."""

    def __init__(self, part_bytes: Sequence[int], workers: Iterable[Worker], slot: Slot) -> None:
        self._slots = Slots.of(part_bytes, 1)
        self._slot = slot
        self._numbers: dict[Worker, int] = {}
        self._places: dict[tuple[int, int], Bytes] = {}
        self.set_workers(workers)

    def set_workers(self, workers: Iterable[Worker]) -> None:
        """Who stays keeps its slots; who comes gets the first that are free."""
        wanted = dict.fromkeys(workers)
        self._numbers = {worker: number for worker, number in self._numbers.items() if worker in wanted}
        for worker in wanted:
            if worker not in self._numbers:
                taken = set(self._numbers.values())
                self._numbers[worker] = next(n for n in range(len(taken) + 1) if n not in taken)

    def open(self, header: Push) -> Staged:
        """A push of which the first part is here."""
        key = self._numbers[header.worker], header.sequence % WINDOW
        if key not in self._places:
            self._places[key] = self._slot(*key)
        return Staged(header, self._places[key], set(range(len(self._slots.parts))))

    def part(self, staged: Staged, index: int) -> Bytes:
        """The bytes of one part."""
        offset, nbytes = self._slots.parts[index]
        return staged.place[offset : offset + nbytes]
