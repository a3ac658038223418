"""Delays between attempts."""

from __future__ import annotations

from random import Random

from p2pnn.transport.dial import Backoff


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
