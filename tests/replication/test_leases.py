"""The table of data ranges: every batch is trained, a lost worker's go to another, and the coverage is what happened."""

from __future__ import annotations

import random
from collections import Counter

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnn.errors import RemoteProtocolError
from p2pnn.replication import leases
from p2pnn.replication.leases import Coverage, LeaseTable, Range, Table, Wish
from p2pnn.wire.fields import LEASES_MAX


class Worker:
    """One that keeps count of its wishes."""

    def __init__(self, table: LeaseTable, number: int, among: int = 1) -> None:
        self.table, self.number, self.among = table, number, among
        self.said = self.pushed = 0

    def wish(self, batches: int, *done: Range, below: int = 10**6, pushed: int = 0, again: bool = False) -> None:
        self.said += not again
        self.pushed += pushed or sum(stop - start for start, stop in done)
        self.table.wish(self.number, Wish(self.said, done, self.pushed, batches, below), self.among)

    @property
    def held(self) -> tuple[Range, ...]:
        return self.table.held(self.number)


def test_ranges_are_granted_in_order_and_only_below_what_may_be_trained() -> None:
    table = LeaseTable(10, 2)
    a, b = Worker(table, 1), Worker(table, 2)
    a.wish(4, below=6)
    b.wish(4, below=6)
    assert (a.held, b.held) == (((0, 3),), ((3, 5),)), "half of what is free, so that they end together"
    b.wish(4, below=6)
    a.wish(4, below=6)
    assert (b.held, a.held) == (((3, 5), (5, 6)), ((0, 3),))
    assert not table.has_news(1, 2)
    assert not table.has_free(6)
    a.wish(4, (0, 2), below=6)
    assert (a.held, table.trained_below) == (((2, 3),), 2)
    a.wish(0, (0, 3))
    assert (a.held, table.trained_below) == ((), 3), "of what was said before nothing counts twice"
    b.wish(0, (3, 6))
    assert (table.trained_below, table.coverage(0)) == (6, Coverage(0, 6, 0, 4))


def test_what_was_trained_again_before_the_run_moved_is_told_of_the_epoch_too() -> None:
    table = LeaseTable(10, 3, 14, 2)
    assert (table.trained_below, table.coverage(1)) == (14, Coverage(1, 2, 2, 6))
    a, b = Worker(table, 1), Worker(table, 2)
    a.wish(6)
    table.lost(1, 1)
    while table.has_free(20):
        b.wish(6, *b.held, below=20)
    b.wish(0, *b.held)
    assert table.coverage(1) == Coverage(1, 7, 3, 0)
    assert LeaseTable(10, 3, 20, 2).coverage(1).more == 0, "of an epoch that is over nothing is known any more"
    assert LeaseTable(10, 3, 12, 9).coverage(1) == Coverage(1, 0, 2, 8)


def test_the_last_ranges_are_small_but_not_for_the_asking() -> None:
    table = LeaseTable(1000, 1)
    workers = [Worker(table, number, 3) for number in (1, 2, 3)]
    sizes = []
    while table.has_free(1000):
        worker = workers[len(sizes) % 3]
        worker.wish(100, *worker.held)
        sizes.append(sum(stop - start for start, stop in worker.held))
    assert sizes[:3] == [100, 100, 100]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-3:-1] == [12, 12], "an eighth of what was asked for"


def test_a_wish_counts_once_and_what_is_held_is_in_every_answer() -> None:
    table = LeaseTable(100, 1)
    a = Worker(table, 1)
    a.wish(4)
    a.wish(4, again=True)
    assert a.held == ((0, 4),)
    table.wish(1, Wish(0, (), 0, 4, 100), 1)
    assert a.held == ((0, 4),), "an old one"
    a.wish(4)
    assert a.held == ((0, 4), (4, 8))
    a.wish(0, (0, 4))
    a.wish(0, again=True)
    assert table.coverage(0) == Coverage(0, 4, 0, 96)


def test_what_there_was_nothing_for_is_granted_when_there_is() -> None:
    table = LeaseTable(4, 1)
    a, b = Worker(table, 1), Worker(table, 2)
    a.wish(4)
    a.wish(4)
    a.wish(4)
    b.wish(4)
    assert a.held == ((0, 2), (2, 3), (3, 4))
    assert not table.has_news(2, 0)
    table.lost(1, 0)
    b.wish(4, again=True)
    assert b.held == ((0, 2),)
    assert table.has_news(2, 0)


