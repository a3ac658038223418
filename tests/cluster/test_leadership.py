"""What a leader notes of the others."""

from __future__ import annotations

from p2pnn.cluster.charter import Version
from p2pnn.cluster.leadership import Leadership

from .charters import A, B, C, D, charter_of

ONE, TWO = Version(1, 1), Version(1, 2)


def test_only_exactly_this_charter_counts() -> None:
    leadership = Leadership(A, 0.0, 1.0)
    charter = charter_of((A, B), learners=(C,), revision=2)
    leadership.holds(A, TWO)
    leadership.holds(B, ONE)
    leadership.holds(C, Version(2, 1))
    leadership.holds(D, TWO)
    assert leadership.holders(charter) == {A}
    leadership.holds(B, TWO)
    leadership.holds(B, ONE)
    assert leadership.holders(charter) == {A, B}, "an old word that comes late takes nothing back"


def test_who_was_heard_since_when() -> None:
    leadership = Leadership(A, 10.0, 1.0)
    assert leadership.in_touch((A, B, C), 10.0) == {A, B, C}, "from the beginning everybody gets a chance"
    leadership.heard(B, 12.0)
    assert leadership.in_touch((A, B, C), 11.0) == {A, B}


def test_a_charter_is_sent_once_in_a_while_until_it_is_held() -> None:
    leadership = Leadership(A, 0.0, 1.0)
    assert leadership.should_send(B, ONE, 0.0)
    assert not leadership.should_send(B, ONE, 0.9)
    assert leadership.should_send(B, TWO, 0.9)
    assert leadership.should_send(B, TWO, 2.0)
    leadership.returned(B)
    assert leadership.should_send(B, TWO, 2.1), "what was sent to it is lost"
    leadership.holds(B, TWO)
    assert not leadership.should_send(B, TWO, 9.0)


def test_learners_take_turns() -> None:
    leadership = Leadership(A, 0.0, 1.0)
    assert leadership.next_learners([B], 2) == [B]
    assert [leadership.next_learners([B, C, D], 2) for _ in range(3)] == [[B, C], [D, B], [C, D]]
