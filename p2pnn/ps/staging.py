"""Where pushes lie until they are decided: a few slots per worker (`layout.window`), each as large as one push, compressed.

Push number n of a worker has its slot n mod their number, and no other, so whoever receives needs not ask. A push is applied only
when it lies there whole: half a push could not be taken back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from p2pnn.ps.compression import Bytes
from p2pnn.ps.layout import WINDOW, Run, Slots
from p2pnn.ps.messages import Push, Worker

Slot = Callable[[int, int], Bytes]
"""(number of the worker, number of its slot) → the slot's bytes."""


@dataclass(eq=False, slots=True)
class Staged:
    """One push on its way in. header: of its newest part; missing: parts that are not here yet."""

    header: Push
    place: Bytes
    missing: set[int]


class Staging:
    """part_bytes: the size of each part of a push. workers: numbered as they are given. slot: is asked once for each slot.

    window: slots of a worker.
    """

    def __init__(self, part_bytes: Sequence[int], workers: Iterable[Worker], slot: Slot, window: int = WINDOW) -> None:
        self.window = window
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
        place = self.place(header.worker, header.sequence)
        return Staged(header, place, set(range(len(self._slots.parts))))

    def place(self, worker: Worker, sequence: int) -> Bytes:
        """The bytes of the slot of a worker's push."""
        key = self._numbers[worker], sequence % self.window
        if key not in self._places:
            self._places[key] = self._slot(*key)
        return self._places[key]

    def part(self, place: Bytes, index: int) -> Bytes:
        """The bytes of one part of the push that lies there."""
        offset, nbytes = self._slots.parts[index]
        return place[offset : offset + nbytes]

    @property
    def parts(self) -> tuple[Run, ...]:
        """Of each part of a push (offset, bytes)."""
        return self._slots.parts

    @property
    def nbytes(self) -> int:
        """Of a push."""
        return self._slots.nbytes