def test_what_a_lost_worker_trained_and_did_not_say_is_trained_again_and_told() -> None:
    table = LeaseTable(10, 1)
    a, b = Worker(table, 1), Worker(table, 2)
    a.wish(4, below=8)
    b.wish(4)
    a.wish(4, (0, 1))
    assert (a.held, b.held) == (((1, 4), (7, 9)), ((4, 7),))
    table.lost(1, 5)
    assert a.held == ()
    assert table.coverage(0) == Coverage(0, 5, 0, 5), "four pushes after its last word: 1 to 3, and 7"
    a.wish(9)
    assert a.held == (), "it is gone"
    assert table.has_quit(1)
    for _ in range(9):
        b.wish(9, *b.held)
    assert table.coverage(0) == Coverage(0, 6, 4, 0)
    assert table.trained_below == 10


def test_what_came_too_late_is_free_again_for_whoever_asks_first() -> None:
    table = LeaseTable(6, 1)
    a, b = Worker(table, 1), Worker(table, 2)
    a.wish(3)
    table.wish(1, Wish(2, ((0, 1), (2, 3)), back=((1, 2),)), 2)
    assert (table.trained_below, table.coverage(0)) == (1, Coverage(0, 2, 0, 4))
    b.wish(1)
    assert b.held == ((1, 2),)
    table.wish(2, Wish(2, back=((1, 2),), batches=1, below=6), 2)
    assert b.held == ((1, 2),), "and again"
    table.wish(2, Wish(3, ((1, 2),), back=((1, 2),), batches=9, below=6), 2)
    assert table.coverage(0) == Coverage(0, 3, 0, 3)
    assert table.given_up(0) == 0


def test_what_is_refused_for_what_it_holds_is_tried_by_another_worker_and_then_given_up() -> None:
    table = LeaseTable(4, 2)
    a, b = Worker(table, 1, 2), Worker(table, 2, 2)
    a.wish(1)
    table.wish(1, Wish(2, bad=((0, 1),), batches=1, below=4), 2)
    assert a.held == ((1, 2),), "it is for another one"
    assert (table.has_free(1, 1, 2), table.has_free(1, 2, 2), table.has_free(1, 1, 1)) == (False, True, True)
    b.wish(1)
    assert b.held == ((0, 1),)
    assert (table.trained_below, table.given_up(0)) == (0, 0)
    table.wish(2, Wish(2, bad=((0, 1),)), 2)
    assert (table.trained_below, table.given_up(0)) == (1, 1)
    table.wish(1, Wish(3, ((1, 2),), batches=9, below=4), 2)
    for number in range(4, 8):
        table.wish(1, Wish(number, a.held, batches=9, below=4), 1)
    assert table.trained_below == 4
    assert (table.coverage(0), table.given_up(0), table.given_up(1)) == (Coverage(0, 3, 0, 1), 1, 0)
    copy = LeaseTable(4, 2)
    copy.load(msgspec.msgpack.decode(msgspec.msgpack.encode(table.table), type=Table))
    assert copy.coverage(0) == table.coverage(0)


def test_who_trains_alone_tries_again_itself() -> None:
    table = LeaseTable(2, 1)
    table.wish(1, Wish(1, batches=1, below=2), 1)
    table.wish(1, Wish(2, bad=((0, 1),), batches=1, below=2), 1)
    assert table.held(1) == ((0, 1),)
    table.wish(1, Wish(3, bad=((0, 1),), batches=1, below=2), 1)
    assert (table.held(1), table.given_up(0)) == (((1, 2),), 1)


def test_pushes_of_a_lost_worker_that_were_refused_trained_nothing() -> None:
    table = LeaseTable(10, 1)
    a = Worker(table, 1)
    a.wish(5)
    for push in (2, 3):
        table.refused(1, push)
    table.lost(1, 4)
    assert table.coverage(0) == Coverage(0, 2, 0, 8), "its first and its last"
    table.refused(2, 1)
    table.wish(2, Wish(1, (), 1, 3, 10), 1)
    table.lost(2, 2)
    assert table.coverage(0) == Coverage(0, 1, 1, 8), "what it told of is forgotten"


def test_pushes_of_several_batches_count_as_many_at_most() -> None:
    table = LeaseTable(10, 1)
    a = Worker(table, 1)
    a.wish(5)
    table.lost(1, 1, 3)
    assert table.coverage(0) == Coverage(0, 3, 0, 7)


def test_of_epochs_that_are_over_the_coverage_is_kept() -> None:
    table = LeaseTable(4, 3)
    a, b = Worker(table, 1), Worker(table, 2)
    a.wish(2, below=4)
    table.lost(1, 1)
    while table.trained_below < 6:
        b.wish(1, *b.held, below=6)
    assert [table.coverage(epoch) for epoch in range(3)] == [
        Coverage(0, 3, 1, 0),
        Coverage(1, 2, 0, 2),
        Coverage(2, 0, 0, 4),
    ]
    assert len(table.table.stretches) <= 2
    assert table.epoch_of(7) == 1


