"""The newest cuts of one part of a job that are kept here, and the memory that those of other nodes lie in."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from p2pnn.job.plan import Plan
from p2pnn.types import BlobId


@dataclass(slots=True)
class Holding:
    """The newest cuts of one part, by step. release: what to do with one that is dropped."""

    plan: Plan
    spec: BlobId
    kept: int
    cuts: dict[int, memoryview] = field(default_factory=dict)
    release: Callable[[int, memoryview], None] = lambda step, data: None

    def add(self, step: int, data: memoryview) -> None:
        self.cuts[step] = data
        while len(self.cuts) > self.kept:
            self.drop(min(self.cuts))

    def drop(self, step: int) -> None:
        self.release(step, self.cuts.pop(step))


class Spare:
    """Memory of the last cut that was dropped, to receive the next into: new memory costs more than a copy."""

    def __init__(self) -> None:
        self.data: memoryview | None = None
        self._reading = 0

    def release(self, step: int, data: memoryview) -> None:
        self.data = None if self._reading else data

    @contextlib.contextmanager
    def pinned(self) -> Iterator[None]:
        """While a cut is read, none that is dropped is received into."""
        self._reading += 1
        try:
            yield
        finally:
            self._reading -= 1

    def take(self, nbytes: int) -> memoryview:
        data, self.data = self.data, None
        return data if data is not None and len(data) == nbytes else memoryview(bytearray(nbytes))
