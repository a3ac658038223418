"""Delays between attempts, and why an attempt failed."""

from __future__ import annotations

from random import Random

import pytest

from p2pnn.transport.attempt import needs_a_person, trouble_of
from p2pnn.transport.dial import Backoff
from p2pnn.wire.events import Closed
from p2pnn.wire.messages import CloseReason


def test_delays_double_up_to_the_longest_with_jitter() -> None:
    backoff = Backoff(0.1, 1.0, Random(1))
    delays = [backoff.next_s() for _ in range(8)]
    for delay, most in zip(delays, (0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0, 1.0), strict=True):
        assert most / 2 <= delay <= most
    assert len(set(delays)) == len(delays)
    backoff.reset()
    assert backoff.next_s() <= 0.1
    backoff.slow_down()
    assert backoff.next_s() >= 0.5


@pytest.mark.parametrize(
    ("outcome", "trouble", "person"),
    [
        ("refused: nothing listens there", "refused: nothing listens there", False),
        (Closed(CloseReason.SELF, "a node dialled itself", True), "it is this node itself", True),
        (Closed(CloseReason.WRONG_CLUSTER, "it is another", True), "wrong cluster: it is another", True),
        (Closed(CloseReason.VERSION, "", True), "wrong version", True),
        (Closed(CloseReason.FAILED, "connection reset", False), "connection reset", False),
        (Closed(77, "", True), "closed with reason 77", False),
    ],
)
def test_why_an_attempt_failed(outcome: Closed | str, trouble: str, person: bool) -> None:
    assert trouble_of(outcome) == trouble
    assert needs_a_person(outcome) == person
