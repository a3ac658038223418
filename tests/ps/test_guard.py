"""What is refused for what it holds, who is set aside, and that a real change of scale is followed."""

from __future__ import annotations

import numpy as np
import pytest

from p2pnn.ps.guard import SEEN_MIN, Guard
from p2pnn.ps.histogram import Histogram
from p2pnn.ps.messages import Refusal
from tests.ps.network import workers_named

A, B = workers_named(2)


def gradient(norm: float) -> np.ndarray:
    return np.full(4, norm / 2, np.float32)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite(bad: float) -> None:
    x = np.ones(100_000, np.float32)
    assert Guard().judge(x)[0] is None
    x[77_777] = bad
    assert Guard().judge(x)[0] is Refusal.NOT_FINITE


def test_squares_that_overflow_are_not_called_infinite() -> None:
    why, norm = Guard().judge(np.full(3, 1e30, np.float32))
    assert why is None
    assert norm == pytest.approx(np.sqrt(3) * 1e30)


def test_a_norm_that_has_run_away() -> None:
    guard = Guard()
    for _ in range(SEEN_MIN):
        assert guard.judge(gradient(2.0)) == (None, pytest.approx(2.0))
    assert guard.judge(gradient(190.0))[0] is None
    assert Guard(runaway_factor=0).judge(gradient(1e9))[0] is None
    why, norm = guard.judge(gradient(1e6))
    assert (why, norm) == (Refusal.RUNAWAY, pytest.approx(1e6))


def test_a_new_scale_is_followed_after_a_few() -> None:
    guard = Guard()
    for _ in range(SEEN_MIN):
        guard.judge(gradient(1.0))
    refused = 0
    while guard.judge(gradient(1e5))[0] is not None:
        refused += 1
        assert refused < 10
    assert refused > 0


def test_the_first_are_never_too_large_and_zeros_set_no_limit() -> None:
    guard = Guard()
    assert [guard.judge(gradient(norm))[0] for norm in (1e-3, 1.0, 1e3)] == [None] * 3
    still = Guard()
    for _ in range(50):
        still.judge(gradient(0.0))
    assert still.judge(gradient(1.0))[0] is None


def test_set_aside_after_bad_pushes_in_a_row() -> None:
    guard = Guard(strikes=3)
    assert not guard.refuse(A, Refusal.NOT_FINITE, others=1)
    assert not guard.refuse(A, Refusal.RUNAWAY, others=1)
    guard.took(A)
    assert not any(guard.refuse(A, Refusal.LATE, others=1) for _ in range(9))
    assert [guard.refuse(A, Refusal.NOT_FINITE, others=1) for _ in range(3)] == [False, False, True]
    assert guard.set_aside == {A}
    assert guard.refused[A, Refusal.NOT_FINITE] == 4
    assert not any(guard.refuse(B, Refusal.NOT_FINITE, others=0) for _ in range(9))  # the last that is left


def test_the_histogram_of_staleness_is_bounded() -> None:
    histogram = Histogram()
    for number in (0, 0, 3, 15, 16, 31, 32, 1000):
        histogram.add(number)
    assert histogram.rows() == [("0", 2), ("3", 1), ("15", 1), ("16–31", 2), ("32–63", 1), ("512–1023", 1)]
    assert (histogram.total, histogram.max, histogram.mean) == (8, 1000, pytest.approx(1097 / 8))


def test_strikes_travel_and_norms_do_not() -> None:
    guard, other = Guard(strikes=2), Guard(strikes=2)
    known = other.set_aside
    guard.refuse(A, Refusal.NOT_FINITE, 1)
    guard.refuse(B, Refusal.LATE, 1)
    other.load(guard.refused, guard.in_a_row, {B})
    assert (other.in_a_row, other.refused, other.set_aside) == ({A: 1}, guard.refused, {B})
    assert other.set_aside is known
    assert other.refuse(A, Refusal.RUNAWAY, 1)
