"""What replicas hold for a learner: enough that it catches up, and no more than a plan counts."""

from __future__ import annotations

from p2pnn.ps.copies import IN_HAND, SLOTS, copies_bytes, limits_of
from p2pnn.replication.limits import Limits


def test_every_push_of_every_worker_has_room() -> None:
    limits = limits_of(100, 40_000_000, 120_000_000)
    assert limits.staged_max == 100 * SLOTS
    assert limits.staged_bytes_max >= 100 * SLOTS * 40_000_000
    assert limits_of(1, 8, 24).staged_max >= SLOTS


def test_copies_are_as_many_as_come_while_a_state_leaves_whatever_its_size() -> None:
    for push, state in ((8, 24), (40_000_000, 120_000_000), (2**30, 3 * 2**30)):
        limits = limits_of(2, push, state)
        assert limits.catching_up_bytes == state + IN_HAND * push
        assert limits.retained_bytes <= limits.catching_up_bytes
        slack = copies_bytes(push, state, 0) - state - limits.catching_up_bytes
        assert slack == Limits().state_window * Limits().piece_bytes + IN_HAND * push
        assert copies_bytes(push, state, 3) - copies_bytes(push, state, 0) == 3 * push, "those in an open round"
