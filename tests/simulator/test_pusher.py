"""A worker's side of it."""

from __future__ import annotations

import pytest

from p2pnn.errors import QueueFullError
from p2pnn.replication.configuration import Configuration
from p2pnn.replication.limits import Limits, Timing
from p2pnn.replication.outcomes import FetchConfiguration
from p2pnn.wire.messages import Push, Pushed, Superseded
from tests.replication.mesh import SHARD, A, B, pair
from tests.simulator.pusher import Finished, Pusher

LIMITS = Limits(piece_bytes=4, window=2)
TIMING = Timing(slow_bytes_per_s=1.0)
"""A byte takes a second."""


def pusher(*, configured: bool = True) -> Pusher:
    one = Pusher(SHARD, 9, 0.0, LIMITS)
    if configured:
        one.configured(pair(), 0.0)
    return one


def events(one: Pusher) -> list[Finished | FetchConfiguration]:
    found = []
    while (event := one.next_event()) is not None:
        found.append(event)
    return found


def test_an_update_leaves_in_pieces_and_is_finished_by_its_answer() -> None:
    one = pusher()
    assert one.push([b"abcdef", b"g"], 0.0) == 1
    assert one.messages_to_send(0.0) == [
        (A.id, Push(*SHARD, 1, 9, 1, 0, 7), b"abcd"),
        (A.id, Push(*SHARD, 1, 9, 1, 4, 7), b"ef"),
        (A.id, Push(*SHARD, 1, 9, 1, 6, 7), b"g"),
    ]
    one.receive(A.id, Pushed(*SHARD, 1, 8, 1), 0.1)
    assert events(one) == [], "another worker's"
    one.receive(A.id, Pushed(*SHARD, 1, 9, 1, b"answer"), 0.1)
    one.receive(A.id, Pushed(*SHARD, 1, 9, 1, b"answer"), 0.1)
    assert events(one) == [Finished(1, b"answer", "")]
    assert one.get_timer() is None


def test_the_window_is_bounded_and_an_answer_counts_for_all_before() -> None:
    one = pusher()
    one.push([b"a"], 0.0)
    one.push([b"b"], 0.0)
    assert not one.may_push
    with pytest.raises(QueueFullError, match="2 updates of shard 3"):
        one.push([b"c"], 0.0)
    one.receive(A.id, Pushed(*SHARD, 1, 9, 2, b"", "a value is not finite"), 0.1)
    assert events(one) == [Finished(1, b"", ""), Finished(2, b"", "a value is not finite")]
    with pytest.raises(ValueError, match="without a byte"):
        one.push([b""], 0.0)


def test_what_is_not_answered_goes_again_later_and_later_and_to_a_new_primary_at_once() -> None:
    one = pusher()
    one.push([b"a"], 0.0)
    one.messages_to_send(0.0)
    times = []
    for _ in range(4):
        timer = one.get_timer()
        assert timer is not None
        one.handle_timer(timer)
        times.append(timer)
        assert len(one.messages_to_send(timer)) == 1
    assert times == pytest.approx([0.5, 1.5, 2.5, 3.5], abs=0.001)
    assert FetchConfiguration() in events(one)
    one.configured(Configuration(2, 2, (B, A)), 3.6)
    assert one.messages_to_send(3.6) == [(B.id, Push(*SHARD, 2, 9, 1, 0, 1), b"a")]
    one.configured(pair(), 3.7)
    assert one.messages_to_send(3.7) == []


def test_what_is_still_on_its_way_is_not_sent_twice() -> None:
    one = Pusher(SHARD, 9, 0.0, LIMITS, TIMING)
    one.configured(pair(), 0.0)
    one.push([b"abcdef"], 0.0)
    assert one.get_timer() == 6.5
    one.push([b"abcd"], 1.0)
    assert one.get_timer() == 6.5, "the first one's"
    one.receive(A.id, Pushed(*SHARD, 1, 9, 1), 6.0)
    assert one.get_timer() == 11.5, "behind the first"


def test_a_higher_generation_makes_it_ask() -> None:
    one = pusher()
    one.receive(A.id, Superseded(*SHARD, 1), 1.0)
    assert events(one) == []
    one.receive(A.id, Superseded(*SHARD, 4), 1.0)
    assert events(one) == [FetchConfiguration()]
    timer = one.get_timer()
    assert timer is not None
    one.handle_timer(timer)
    assert events(one) == [FetchConfiguration()]


def test_without_a_configuration_it_asks_and_keeps_the_update() -> None:
    one = pusher(configured=False)
    one.push([b"a"], 0.0)
    assert events(one) == [FetchConfiguration()]
    assert one.messages_to_send(0.0) == []
    one.configured(pair(), 0.1)
    assert len(one.messages_to_send(0.1)) == 1
