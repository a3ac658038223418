"""Which worker has which batches of the data: a small table beside a shard's parameters, changed by the same log.

Batches are counted through all epochs, as the job's steps are. A worker *wishes* for some; it is granted a *range* of those that
are free, trains it, and says so with a later wish. What a lost worker held is free again, so every batch is trained as long as a
worker is left. Towards the end of what may be granted ranges get smaller, so that workers end together (guided self-scheduling:
Polychronopoulos and Kuck 1987).

Wishes of a worker are numbered; each counts once. What a worker holds is read from the table, not from the wish that gave it, so
an answer that was lost, or came from another process, costs nothing.

A batch whose push was refused was not trained, and is free again: for coming too late, as often as that is so, since others came
in its place; for what it holds (`ps.messages.BAD`) once, for another worker, where there is another. Refused for
that again it is *given up*: its data do not do, and waiting for it nobody would end.

*Coverage*: a worker that is lost may have trained more than it could say. The shard knows how many of its pushes it has decided
since its last word; those batches were trained, are trained again (another shard may lack the push), and count as trained more
often than once. That is exact where each push holds one batch, else at most so many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from p2pnn.errors import RemoteProtocolError
from p2pnn.wire.fields import LEASES_MAX as LEASES_MAX
from p2pnn.wire.fields import LeaseRanges
from p2pnn.wire.messages import CloseReason

FORMAT: Final = 1

SHARE: Final = 2
"""A grant is at most the free batches divided by this and by the workers: the last ones are small."""

SMALLEST: Final = 8
"""But at least this part of what was wished for: what a worker asks for takes it long enough to ask again."""

REFUSED_MAX: Final = 64
"""Refused pushes that are kept per worker until it has told of them; of more, the oldest count as taken if it is lost."""

MORE: Final = 2
"""How often is not counted further."""

Range = tuple[int, int]
"""Batches from the first number up to the second, which is not included."""

_Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class Wish(msgspec.Struct, frozen=True, array_like=True):
    """What a worker says. number: rises by one with each; the newest counts. done: what it has trained since the last one, each
    from the first that the table may not know of; pushed: its last push that holds any of that, or of what it said before.

    batches: how many more it wants, of those below `below`. until: when all below this are trained it is answered anyhow. heard:
    the last wish whose answer it has. quits: it trains nothing any more (`LeaseTable.lost`). back: what it has trained in vain,
    since its pushes came too late; bad: since they were refused for what they held.
    """

    number: _Count
    done: LeaseRanges = ()
    pushed: _Count = 0
    batches: _Count = 0
    below: _Count = 0
    until: _Count = 0
    heard: _Count = 0
    quits: bool = False
    back: LeaseRanges = ()
    bad: LeaseRanges = ()


class Coverage(msgspec.Struct, frozen=True):
    """Of one epoch: batches that were trained once, more often, and not (yet)."""

    epoch: int
    once: int
    more: int
    never: int


class _Stretch(msgspec.Struct, array_like=True):
    """Batches up to `stop`, from where the one before ends. trained: how often, up to MORE. due: it is to be (again). holder: who
    has them, by grant number `grant`; 0 for nobody. refused: whose pushes of them were, for what they held; 0 for nobody's."""

    stop: _Count
    trained: Annotated[int, Meta(ge=0, le=MORE)] = 0
    due: bool = True
    holder: _Count = 0
    grant: _Count = 0
    refused: _Count = 0

    def is_like(self, other: _Stretch) -> bool:
        mine, its = (self.trained, self.due, self.refused, 0), (other.trained, other.due, other.refused, other.holder)
        return not self.holder and mine == its

    def is_free(self, worker: int, among: int) -> bool:
        """Whether a worker may have them, of so many."""
        return self.due and not self.holder and (self.refused != worker or among <= 1)


class _Worker(msgspec.Struct, array_like=True):
    """number: of its last wish; given: whether that was granted anything. pushed: as it said. quits: it gets nothing more.
    refused: its pushes behind that which were."""

    number: _Count = 0
    given: bool = False
    pushed: _Count = 0
    quits: bool = False
    refused: Annotated[list[_Count], Meta(max_length=REFUSED_MAX)] = []


class Table(msgspec.Struct, array_like=True):
    """Everything in a table, as it travels. start: where the first epoch begins that is not over; more: epoch → batches trained
    more often than once, never: and those given up, of those before it."""

    format: Annotated[int, Meta(ge=1, le=FORMAT)]
    batches: Annotated[int, Meta(ge=1)]
    epochs: Annotated[int, Meta(ge=1)]
    start: _Count
    stretches: list[_Stretch]
    workers: dict[int, _Worker]
    more: dict[int, int]
    never: dict[int, int] = {}


