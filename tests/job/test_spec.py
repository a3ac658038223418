"""Schedules: what may be asked for, and how many mini-batches that means."""

from __future__ import annotations

import pytest

from p2pnn.errors import UsageError
from p2pnn.job.spec import IN_FLIGHT_MAX, check_schedule, in_flight
from tests.job.test_supervisor import make_spec


def test_how_many_mini_batches_are_in_flight() -> None:
    assert in_flight("sync") == 0
    assert [in_flight(f"async:{count}") for count in (1, 2, IN_FLIGHT_MAX)] == [1, 2, IN_FLIGHT_MAX]
    assert make_spec(schedule="async:3").in_flight == 3


@pytest.mark.parametrize(
    "schedule",
    ["", "async", "async:", "async:0", "async:65", "async:-1", "async:1.5", "async:²", "sync:2", "async:" + "9" * 99],
)
def test_any_other_schedule_is_one_short_sentence(schedule: str) -> None:
    with pytest.raises(UsageError, match="write sync, or async:K") as caught:
        in_flight(schedule)
    assert len(str(caught.value)) < 200


def test_what_mini_batches_in_flight_do_not_go_with() -> None:
    check_schedule("sync", 4, "evaluate")
    check_schedule("async:2", 1)
    with pytest.raises(UsageError, match="micro_batches = 4: leave that away or write 1"):
        check_schedule("async:1", 4)
    with pytest.raises(UsageError, match="a job of kind predict is always sync"):
        check_schedule("async:2", 1, "predict")
