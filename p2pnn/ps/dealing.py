"""How the nodes of a worker that is cut over several train the same batches in the same order. Pure.

The first of them, which speaks to the shard that deals out the data, asks for all (`leasing`), and tells the others which
batches their next steps train (`Deal`). Each of those tells it how many steps its own shards have decided, and which of these
none of them has taken. A batch is trained when the shards of all nodes have decided it, and in vain where none has taken it
(`decided`). So the shards do not see that there are others, and a lease is what it is of a worker of one node.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

from p2pnn.ps.leasing import Leasing
from p2pnn.replication.leases import Range


class Deal(NamedTuple):
    """Batches `ranges` are those of the worker's steps from `first` on. trained_below: as of `granting.Leased`."""

    first: int
    ranges: tuple[Range, ...]
    trained_below: int


class Dealing:
    """The first node's side. others: where the others stand in the replica. on_refused: as of `decided.Decided`, by all nodes."""

    def __init__(self, others: Iterable[int], on_refused: Callable[[int, int, bool], None]) -> None:
        self._others = dict.fromkeys(others, 0)
        self._on_refused = on_refused
        self._refused: dict[int, dict[int, bool]] = {position: {} for position in (0, *self._others)}
        self._own: deque[tuple[int, int]] = deque()  # (steps, pushes) that shards of this node have decided
        self._trained = 0, 0
        self._granted = self._trained_below = 0  # as the others know

    def decided(self, position: int, steps: int) -> None:
        """Another node's shards have decided so many of its steps. What cannot be is passed over."""
        if position in self._others and steps <= self._granted:
            self._others[position] = max(steps, self._others[position])

    def refused(self, first: int, stop: int, bad: bool, position: int = 0) -> None:
        """No shard of a node has taken these steps: say it before that they are decided. What cannot be is passed over."""
        if position in self._refused and self._trained[0] <= first and stop <= self._granted:
            self._refused[position] |= dict.fromkeys(range(first, stop), bad)

    def trained(self, steps: int, pushes: int) -> tuple[int, int]:
        """How many steps all shards have decided, and in how many pushes to this node's, of whose own shards these are told."""
        if steps > (self._own[-1] if self._own else self._trained)[0]:
            self._own.append((steps, pushes))
        least = min(self._others.values(), default=steps)
        while self._own and self._own[0][0] <= least:
            before, self._trained = self._trained[0], self._own.popleft()
            for step in range(before, self._trained[0]):
                fates = [refused.pop(step, None) for refused in self._refused.values()]
                if None not in fates:
                    self._on_refused(step, step + 1, all(fates))
        return self._trained

    def next(self, leasing: Leasing) -> Deal | None:
        """What to tell the others, if there is news."""
        new = range(self._granted, leasing.granted)
        if not new and leasing.trained_below == self._trained_below:
            return None
        self._granted, self._trained_below = new.stop, leasing.trained_below
        return Deal(new.start, _ranges(map(leasing.batch, new)), leasing.trained_below)


class Dealt:
    """Another node's side: what it is told of. step: global steps that were trained before this start."""

    def __init__(self, step: int) -> None:
        self.trained_below = step
        self.granted = 0  # steps of this worker
        self._runs: deque[tuple[int, int, int]] = deque()  # (first step, first batch, past the last one)

    def take(self, deal: Deal) -> None:
        """What does not go on from what was told before is passed over: a link has broken, with which tensors were lost too, so
        the part will not last."""
        if deal.first != self.granted:
            return
        for start, stop in deal.ranges:
            self._runs.append((self.granted, start, stop))
            self.granted += stop - start
        self.trained_below = max(self.trained_below, deal.trained_below)

    def batch(self, step: int) -> int:
        """The global step that a step of this worker trains."""
        for first, start, _ in reversed(self._runs):
            if first <= step < self.granted:
                return start + step - first
        raise IndexError(f"step {step} of the worker is not dealt")

    def passed(self, step: int) -> None:
        """All before this one are done."""
        while self._runs and self._runs[0][0] + self._runs[0][2] - self._runs[0][1] <= step:
            self._runs.popleft()


def _ranges(batches: Iterable[int]) -> tuple[Range, ...]:
    found: list[Range] = []
    for batch in batches:
        if found and found[-1][1] == batch:
            found[-1] = found[-1][0], batch + 1
        else:
            found.append((batch, batch + 1))
    return tuple(found)
