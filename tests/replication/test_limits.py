"""Times and limits that contradict each other are refused."""

from __future__ import annotations

import pytest

from p2pnn.replication.limits import Limits, Timing


@pytest.mark.parametrize("wrong", [{"beat_s": 0.4}, {"resend_s": 1.0}, {"steady_s": 0.0}, {"push_again_max_s": 0.1}])
def test_times_that_contradict_each_other(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must satisfy"):
        Timing(**wrong)


@pytest.mark.parametrize("wrong", [{"entries_max": 0}, {"window": 65}, {"retained_entries": 5000}, {"piece_bytes": 0}])
def test_limits_that_contradict_each_other(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must"):
        Limits(**wrong)
    assert Limits(retained_entries=0, retained_bytes=0).retained_entries == 0
