"""How long the pieces of a run become, and what is known of its speed."""

from __future__ import annotations

from collections import deque

import pytest

from p2pnn.job.pace import AHEAD, FIRST_PIECE_STEPS, PIECE_S, Pace

STEPS_PER_S = 1000.0


def trained(pace: Pace, seconds: float, late_s: float = 0.0) -> float:
    """Grant and train for so long at STEPS_PER_S; every tenth answer is late, and holds up those behind it. Returns the greatest
    pace that it came to."""
    ahead: deque[tuple[int, int, float]] = deque()  # number, step, when it is answered
    number = granted = step = 0
    now = is_free = most = 0.0
    while now < seconds:
        while len(ahead) < AHEAD:
            number, piece = number + 1, pace.piece()
            is_free = max(is_free, now) + piece / STEPS_PER_S
            granted += piece
            answered = max(ahead[-1][2] if ahead else 0.0, is_free + late_s * (number % 10 == 0))
            ahead.append((number, granted, answered))
            pace.granted(number, step, now)
        done, step, now = ahead.popleft()
        pace.trained(done, step, now)
        most = max(most, pace.steps_per_s)
    return most


def test_pieces_take_half_a_second_though_some_are_ahead_and_what_is_left_is_known() -> None:
    pace = Pace()
    assert (pace.piece(), pace.left_s(100)) == (FIRST_PIECE_STEPS, None)
    trained(pace, 5.0)
    assert pace.steps_per_s == pytest.approx(STEPS_PER_S)
    assert pace.piece() == pytest.approx(STEPS_PER_S * PIECE_S, abs=1)
    assert pace.left_s(10_000) == pytest.approx(10.0)


def test_answers_that_come_late_and_together_let_it_look_a_few_times_faster_at_most() -> None:
    pace = Pace()
    assert STEPS_PER_S <= trained(pace, 60.0, late_s=0.4) <= 2 * AHEAD * STEPS_PER_S


def test_it_gets_slower_by_half_with_each_piece_at_most() -> None:
    pace = Pace()
    for number, now, expected in ((1, 1.0, 100.0), (2, 2.0, 50.0), (3, 3.0, 25.0)):
        pace.granted(number, 0 if number == 1 else 100, now - 1.0)
        pace.trained(number, 100, now)
        assert pace.steps_per_s == expected


def test_a_piece_that_another_coordinator_granted_and_one_that_takes_no_time_say_nothing() -> None:
    pace = Pace()
    pace.steps_per_s = 6.0
    pace.trained(7, 1_000, 3.0)
    pace.granted(8, 1_000, 3.0)
    pace.trained(8, 2_000, 3.0)
    assert pace.steps_per_s == 6.0
    pace.granted(9, 2_000, 3.0)
    pace.trained(9, 2_100, 4.0)
    assert pace.steps_per_s == 100.0
