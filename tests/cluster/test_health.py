"""Local health: bounded, worse by signs, better by answers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p2pnn.cluster.health import SCORE_MAX, Health


def test_signs_stretch_the_intervals_and_answers_shorten_them() -> None:
    health = Health()
    assert health.stretch == 1
    health.worsen(3)
    health.worsen()
    assert (health.score, health.stretch) == (4, 5)
    health.improve()
    assert health.stretch == 4


@given(st.lists(st.integers(0, 9)))
def test_the_score_stays_within_its_bounds(signs: list[int]) -> None:
    health = Health()
    for number in signs:
        health.improve() if number == 0 else health.worsen(number)
        assert 0 <= health.score <= SCORE_MAX
