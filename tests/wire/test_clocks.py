"""Deadlines on a virtual clock."""

from __future__ import annotations

import pytest

from p2pnn.wire.clocks import Clocks
from p2pnn.wire.limits import Limits
from p2pnn.wire.messages import CloseReason

LIMITS = Limits()


def opened(control: bool) -> Clocks:
    clocks = Clocks(LIMITS, 100.0)
    clocks.opened(100.0, control)
    return clocks


def test_the_handshake_has_a_deadline_and_then_none() -> None:
    clocks = Clocks(LIMITS, 100.0)
    assert clocks.due() == 105.0
    assert clocks.overdue(104.9) is None
    assert (clocks.overdue(105.0) or [0])[0] == CloseReason.TOO_SLOW
    assert opened(control=False).due() is None


def test_a_control_link_pings_and_hears_of_silence() -> None:
    clocks = opened(control=True)
    assert clocks.due() == 101.0
    assert clocks.ping(100.9) is None
    assert clocks.ping(101.0) == 1
    assert clocks.due() == 102.0
    assert clocks.ping(102.0) is None, "one is under way"
    assert clocks.overdue(104.9) is None
    assert (clocks.overdue(105.0) or [0])[0] == CloseReason.SILENT
    clocks.heard(104.9)
    assert clocks.overdue(105.0) is None


def test_the_round_trip_time_is_smoothed() -> None:
    clocks = opened(control=True)
    assert clocks.ping(101.0) == 1
    assert not clocks.pong(2, 101.1)
    assert clocks.pong(1, 101.5)
    assert clocks.rtt_s == 0.5
    assert not clocks.pong(1, 101.6), "answered already"
    assert clocks.ping(102.0) == 2
    assert clocks.pong(2, 103.3)
    assert clocks.rtt_s == pytest.approx(0.5 + (1.3 - 0.5) / 8)


def test_each_frame_has_its_own_deadline() -> None:
    clocks = opened(control=False)
    clocks.receiving(0, True, False, 100.0)
    for second in range(101, 130):  # a byte every second
        clocks.heard(second)
        clocks.receiving(0, True, False, second)
        assert clocks.overdue(second + 0.5) is None
    clocks.heard(129.5)
    assert (clocks.overdue(130.0) or [0])[0] == CloseReason.TOO_SLOW
    clocks.receiving(1, True, False, 129.9)  # complete in time, and the next began in the same read
    assert clocks.overdue(130.0) is None
    clocks.receiving(2, False, False, 131.0)
    assert clocks.due() is None


def test_a_stall_is_noticed_inside_a_frame_and_between_the_frames_of_a_body() -> None:
    for in_frame in (True, False):
        clocks = opened(control=False)
        clocks.receiving(1, in_frame, True, 100.0)
        assert clocks.due() == 110.0
        assert (clocks.overdue(110.0) or [0])[0] == CloseReason.TOO_SLOW
        clocks.heard(109.0)
        assert clocks.overdue(110.0) is None
