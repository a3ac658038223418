"""A worker's side of the leases, in virtual time: what it says when, and how much each trains."""

from __future__ import annotations

import heapq
from collections.abc import Callable

import pytest

from p2pnn.ps.leasing import RANGE_S, RETRY_S, LeasedAllotment, Leasing
from p2pnn.replication.leases import Wish
from p2pnn.wire.fields import LEASES_MAX
from tests.ps.test_granting import Dealer
from tests.ps.test_state import WORKERS

LATENCY_S = 0.002


class Course:
    """Workers of unequal speed, each push acknowledged when its step ends. trained: whose step trained a batch, and when.

    ends: when each worker ended its last step. idle_s: how long each had nothing to train, while there was something.
    """

    def __init__(self, batches: int, step_s: tuple[float, ...], grants: tuple[float, ...] = ()) -> None:
        """grants: when the script lets another part of the batches be trained; at once where there are none."""
        self.dealer = Dealer(batches, 1)
        self.step_s = step_s
        self.leasing = [Leasing(0) for _ in step_s]
        self.now = 0.0
        self.wishes = 0
        self.trained: list[tuple[int, int, float]] = []
        self.ends = [0.0 for _ in step_s]
        self._steps = [0 for _ in step_s]
        self._busy = [False for _ in step_s]
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        parts = len(grants) or 1
        for part, at in enumerate(grants or (0.0,)):
            self._at(at, lambda below=batches * (part + 1) // parts: self._grant(below))  # type: ignore[misc]

    def run(self) -> None:
        while self._heap:
            self.now, _, do = heapq.heappop(self._heap)
            do()

    def _at(self, when: float, do: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._heap, (when, self._number, do))

    def _grant(self, below: int) -> None:
        for number, leasing in enumerate(self.leasing):
            leasing.grant(below)
            leasing.until = below
            self._go(number)

    def _go(self, number: int) -> None:
        leasing, steps = self.leasing[number], self._steps[number]
        if not self._busy[number] and steps < leasing.granted:
            self._busy[number] = True
            leasing.begins(self.now)
            self._at(self.now + self.step_s[number], lambda: self._ended(number))
        busy = self._busy[number]
        wish = leasing.next_wish(self.now, steps + busy, steps, steps, idle=not busy, able=True)
        if wish is not None:
            self.wishes += 1
            self._at(self.now + LATENCY_S, lambda: self._said(number, wish))

    def _said(self, number: int, wish: Wish) -> None:
        for leased in self.dealer.says(WORKERS[number], wish):
            its = WORKERS.index(leased.worker)
            about = (leased.number, leased.ranges, leased.trained_below, leased.again)
            self._at(self.now + LATENCY_S, lambda its=its, about=about: self._leased(its, *about))  # type: ignore[misc]

    def _leased(self, number: int, *about: object) -> None:
        self.leasing[number].leased(*about)  # type: ignore[arg-type]
        self._go(number)

    def _ended(self, number: int) -> None:
        self.trained.append((self.leasing[number].batch(self._steps[number]), number, self.now))
        self._steps[number] += 1
        self._busy[number] = False
        self.ends[number] = self.now
        self.leasing[number].ended(self.now)
        self._go(number)

    def shares(self) -> list[int]:
        return [sum(number == who for _, who, _ in self.trained) for number in range(len(self.step_s))]


@pytest.mark.parametrize(
    ("step_s", "grants"),
    [
        ((0.01, 0.03), ()),
        ((0.01, 0.03), (0.0, 0.3, 0.9, 1.4, 2.0)),
        ((0.2, 0.6, 0.2), ()),
        ((0.002, 0.002, 0.006), ()),
    ],
)
def test_each_trains_as_fast_as_it_can_and_all_end_together(
    step_s: tuple[float, ...], grants: tuple[float, ...]
) -> None:
    count = round(6.0 * sum(1 / s for s in step_s))
    course = Course(count, step_s, grants)
    course.run()
    assert sorted(batch for batch, _, _ in course.trained) == list(range(count))
    speed = [1 / s for s in step_s]
    for share, its in zip(course.shares(), speed, strict=True):
        assert share == pytest.approx(count * its / sum(speed), rel=0.06, abs=1)
    assert max(course.ends) - min(course.ends) <= 1.5 * max(step_s) + 0.05
    assert max(course.ends) < 1.03 * 6.0 + 1.5 * max(step_s)
    assert all(leasing.trained_below == count for leasing in course.leasing)
    assert course.wishes < len(step_s) * (6.0 / 0.1 + 60), "mostly one in a tenth of a second"


def test_a_range_takes_about_as_long_whoever_trains_it() -> None:
    course = Course(5000, (0.001, 0.01))
    sizes: list[tuple[int, int]] = []
    for number, leasing in enumerate(course.leasing):
        heard = leasing.leased

        def leased(*about: object, number: int = number, heard: Callable[..., None] = heard) -> None:
            sizes.extend((number, stop - start) for start, stop in about[1])  # type: ignore[attr-defined]
            heard(*about)

        leasing.leased = leased  # type: ignore[method-assign]
    course.run()
    fast = sorted(size for number, size in sizes if number == 0)
    slow = sorted(size for number, size in sizes if number == 1)
    assert fast[-1] == pytest.approx(RANGE_S / 0.001, rel=0.1)
    assert slow[-1] <= 1.1 * RANGE_S / 0.01


def test_what_was_not_heard_is_said_again_and_counts_once() -> None:
    leasing = Leasing(10)
    leasing.grant(20)
    leasing.until = 20
    first = leasing.next_wish(0.0, 0, 0, 0, idle=True, able=True)
    assert first == Wish(1, (), 0, 1, 20, 20)
    assert leasing.next_wish(0.1, 0, 0, 0, idle=True, able=True) is None
    assert leasing.get_timer() == RETRY_S
    leasing.say_again()
    second = leasing.next_wish(0.2, 0, 0, 0, idle=True, able=True)
    assert second is not None
    leasing.leased(1, ((10, 12),), 10, 0)
    assert leasing.granted == 0, "the answer to the second one has it as well"
    leasing.leased(2, ((10, 12),), 10, 0)
    assert (leasing.granted, leasing.batch(0), leasing.batch(1)) == (2, 10, 11)
    third = leasing.next_wish(0.3, 2, 1, 1, idle=False, able=True)
    assert third is not None
    assert (third.done, third.pushed, third.heard) == (((10, 11),), 1, 2)
    fourth = leasing.next_wish(0.5, 2, 2, 2, idle=True, able=True)
    assert fourth is not None
    assert fourth.done == ((10, 12),), "that of the third was not heard yet"
    again = leasing.next_wish(0.5 + RETRY_S, 2, 2, 2, idle=True, able=True)
    assert again is not None
    assert (again.number, again.done) == (5, ((10, 12),))
    leasing.leased(5, ((14, 15),), 12, 0)
    assert (leasing.granted, leasing.batch(2), leasing.trained_below) == (3, 14, 12)
    fifth = leasing.next_wish(9.0, 3, 3, 3, idle=True, able=True)
    assert fifth is not None
    assert fifth.done == ((14, 15),)


def test_who_quits_says_so_and_waits_with_the_others() -> None:
    leasing = Leasing(0)
    leasing.grant(8)
    leasing.until = 8
    assert leasing.next_wish(0.0, 0, 0, 0, idle=True, able=True) is not None
    leasing.leased(1, ((0, 4),), 0, 0)
    leasing.quit()
    wish = leasing.next_wish(0.1, 1, 1, 1, idle=True, able=True)
    assert wish == Wish(2, (), 0, 0, 8, 8, 1, quits=True), "what it did not say before does not count"
    leasing.leased(2, (), 8, 1)
    assert (leasing.trained_below, leasing.again, leasing.granted) == (8, 1, 0)


def test_who_cannot_train_yet_takes_nothing_from_others() -> None:
    leasing = Leasing(0)
    leasing.grant(8)
    leasing.until = 4
    wish = leasing.next_wish(0.0, 0, 0, 0, idle=True, able=False)
    assert wish is not None
    assert (wish.batches, wish.until) == (0, 4)
    wish = leasing.next_wish(0.1, 0, 0, 0, idle=True, able=True)
    assert wish is not None
    assert wish.batches == 1


def test_an_allotment_of_leases_evaluates_as_any_other_does() -> None:
    leasing = Leasing(3)
    allotment = LeasedAllotment(2, 1, False, leasing=leasing)
    assert (allotment.local(50), allotment.reached(0)) == (0, 3)
    leasing.grant(8)
    leasing.next_wish(0.0, 0, 0, 0, idle=True, able=True)
    leasing.leased(1, ((5, 7),), 4, 0)
    assert (allotment.local(50), allotment.reached(0), allotment.batch(1)) == (2, 4, 6)
    assert allotment.evaluated(5) == range(2, 5)
    assert allotment.evaluated(5, gone=(0,)) == range(5)


def said(leasing: Leasing, now: float, done: int, pushed: int) -> Wish:
    wish = leasing.next_wish(now, done, done, pushed, idle=True, able=True)
    assert wish is not None
    return wish


def test_what_no_shard_took_is_said_apart_until_it_is_heard_and_may_come_again() -> None:
    leasing = Leasing(0)
    leasing.grant(20)
    leasing.until = 20
    said(leasing, 0.0, 0, 0)
    leasing.leased(1, ((4, 10),), 0, 0)
    leasing.refused(1, 2, False)
    leasing.refused(3, 4, True)
    for number in (2, 3):
        wish = said(leasing, 9.0 * number, 5, 5)
        assert (wish.done, wish.back, wish.bad) == (((4, 5), (6, 7), (8, 9)), ((5, 6),), ((7, 8),))
    leasing.leased(3, ((9, 10), (5, 6)), 5, 0, 2)
    assert [leasing.batch(local) for local in (5, 6)] == [9, 5], "the one that came back was granted again"
    assert (leasing.granted, leasing.never) == (7, 2)
    wish = said(leasing, 30.0, 7, 7)
    assert (wish.done, wish.back, wish.bad) == (((9, 10), (5, 6)), (), ())


def test_more_than_a_message_holds_is_said_with_the_next() -> None:
    leasing = Leasing(0)
    leasing.grant(99)
    leasing.until = 99
    said(leasing, 0.0, 0, 0)
    leasing.leased(1, ((0, 60),), 0, 0)
    for step in range(0, 60, 2):
        leasing.refused(step, step + 1, False)
    wish = said(leasing, 9.0, 60, 60)
    assert len(wish.back) == LEASES_MAX
    leasing.leased(2, (), 0, 0)
    wish = said(leasing, 18.0, 60, 60)
    assert wish.back[0] == (2 * LEASES_MAX, 2 * LEASES_MAX + 1)
    assert wish.done[-1] == (59, 60)