class LeaseTable:
    """batches: of an epoch. trained: of all epochs, those below it are from before; again, never: so many of them, of the epoch
    that they end in, were trained more often than once, and given up. Raises ValueError for less than none, or no batch at all.

    Workers are numbers from 1.
    """

    def __init__(self, batches: int, epochs: int, trained: int = 0, again: int = 0, never: int = 0) -> None:
        if batches < 1 or epochs < 1 or min(trained, again, never) < 0:
            raise ValueError(
                f"{epochs} epochs of {batches} batches, {trained} of them trained: there must be one of each"
            )
        total = batches * epochs
        trained = min(trained, total)
        start = trained // batches * batches
        more = min(start + again, trained)  # which of them does not matter
        bad = min(more + never, trained)
        stretches = [_Stretch(more, MORE, False)] if more > start else []
        stretches += [_Stretch(bad, 0, False)] if bad > more else []
        stretches += [_Stretch(trained, 1, False)] if trained > bad else []
        stretches += [_Stretch(total)] if total > trained else []
        self._table = Table(FORMAT, batches, epochs, start, stretches, {}, {})

    # what changes it

    def wish(self, worker: int, wish: Wish, among: int) -> None:
        """A worker's wish, once; the same again gets what there was nothing of before. among: workers that train."""
        known = self._table.workers.setdefault(worker, _Worker())
        if wish.number < known.number:
            return
        if wish.number > known.number:
            known.number, known.given, known.pushed = wish.number, False, max(known.pushed, wish.pushed)
            known.refused = [push for push in known.refused if push > known.pushed]
            said = [(*each, self._trained) for each in wish.done]
            said += [(*each, self._came_back) for each in wish.back]
            said += [(*each, self._was_bad) for each in wish.bad]
            for start, stop, does in sorted(said, key=lambda each: each[:2]):
                self._each(worker, start, stop, does)
            self._close_epochs()
        able = not wish.quits and not known.quits and len(self.held(worker)) < LEASES_MAX
        if wish.batches and able and not known.given:
            known.given = self._grant(worker, wish, max(1, among))

    def lost(self, worker: int, pushed: int, each: int = 1) -> None:
        """The worker is gone, or quits. pushed: its last push that was decided; each: how many batches one holds, at most."""
        known = self._table.workers.setdefault(worker, _Worker())
        known.quits = True
        untold = range(known.pushed + 1, pushed + 1)
        held = iter([batch for run in self.held(worker) for batch in range(*run)][: each * len(untold)])
        for push in untold:
            for batch in islice(held, each):
                if push not in known.refused:
                    self._change(batch, batch + 1, trained=1)
        self._free(worker)

    def refused(self, worker: int, push: int) -> None:
        """A push of the worker was refused, so that nothing that it holds was trained with it."""
        known = self._table.workers.setdefault(worker, _Worker())
        if push > known.pushed:
            known.refused = [*known.refused, push][-REFUSED_MAX:]

    # what it says

    def number(self, worker: int) -> int:
        """Of the worker's last wish; 0 before."""
        known = self._table.workers.get(worker)
        return known.number if known is not None else 0

    def has_news(self, worker: int, heard: int) -> bool:
        """Whether it was granted anything that the answer to its wish number `heard` could not say."""
        return any(s.holder == worker and s.grant > heard for s in self._table.stretches)

    def has_quit(self, worker: int) -> bool:
        """Whether it gets nothing more: it said so, or is lost."""
        known = self._table.workers.get(worker)
        return known is not None and known.quits

    def held(self, worker: int) -> tuple[Range, ...]:
        """What the worker has, in the order in which it was granted, which is that in which it trains it."""
        found = [(s.grant, start, s.stop) for start, s in self._stretches() if s.holder == worker and worker]
        return tuple((start, stop) for _, start, stop in sorted(found))

    def has_free(self, below: int, worker: int = 0, among: int = 1) -> bool:
        """Whether a wish of a worker for batches below this one would be granted any. among: workers that train."""
        return any(s.is_free(worker, among) and start < below for start, s in self._stretches())

    @property
    def trained_below(self) -> int:
        """The first batch that is to be trained."""
        return next((start for start, s in self._stretches() if s.due), self._table.batches * self._table.epochs)

    def epoch_of(self, batch: int) -> int:
        """The epoch that a batch belongs to."""
        return batch // self._table.batches

    def coverage(self, epoch: int) -> Coverage:
        """Of an epoch, counted from 0."""
        table = self._table
        first, last = epoch * table.batches, (epoch + 1) * table.batches
        if last <= table.start:
            more, never = table.more.get(epoch, 0), table.never.get(epoch, 0)
            return Coverage(epoch, table.batches - more - never, more, never)
        counts = [0] * (MORE + 1)
        for start, stretch in self._stretches():
            counts[stretch.trained] += max(0, min(stretch.stop, last) - max(start, first))
        return Coverage(epoch, counts[1], counts[2], counts[0])

    def given_up(self, epoch: int) -> int:
        """Batches of an epoch that nobody is to train any more, though nobody has."""
        first, last = epoch * self._table.batches, (epoch + 1) * self._table.batches
        now = sum(
            max(0, min(stretch.stop, last) - max(start, first))
            for start, stretch in self._stretches()
            if not (stretch.due or stretch.trained)
        )
        return now + self._table.never.get(epoch, 0)

    # how it travels

    @property
    def table(self) -> Table:
        """What is in it, to be encoded before it changes."""
        return self._table

    def load(self, table: Table) -> None:
        """Become another one of the same job. Raises RemoteProtocolError for what none of it can be, and changes nothing then."""
        mine = self._table
        stops = [stretch.stop for stretch in table.stretches]
        total = mine.batches * mine.epochs
        if (
            (table.batches, table.epochs) != (mine.batches, mine.epochs)
            or stops != sorted(set(stops))
            or (stops or [table.start])[-1] != total
            or (stops and stops[0] <= table.start)
        ):
            raise RemoteProtocolError(CloseReason.MALFORMED, "this is no table of leases of the job")
        self._table = table

    # inside

    def _stretches(self) -> Iterator[tuple[int, _Stretch]]:
        """With the batch that each begins at."""
        start = self._table.start
        for stretch in self._table.stretches:
            yield start, stretch
            start = stretch.stop

    def _each(self, worker: int, start: int, stop: int, does: Callable[[int, int, int], None]) -> None:
        """Of what the worker holds, the beginnings of ranges: what was said before is done with already, and anything else, which
        is nonsense, could cut the table into pieces."""
        for first, last in self.held(worker):
            if start <= first < stop:
                does(worker, first, min(last, stop))

    def _trained(self, worker: int, first: int, last: int) -> None:
        self._change(first, last, trained=1, due=False, holder=0)

    def _came_back(self, worker: int, first: int, last: int) -> None:
        self._change(first, last, holder=0)

    def _was_bad(self, worker: int, first: int, last: int) -> None:
        stretch = next(s for start, s in self._stretches() if start <= first < s.stop)
        self._change(first, last, due=not stretch.refused, holder=0, refused=stretch.refused or worker)

    def _free(self, worker: int) -> None:
        for start, stop in self.held(worker):
            self._change(start, stop, holder=0)

    def _grant(self, worker: int, wish: Wish, among: int) -> bool:
        free = [
            (start, min(s.stop, wish.below))
            for start, s in self._stretches()
            if s.is_free(worker, among) and start < wish.below
        ]
        if not free:
            return False
        share = -(-sum(stop - start for start, stop in free) // (SHARE * among))
        start, stop = free[0]
        count = min(wish.batches, max(share, wish.batches // SMALLEST, 1))
        self._change(start, min(stop, start + count), holder=worker, grant=wish.number)
        return True

    def _change(
        self,
        first: int,
        last: int,
        *,
        trained: int = 0,
        due: bool = True,
        holder: int | None = None,
        grant: int = 0,
        refused: int = 0,
    ) -> None:
        """Change the batches [first, last). Neighbours that are alike become one."""
        after: list[_Stretch] = []
        for start, stretch in list(self._stretches()):
            cuts = (start, *(at for at in (first, last) if start < at < stretch.stop), stretch.stop)
            for begin, end in pairwise(cuts):
                part = _Stretch(end, stretch.trained, stretch.due, stretch.holder, stretch.grant, stretch.refused)
                if first <= begin and end <= last:
                    part.trained = min(MORE, part.trained + trained)
                    part.due = part.due and due
                    part.refused = refused or part.refused
                    if holder is not None:
                        part.holder, part.grant = holder, grant if holder else 0
                if after and part.is_like(after[-1]):
                    after[-1].stop = end
                else:
                    after.append(part)
        self._table.stretches = after

    def _close_epochs(self) -> None:
        """Of an epoch whose batches are all trained only the coverage is kept."""
        table = self._table
        while table.stretches and self.trained_below >= table.start + table.batches:
            epoch, stop = table.start // table.batches, table.start + table.batches
            if more := self.coverage(epoch).more:
                table.more[epoch] = more
            if never := self.given_up(epoch):
                table.never = table.never | {epoch: never}
            table.stretches = [stretch for stretch in table.stretches if stretch.stop > stop]
            table.start = stop
