"""Who is dialled, by whom, and until when."""

from __future__ import annotations

from collections import deque
from random import Random

from p2pnn.cluster.events import Dial, Event, Forget, MemberState
from p2pnn.cluster.introduction import Introduction, Limits
from p2pnn.types import Address
from tests.simulator.mesh import node_id

HOME, AWAY = Address("h", 1), Address("h", 2)


def made(number: int, *joins: Address) -> tuple[Introduction, deque[Event]]:
    events: deque[Event] = deque()
    return Introduction(node_id(number), joins, Limits(), 0.0, Random(1), events), events


def test_configured_addresses_are_dialled_at_once_and_never_forgotten() -> None:
    introduction, events = made(1, HOME)
    introduction.forget(HOME)
    introduction.dial(HOME)
    assert list(events) == [Dial(HOME)]


def test_the_smaller_id_dials_and_the_larger_waits_and_then_dials_as_well() -> None:
    small, events = made(1)
    small.hear_of(node_id(2), AWAY, 0.0)
    assert list(events) == [Dial(AWAY)]
    large, events = made(3)
    large.hear_of(node_id(2), AWAY, 0.0)
    large.hear_of(node_id(2), AWAY, 0.5)
    assert not events
    due = large.get_timer()
    assert due is not None
    assert 1.0 <= due <= 2.0
    large.handle_timer(due)
    assert list(events) == [Dial(AWAY)]
    assert large.get_timer() is None


def test_who_came_meanwhile_is_not_dialled() -> None:
    introduction, events = made(3)
    introduction.hear_of(node_id(2), AWAY, 0.0)
    introduction.settled(node_id(2))
    assert introduction.get_timer() is None
    assert not events


def test_what_does_not_listen_is_not_dialled_and_what_is_dialled_is_forgotten_once() -> None:
    introduction, events = made(1)
    introduction.dial(Address("h", 0))
    introduction.dial(AWAY)
    introduction.forget(AWAY)
    introduction.forget(AWAY)
    assert list(events) == [Dial(AWAY), Forget(AWAY)]


def test_a_join_remembers_who_answered_and_why_it_failed() -> None:
    introduction, _ = made(1, HOME)
    join = introduction.joins[HOME]
    assert join.state is MemberState.CONNECTING
    introduction.failed(HOME, "refused", 2.0)
    introduction.failed(HOME, "wrong cluster", 3.0)
    assert (join.state, join.reason, join.since) == (MemberState.UNREACHABLE, "wrong cluster", 2.0)
    introduction.reached(HOME, node_id(7), 5.0)
    introduction.reached(AWAY, node_id(8), 5.0)
    assert (join.state, join.node, join.reason, join.since) == (MemberState.ALIVE, node_id(7), "", 5.0)
