"""What workers wish for of the data, at the shard that deals it out: which wish has its place in the log next, and which is
answered. Pure.

A wish changes the table once, as an entry of the log (`decisions.Grant`). Where there was nothing for it, it waits here, and is
given another entry when batches are free again; or it is answered without any when all are trained that its worker waits for. At
most one entry per worker is on its way, and only a worker's newest wish counts, so a worker that talks nonsense fills nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from p2pnn.ps.decisions import Grant
from p2pnn.ps.messages import Worker
from p2pnn.ps.state import State
from p2pnn.replication.leases import LeaseTable, Range, Wish
from p2pnn.wire.fields import LEASES_MAX


@dataclass(frozen=True, slots=True)
class Leased:
    """To a worker's wish. ranges: all that it holds, in the order in which it trains them. trained_below: everything below was
    trained by somebody, or never will be. again, never: batches of the epoch that it trains which were trained more often than
    once, and which were given up."""

    worker: Worker
    number: int
    ranges: tuple[Range, ...]
    trained_below: int
    again: int
    never: int = 0


class Granting:
    """The primary's. Without leases in the state nothing is ever said."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._waiting: dict[Worker, Wish] = {}
        self._ordered: set[Worker] = set()

    def wish(self, worker: Worker, wish: Wish) -> None:
        """What a worker says, maybe not for the first time. An older word of it is passed over."""
        table, state = self._state.leases, self._state
        if table is None or worker not in state.roster or worker in state.gone:
            return
        newest = self._waiting.get(worker)
        if wish.number >= max(table.number(state.roster.number(worker)), newest.number if newest is not None else 1):
            self._waiting[worker] = wish

    def next(self) -> Grant | None:
        """The next entry; say when it is `ordered`."""
        table = self._state.leases
        for worker, wish in self._waiting.items():
            if table is None or worker in self._ordered:
                continue
            number = self._state.roster.number(worker)
            is_new = table.number(number) < wish.number
            if is_new or (not self._is_answered(table, number, wish) and self._may_get(table, number, worker, wish)):
                return Grant(number, wish)
        return None

    def ordered(self, grant: Grant) -> None:
        """It is on its way into the log."""
        if (worker := self._state.roster.worker(grant.worker)) is not None:
            self._ordered.add(worker)

    def applied(self, grant: Grant) -> None:
        """It has changed the table."""
        if (worker := self._state.roster.worker(grant.worker)) is not None:
            self._ordered.discard(worker)

    def next_leased(self) -> Leased | None:
        """Something to send."""
        state, table = self._state, self._state.leases
        for worker, wish in self._waiting.items():
            if table is None or worker in self._ordered:
                continue
            number = state.roster.number(worker)
            if table.number(number) == wish.number and self._is_answered(table, number, wish):
                del self._waiting[worker]
                epoch = table.epoch_of(max(0, wish.below - 1))
                told = table.coverage(epoch).more, table.given_up(epoch)
                return Leased(worker, wish.number, table.held(number), table.trained_below, *told)
        return None

    def drop(self, worker: Worker) -> None:
        """It is gone."""
        self._waiting.pop(worker, None)
        self._ordered.discard(worker)

    def clear(self) -> None:
        """Whoever wishes says it to another process now."""
        self._waiting.clear()
        self._ordered.clear()

    @property
    def is_deserted(self) -> bool:
        """Whether nobody is left who would train what is to be trained."""
        state, table = self._state, self._state.leases
        return table is not None and all(table.has_quit(state.roster.number(worker)) for worker in state.training)

    def _is_answered(self, table: LeaseTable, number: int, wish: Wish) -> bool:
        return table.has_news(number, wish.heard) or table.trained_below >= wish.until

    def _may_get(self, table: LeaseTable, number: int, worker: Worker, wish: Wish) -> bool:
        is_able = wish.batches > 0 and worker not in self._state.guard.set_aside and not table.has_quit(number)
        return (
            is_able
            and len(table.held(number)) < LEASES_MAX
            and table.has_free(wish.below, number, self._state.trainers)
        )
