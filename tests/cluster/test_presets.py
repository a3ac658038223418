"""The presets: consistent, and their formulas as memberlist has them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2pnn import config
from p2pnn.cluster.presets import PRESETS


def test_a_person_can_choose_each_preset() -> None:
    assert tuple(PRESETS) == config.PRESETS


@pytest.mark.parametrize(("members", "shortest"), [(1, 4.0), (3, 4.0), (10, 4.0), (100, 8.0), (1000, 12.0)])
def test_suspicion_grows_with_the_logarithm(members: int, shortest: float) -> None:
    assert PRESETS["lan"].suspicion_s(members) == pytest.approx((shortest, shortest * 6))
    assert PRESETS["loopback"].suspicion_s(members)[1] == pytest.approx(shortest / 4 * 3)


@pytest.mark.parametrize(("members", "times"), [(1, 4), (2, 4), (9, 4), (10, 8), (99, 8), (100, 12), (1000, 16)])
def test_news_is_told_by_the_logarithm(members: int, times: int) -> None:
    assert PRESETS["lan"].retransmits(members) == times


@pytest.mark.parametrize(("members", "seconds"), [(2, 30.0), (32, 30.0), (33, 60.0), (64, 60.0), (128, 90.0)])
def test_everything_is_exchanged_less_often_in_large_clusters(members: int, seconds: float) -> None:
    assert PRESETS["lan"].push_pull_interval_s(members) == seconds


@pytest.mark.parametrize(
    "wrong",
    [
        {"probe_timeout_s": 1.0},
        {"suspicion_min_s": 0.5},
        {"suspicion_max_factor": 0.9},
        {"push_pull_s": 1.0},
        {"helpers": 0},
        {"gossip_interval_s": 0.0},
    ],
    ids=str,
)
def test_numbers_that_contradict_each_other_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        replace(PRESETS["lan"], **wrong)  # type: ignore[arg-type]
