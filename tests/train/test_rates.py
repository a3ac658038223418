"""Properties of schedules."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnn.job.spec import SCHEDULES, Optimizer
from p2pnn.train.rates import rate


@given(
    schedule=st.sampled_from(SCHEDULES),
    steps=st.integers(1, 300),
    warmup=st.integers(0, 50),
    size=st.integers(0, 50),
)
def test_rates_rise_in_the_warm_up_and_never_after(schedule: str, steps: int, warmup: int, size: int) -> None:
    spec = Optimizer(rate=0.5, schedule=schedule, warmup_steps=warmup, step_size=size)
    rates = [rate(spec, step, steps) for step in range(steps)]
    assert all(0 <= r <= 0.5 for r in rates)
    rising = rates[:warmup]
    assert rising == sorted(rising)
    assert len(set(rising)) == len(rising)
    if steps > warmup:
        assert rates[warmup] == 0.5
        assert rates[warmup:] == sorted(rates[warmup:], reverse=True)


def test_warm_up_begins_at_a_part_and_ends_at_the_rate() -> None:
    spec = Optimizer(rate=1.0, schedule="constant", warmup_steps=4)
    assert [rate(spec, s, 10) for s in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_cosine_is_half_in_the_middle_and_zero_when_done() -> None:
    spec = Optimizer(rate=2.0, schedule="cosine", warmup_steps=10)
    assert rate(spec, 60, 110) == pytest.approx(1.0)
    assert rate(spec, 109, 110) == pytest.approx(1 + math.cos(math.pi * 0.99))
    assert rate(spec, 110, 110) == pytest.approx(0.0, abs=1e-15)
    assert rate(spec, 500, 110) == pytest.approx(0.0, abs=1e-15)


def test_steps_multiply_by_gamma() -> None:
    spec = Optimizer(rate=1.0, schedule="step", step_size=3, gamma=0.5)
    assert [rate(spec, s, 10) for s in range(7)] == [1, 1, 1, 0.5, 0.5, 0.5, 0.25]


def test_an_unknown_schedule_is_named() -> None:
    with pytest.raises(ValueError, match="no schedule 'linear'"):
        rate(Optimizer(schedule="linear"), 0, 10)
