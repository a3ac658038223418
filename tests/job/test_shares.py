"""Where the time of each node went, from its spans."""

from __future__ import annotations

import pytest

from p2pnn.job.shares import summary
from p2pnn.job.spans import Kind
from p2pnn.job.trace import Trace
from tests.job.test_trace import SERVER, TRACE, packed, part


def test_the_summary_adds_up() -> None:
    first, second = summary(TRACE)
    assert (first.name, first.window_s) == ("a", 3.5)  # from 11.5, as far back as b remembers, to 15
    assert first.computing == pytest.approx(2 / 3.5)
    assert first.waiting == pytest.approx(1.5 / 3.5)
    assert first.on == "for gradient of conv1 from b"
    assert first.on_share == first.waiting
    assert first.sending == 0.0
    assert first.receiving == pytest.approx(0.5 / 3.5)
    assert first.overlap == 0.0
    assert second.computing == pytest.approx(1 / 3.5)
    assert second.on == "for the coordinator"
    assert second.overlap == 0.0
    assert (first.lost, second.lost) == (0, 7)


def test_a_wait_that_is_not_over_counts_as_waiting() -> None:
    stuck = part(1, packed((1.0, 2.0, 0, 0, Kind.FORWARD, 0)), since=2.0, taken_s=50.0)
    works = part(0, packed((0.0, 10.0, 0, 0, Kind.FORWARD, 0)))
    _, share = summary(Trace("toy-1", 1, (works, stuck), {}))
    assert share.waiting == share.on_share == pytest.approx(0.8)
    assert share.on == "for what had not come when its part was taken"


def test_overlap_is_of_the_time_with_a_tensor_on_its_way() -> None:
    computed = packed((0.0, 2.0, 0, 0, Kind.FORWARD, 0), (4.0, 10.0, 0, 0, Kind.BACKWARD, 0))
    moved = packed((1.0, 3.0, 0, -1, Kind.SEND, 0), (2.0, 5.0, 0, -1, Kind.RECEIVE, 1), (6.0, 7.0, 1, -1, Kind.SEND, 0))
    [share] = summary(Trace("toy-1", 1, (part(0, computed, moved),), {}))
    assert share.overlap == pytest.approx((1 + 1 + 1) / 5)
    assert share.sending == pytest.approx(0.3)


def test_nothing_recorded_has_no_shares() -> None:
    assert summary(Trace("toy-1", 1, (part(0),), {})) == []


def test_a_node_that_serves_and_one_that_only_does() -> None:
    works = part(0, packed((0.0, 10.0, 0, 0, Kind.FORWARD, 0)))
    [alone] = summary(Trace("toy-1", 1, (works,), {}))
    assert alone.serving is None
    assert alone.computes
    only = part(1, served=SERVER.served, moved=SERVER.moved, homes=(0, 1), workers=(0, 1))
    _, share = summary(Trace("toy-1", 1, (works, only), {}))
    assert share.serving == pytest.approx(0.3)
    assert not share.computes
    assert share.receiving == pytest.approx(0.15)
    assert share.sending == pytest.approx(0.2)