def test_a_run_that_goes_on_has_trained_what_is_before() -> None:
    table = LeaseTable(10, 3, 14)
    assert table.trained_below == 14
    assert [table.coverage(epoch) for epoch in range(3)] == [
        Coverage(0, 10, 0, 0),
        Coverage(1, 4, 0, 6),
        Coverage(2, 0, 0, 10),
    ]
    a = Worker(table, 1)
    a.wish(9)
    assert a.held == ((14, 22),)
    assert LeaseTable(10, 3, 30).trained_below == 30
    assert not LeaseTable(10, 3, 30).has_free(99)


def test_nonsense_changes_nothing() -> None:
    table = LeaseTable(100, 1)
    a, b = Worker(table, 1), Worker(table, 2)
    a.wish(8)
    b.wish(8)
    before = table.table.stretches
    b.wish(0, (2, 4), (4, 4), (9, 3), (10, 12), (16, 99), (0, 8))
    assert table.table.stretches == before, "only from where what it holds begins"
    with pytest.raises(ValueError, match="one of each"):
        LeaseTable(0, 1)


def test_no_worker_takes_all() -> None:
    table = LeaseTable(10_000, 1)
    a = Worker(table, 1)
    for _ in range(50):
        a.wish(1)
    assert len(a.held) == LEASES_MAX


def test_a_table_of_another_job_is_refused() -> None:
    mine, other = LeaseTable(10, 2), LeaseTable(10, 3)
    with pytest.raises(RemoteProtocolError, match="no table of leases"):
        mine.load(other.table)
    for stretches in ([], [leases._Stretch(9)], [leases._Stretch(20), leases._Stretch(20)], [leases._Stretch(25)]):
        with pytest.raises(RemoteProtocolError):
            mine.load(Table(1, 10, 2, 0, stretches, {}, {}))
    assert mine.trained_below == 0


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32), workers=st.integers(1, 4))
def test_against_single_batches(seed: int, workers: int) -> None:
    """Workers that push, say it later or never, repeat themselves and die: the coverage is what was pushed."""
    dice = random.Random(seed)
    table, twin = LeaseTable(12, 3), LeaseTable(12, 3)
    living = {n: Worker(table, n, workers) for n in range(1, workers + 1)}
    queue: dict[int, list[int]] = {n: [] for n in living}
    unsaid: dict[int, list[int]] = {n: [] for n in living}
    sequence = dict.fromkeys(living, 0)
    pushed: Counter[int] = Counter()
    for _ in range(400):
        if not living:
            break
        n = dice.choice(list(living))
        worker = living[n]
        match dice.randrange(8):
            case 0 | 1 | 2 | 3 if queue[n]:
                batch = queue[n].pop(0)
                sequence[n] += 1
                pushed[batch] += 1
                unsaid[n].append(batch)
            case 0 if dice.random() < 0.1 and len(living) > 1:
                table.lost(n, sequence[n])
                del living[n]
                continue
            case _:
                known = {*unsaid[n], *queue[n]}
                said = unsaid[n][:LEASES_MAX]
                unsaid[n] = unsaid[n][LEASES_MAX:]
                below = min(36, table.trained_below // 12 * 12 + 12)
                wish = Wish(
                    worker.said + 1,
                    tuple((b, b + 1) for b in said),
                    sequence[n] - len(unsaid[n]),
                    dice.randrange(6),
                    below,
                )
                worker.said += 1
                for _ in range(dice.choice((1, 1, 2))):
                    table.wish(n, wish, workers)
                queue[n] += [b for start, stop in table.held(n) for b in range(start, stop) if b not in known]
        copy = msgspec.msgpack.decode(msgspec.msgpack.encode(table.table), type=Table)
        twin.load(copy)
        held = [b for worker in range(1, workers + 1) for start, stop in table.held(worker) for b in range(start, stop)]
        assert len(held) == len(set(held)), "nobody shares a batch"
        assert all(b >= twin.trained_below for b in held)
    for n in list(living)[1:]:
        table.lost(n, sequence[n])
        del living[n]
    for n, worker in living.items():
        for _ in range(200):
            for batch in queue[n]:
                sequence[n] += 1
                pushed[batch] += 1
            done = tuple((b, b + 1) for b in (*unsaid[n], *queue[n]))
            worker.said += 1
            known = set(queue[n])
            for at in range(0, max(1, len(done)), LEASES_MAX):
                table.wish(n, Wish(worker.said, done[at : at + LEASES_MAX], sequence[n], 5, 36), 1)
                worker.said += 1
            unsaid[n], queue[n] = [], [b for start, stop in table.held(n) for b in range(start, stop)]
            assert not known & set(queue[n])
    assert table.trained_below == 36
    for epoch in range(3):
        counts = Counter(min(2, pushed[b]) for b in range(12 * epoch, 12 * epoch + 12))
        assert table.coverage(epoch) == Coverage(epoch, counts[1], counts[2], counts[0])
