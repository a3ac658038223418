"""A worker's side of the leases of data: which batches its own steps train, and what it wishes for when. Pure.

A worker's *local* steps are numbered as it does them. Each range that it is granted (`replication.leases`) are some more of them.
It asks for the next one before it is through, so that it never waits while there are any, and for as many as take it about
RANGE_S: so a slow worker holds no more time of work than a fast one, and what is said costs nothing beside what is computed.
With each wish goes what is trained, which is what all shards have decided, and what of that none has taken: that is not.

A wish that nothing can be given to is answered when the batches that the script waits for are trained, by whomever. A newer one
takes its place at the shard, so this worker may say at any time what is new.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from p2pnn.ps.allotment import Allotment
from p2pnn.replication.leases import Range, Wish
from p2pnn.wire.fields import LEASES_MAX

RANGE_S: Final = 0.25
"""Aim for the length of a range."""

AHEAD_S: Final = 0.1
"""The next one is asked for so long before the last begins to end, and one step before it at least."""

TELL_S: Final = 0.1
"""What is trained is told so often, where nothing else is to be said."""

RETRY_S: Final = 2.0
"""A wish may wait for a slow worker; but the process that it was said to may be gone."""

FOLLOWS: Final = 0.3
"""Share of the newest step in how long steps are thought to take."""


@dataclass(slots=True)
class _Run:
    """Batches from `start` up to `stop`, as local steps from `first` on."""

    first: int
    start: int
    stop: int

    @property
    def end(self) -> int:
        return self.first + self.stop - self.start

    def left(self, local: int) -> int:
        """The first batch that is not of a step below `local`: what came back of those may have been granted anew."""
        return self.start + max(0, local - self.first)


class Leasing:
    """step: global steps that were trained before this start. at_least: steps of a range, where a push holds several. retry_s: as
    RETRY_S.

    until: the least step that the script waits for, −1 for none. below: batches below it may be trained.
    """

    def __init__(self, step: int, at_least: int = 1, retry_s: float = RETRY_S) -> None:
        self.trained_below = step
        self.again = self.never = 0
        self.granted = 0  # local steps
        self.until, self.below = -1, step
        self._at_least, self._retry_s = at_least, retry_s
        self._runs: deque[_Run] = deque()
        self._refused: deque[tuple[int, int, bool]] = deque()  # local steps from, up to, for what they held
        self._told = self._heard = 0  # local steps that were said to be trained, and of which the shard has heard
        self._quits = False
        self._number = self._pushed = self._answered = 0
        self._waits: Wish | None = None
        self._sent_at = self._retry_at = -math.inf
        self._again = False
        self._step_s = 0.0
        self._since: float | None = None  # when the step that is computed now could begin

    # the script

    def grant(self, until: int) -> None:
        """The script lets batches below `until` be trained."""
        self.below = max(self.below, until)

    def quit(self, *, through: bool = False) -> None:
        """Nothing is trained here any more; what it holds is somebody else's. What was said before counts. through: the steps
        that are granted are done all the same."""
        self._quits, self._again = True, True
        self.granted *= through

    @property
    def has_quit(self) -> bool:
        return self._quits

    # steps

    def batch(self, local: int) -> int:
        """The global step that a local one trains."""
        for run in reversed(self._runs):
            if run.first <= local:
                return run.start + local - run.first
        raise IndexError(f"local step {local} is not granted")

    def begins(self, now: float) -> None:
        """A step may begin that nothing but computing holds up."""
        if self._since is None:
            self._since = now

    def ended(self, now: float) -> None:
        """A step has ended."""
        if self._since is not None:
            took = max(1e-6, now - self._since)
            self._step_s = took if not self._step_s else self._step_s + FOLLOWS * (took - self._step_s)
        self._since = now

    def refused(self, first: int, stop: int, bad: bool) -> None:
        """No shard has taken these local steps: they came too late, or are bad."""
        self._refused.append((first, stop, bad))

    # what is said

    def next_wish(self, now: float, begun: int, done: int, pushed: int, *, idle: bool, able: bool) -> Wish | None:
        """What to say now, if anything. begun: local steps that are; done: those that shards have decided, in `pushed` pushes.

        idle: nothing is left to train or to push. able: whether more could be trained if it were granted.
        """
        if idle:
            self._since = None
        done = self._told if self._quits else done
        wanted = self._wanted(begun) if able else 0
        until = max(0, self.until) if wanted or idle else 0
        if not self._is_due(now, wanted, until, done > self._told, idle):
            return None
        self._number += 1
        if not self._quits:
            self._pushed = pushed
        *said, self._told = self._between(self._heard, max(done, self._told))
        about = self._pushed, wanted, self.below, until, self._answered, self._quits
        wish = Wish(self._number, said[0], *about, *said[1:])
        self._waits, self._sent_at, self._retry_at, self._again = wish, now, now + self._retry_s, False
        return wish

    def leased(self, number: int, ranges: Iterable[Range], trained_below: int, again: int, never: int = 0) -> None:
        """The answer to a wish. One to an older wish says nothing that the newest will not say."""
        if self._waits is None or number != self._waits.number:
            return
        self._waits, self._heard, self._answered = None, self._told, number
        self.trained_below = max(self.trained_below, trained_below)
        self.again, self.never = again, never
        while self._runs and self._runs[0].end <= self._heard:
            self._runs.popleft()
        while self._refused and self._refused[0][1] <= self._heard:
            self._refused.popleft()
        if self._quits:
            return
        for start, stop in ranges:
            if not any(run.left(self._heard) < stop and start < run.stop for run in self._runs):
                self._runs.append(_Run(self.granted, start, stop))
                self.granted += stop - start

    def say_again(self) -> None:
        """Another process may deal out the data now, or what was said was lost."""
        self._again |= self._waits is not None

    def get_timer(self) -> float | None:
        """When `next_wish` may have something although nothing has happened."""
        return self._retry_at if self._waits is not None else None

    # inside

    def _wanted(self, begun: int) -> int:
        """How many batches to ask for, with so many begun."""
        if self._quits or self.below <= self.trained_below:
            return 0
        left = self.granted - begun
        if left >= (max(1, math.ceil(AHEAD_S / self._step_s)) if self._step_s else 1):
            return 0
        return max(self._at_least, round(RANGE_S / self._step_s) if self._step_s else 1)

    def _is_due(self, now: float, wanted: int, until: int, news: bool, idle: bool) -> bool:
        if self._again:
            return True
        tells = news and (idle or now >= self._sent_at + TELL_S)
        if self._waits is None:
            polls = idle and until > self.trained_below
            return tells or wanted > 0 or polls
        said = self._waits
        more = wanted > 0 and (not said.batches or self.below > said.below)
        return tells or more or (idle and until != said.until) or now >= self._retry_at

    def _between(self, first: int, last: int) -> tuple[tuple[Range, ...], tuple[Range, ...], tuple[Range, ...], int]:
        """Of local steps [first, last) the batches that were trained, came back, and were bad; and how far that goes, since a
        message has no more ranges than LEASES_MAX of each."""
        found: tuple[list[Range], list[Range], list[Range]] = [], [], []
        at = first
        for start, stop, kind in self._kinds(first, last):
            for run in self._runs:
                begin, end = max(start, run.first), min(stop, run.end)
                if begin < end:
                    if len(found[kind]) == LEASES_MAX:
                        return *map(tuple, found), at  # type: ignore[return-value]
                    found[kind].append((run.start + begin - run.first, run.start + end - run.first))
                    at = end
        return *map(tuple, found), last  # type: ignore[return-value]

    def _kinds(self, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        """Local steps as runs of one kind: 0 trained, 1 came back, 2 bad."""
        for start, stop, bad in self._refused:
            if first < stop and start < last:
                if first < start:
                    yield first, start, 0
                yield max(first, start), min(stop, last), 1 + bad
                first = stop
        if first < last:
            yield first, last, 0


class Steps(Protocol):
    """Which batches a worker's steps train, as far as that is known: `granted` of them."""

    granted: int
    trained_below: int

    def batch(self, local: int, /) -> int: ...


@dataclass(frozen=True, slots=True)
class LeasedAllotment(Allotment):
    """A worker's share of the steps that is dealt out while they are done. Local steps are those of this start alone."""

    leasing: Steps | None = None

    def local(self, until: int) -> int:
        """How many steps were granted, whichever they are."""
        return self.leasing.granted if self.leasing is not None else 0

    def batch(self, local: int) -> int:
        return self.leasing.batch(local) if self.leasing is not None else local

    def reached(self, local: int) -> int:
        return self.leasing.trained_below if self.leasing is not None else local
