"""How often snapshots are taken, and which cut is whole."""

from __future__ import annotations

import math

import pytest

from p2pnn.job.script import Progress
from p2pnn.job.snapshots import COST_SHARE, FIRST_STEPS, HANDLING_S, Interval, newest_complete
from p2pnn.types import NodeId

A, B, C = (NodeId(letter * 32) for letter in "abc")


def told(interval: Interval, node: str, step: int, wall_s: float, snapshots: int, snapshot_s: float) -> None:
    interval.add(node, Progress(step, (0.0, 0), {}, 0.0, wall_s, snapshots, snapshot_s))


def test_until_something_was_measured_there_is_a_first_guess() -> None:
    interval = Interval(-1)
    assert interval.steps == FIRST_STEPS
    told(interval, "a", 10, 0.2, 0, 0.0)
    told(interval, "a", 20, 0.2, 0, 0.0)
    assert interval.steps == FIRST_STEPS


@pytest.mark.parametrize(("step_s", "cost_s"), [(0.002, 0.0004), (0.5, 0.001), (0.01, 0.2), (0.001, 5.0)])
def test_snapshots_cost_at_most_their_share_and_come_as_often_as_that_allows(step_s: float, cost_s: float) -> None:
    interval = Interval(-1)
    for n in range(30):
        told(interval, "a", 10 * n, 10 * step_s, 2, 2 * cost_s)
        told(interval, "b", 10 * n, 10 * step_s, 2, cost_s)  # the dearer one counts
    cost = cost_s + HANDLING_S
    assert cost / (interval.steps * step_s) <= COST_SHARE * (1 + 1e-9)
    assert interval.steps == max(1, math.ceil(cost / (COST_SHARE * step_s) - 1e-9))


def test_a_jobs_own_wish_is_not_adapted() -> None:
    for wish in (0, 1, 50):
        interval = Interval(wish)
        told(interval, "a", 10, 0.2, 2, 100.0)
        told(interval, "a", 20, 0.2, 2, 100.0)
        assert interval.steps == wish


def test_a_cut_is_whole_where_each_part_is_held_by_somebody() -> None:
    assert newest_complete({}, 1) is None
    assert newest_complete({A: [(0, 4)]}, 2) is None
    held = {A: [(0, 4), (0, 8), (1, 4)], B: [(1, 8)], C: [(2, 4), (2, 8), (2, 12), (0, 12)]}
    assert newest_complete(held, 3) == 8
    assert newest_complete(held, 3, limit=7) == 4
    assert newest_complete(held, 3, limit=3) is None
    assert newest_complete({A: held[A], C: held[C]}, 3) == 4, "without B"
