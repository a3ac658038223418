"""Where pushes are received: a bounded pool of places, each as large as one push in its compressed form.

A place is given out before a byte comes, so that a transport can receive straight into it. A push is applied only when it lies
there whole: half a push could not be taken back. A place that bytes still go into is not given to anybody else, even if
its push has been dropped meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np

from p2pnn.ps.compression import Bytes
from p2pnn.ps.messages import Push


@dataclass(eq=False, slots=True)
class Staged:
    """One push on its way in. missing: parts that are not here whole; receiving: those that bytes go into now."""

    header: Push
    place: Bytes
    missing: set[int]
    receiving: set[int] = field(default_factory=set)
    dropped: bool = False

    @property
    def whole(self) -> bool:
        return not self.missing and not self.dropped


class Staging:
    """part_bytes: the size of each part of a push. places: how many pushes can be in here."""

    def __init__(self, part_bytes: Sequence[int], places: int) -> None:
        self._starts = [0, *accumulate(part_bytes)]
        self.places = places
        self._free = [np.empty(self._starts[-1], np.uint8) for _ in range(places)]

    @property
    def free(self) -> int:
        return len(self._free)

    def open(self, header: Push) -> Staged:
        """A place for a push; there must be a free one."""
        return Staged(header, self._free.pop(), set(range(len(self._starts) - 1)))

    def grow(self, places: int) -> None:
        """Have at least so many places."""
        self._free += [np.empty(self._starts[-1], np.uint8) for _ in range(places - self.places)]
        self.places = max(self.places, places)

    def part(self, staged: Staged, index: int) -> Bytes:
        """Where the bytes of one part go, and lie."""
        return staged.place[self._starts[index] : self._starts[index + 1]]

    def close(self, staged: Staged) -> bool:
        """The push is not needed any more. True where its place is free now, not only later."""
        staged.dropped = True
        return self.settle(staged)

    def settle(self, staged: Staged) -> bool:
        """Take back a dropped push's place, if nothing goes into it any more. True where that was so."""
        if not staged.dropped or staged.receiving:
            return False
        self._free.append(staged.place)
        return True
