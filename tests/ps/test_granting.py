"""Wishes at the shard that deals out the data: which has an entry next, which is answered, which waits."""

from __future__ import annotations

import numpy as np

from p2pnn.job.spec import Optimizer
from p2pnn.ps.consistency import Settings
from p2pnn.ps.decisions import Grant, Leave, Take
from p2pnn.ps.granting import Granting, Leased
from p2pnn.ps.state import State
from p2pnn.replication.leases import LeaseTable, Wish
from tests.ps.test_state import RANGE, SIZE, WORKERS, A, B, C, Slotted


class Dealer:
    """A shard of one process, as far as it deals out the data."""

    def __init__(self, batches: int = 8, epochs: int = 2) -> None:
        self.slots = Slotted()
        self.state = State(
            RANGE,
            np.zeros(SIZE, np.float32),
            Optimizer("sgd", 1.0, schedule="constant"),
            Settings(),
            WORKERS,
            slot=self.slots.slot,
            leases=LeaseTable(batches, epochs),
        )
        self.granting = Granting(self.state)
        self.entries = 0

    def work(self) -> list[Leased]:
        """Whatever can be ordered is, and applied; what is said then."""
        while (grant := self.granting.next()) is not None:
            self.granting.ordered(grant)
            self.entries += 1
            self.state.apply(None, 0, grant, 0.0)
            self.granting.applied(grant)
        found = []
        while (leased := self.granting.next_leased()) is not None:
            found.append(leased)
        return found

    def says(self, worker: object, wish: Wish) -> list[Leased]:
        assert worker in WORKERS
        self.granting.wish(worker, wish)  # type: ignore[arg-type]
        return self.work()

    def pushes(self, worker: object, sequence: int) -> None:
        assert worker in WORKERS
        self.slots.put(worker, sequence, 0.0)  # type: ignore[arg-type]
        self.state.apply(worker, sequence, Take(self.state.versions.number, 0), 0.0)  # type: ignore[arg-type]


def test_a_wish_is_answered_with_what_its_worker_holds() -> None:
    dealer = Dealer()
    assert dealer.says(A, Wish(1, (), 0, 2, 8, 8)) == [Leased(A, 1, ((0, 2),), 0, 0)]
    assert dealer.says(B, Wish(1, (), 0, 2, 8, 8)) == [Leased(B, 1, ((2, 3),), 0, 0)]
    told = dealer.says(A, Wish(2, ((0, 2),), 2, 1, 8, 8, heard=1))
    assert told == [Leased(A, 2, ((3, 4),), 2, 0)]
    assert dealer.says(A, Wish(2, ((0, 2),), 2, 1, 8, 8, heard=1)) == told, "what is said twice is answered twice"
    assert dealer.says(A, Wish(1, (), 0, 2, 8, 8)) == [], "an old one"
    assert dealer.state.leases is not None
    assert dealer.state.leases.coverage(0).never == 6


def test_a_wish_without_batches_waits_until_some_are_free_or_all_are_trained() -> None:
    dealer = Dealer(batches=2)
    dealer.says(A, Wish(1, (), 0, 2, 2, 2))
    assert dealer.says(B, Wish(1, (), 0, 2, 2, 2)) == [Leased(B, 1, ((1, 2),), 0, 0)]
    before = dealer.entries
    assert dealer.says(C, Wish(1, (), 0, 2, 2, 2)) == []
    assert dealer.work() == []
    assert dealer.entries == before + 1, "it has one entry, not one at every turn"
    dealer.state.apply(None, 0, Leave(1), 0.0)
    dealer.granting.drop(A)
    assert dealer.work() == [Leased(C, 1, ((0, 1),), 0, 0)]
    assert dealer.says(A, Wish(2, (), 0, 2, 2, 2)) == [], "who is gone gets nothing"
    assert dealer.says(B, Wish(2, ((1, 2),), 1, 2, 2, 2, heard=1)) == []
    told = dealer.says(C, Wish(2, ((0, 1),), 1, 0, 2, 0, heard=1))
    assert sorted(told, key=lambda one: one.worker) == [Leased(B, 2, (), 2, 0), Leased(C, 2, (), 2, 0)]


def test_what_was_granted_to_a_wish_that_another_took_the_place_of_is_said() -> None:
    """The answer was never said, and there is nothing more: yet the worker holds something."""
    dealer = Dealer(batches=1, epochs=1)
    dealer.granting.wish(A, Wish(1, (), 0, 2, 1, 1))
    grant = dealer.granting.next()
    assert grant == Grant(1, Wish(1, (), 0, 2, 1, 1))
    dealer.granting.ordered(grant)
    assert dealer.granting.next() is None, "one of a worker at a time"
    dealer.granting.wish(A, Wish(2, (), 0, 2, 1, 1))
    dealer.state.apply(None, 0, grant, 0.0)
    dealer.granting.applied(grant)
    assert dealer.work() == [Leased(A, 2, ((0, 1),), 0, 0)]


def test_another_process_answers_who_says_it_again() -> None:
    dealer = Dealer()
    dealer.granting.wish(A, Wish(1, (), 0, 2, 8, 8))
    dealer.granting.clear()
    assert dealer.work() == []
    assert dealer.says(A, Wish(1, (), 0, 2, 8, 8)) == [Leased(A, 1, ((0, 2),), 0, 0)]


def test_who_quits_gets_nothing_and_what_it_had_is_trained_by_others() -> None:
    dealer = Dealer(batches=4, epochs=1)
    dealer.says(A, Wish(1, (), 0, 2, 4, 4))
    dealer.pushes(A, 1)
    assert dealer.says(A, Wish(2, (), 0, 0, 4, 4, quits=True)) == []
    assert dealer.says(A, Wish(3, (), 0, 2, 4, 4)) == []
    assert dealer.says(B, Wish(1, (), 0, 2, 4, 4)) == [Leased(B, 1, ((0, 1),), 0, 0)]
    assert not dealer.granting.is_deserted
    told = dealer.says(B, Wish(2, ((0, 1),), 1, 0, 4, 0, heard=1))
    assert told == [Leased(B, 2, (), 1, 1)], "it was pushed by A as well"
    for worker in (B, C):
        dealer.says(worker, Wish(3, (), 1, 0, 4, 4, quits=True))
    assert dealer.granting.is_deserted


def test_a_shard_that_deals_out_nothing_says_nothing() -> None:
    dealer = Dealer()
    dealer.state.leases = None
    assert dealer.says(A, Wish(1, (), 0, 2, 8, 8)) == []
    assert not dealer.granting.is_deserted
