"""Logged pushes, clocks, and workers that come and go."""

from __future__ import annotations

import pytest

from p2pnn.errors import LocalProtocolError
from p2pnn.ps.messages import Refusal, Worker
from p2pnn.ps.roster import Roster
from tests.ps.network import workers_named

A, B, C = workers_named(3)


def test_logging_counts_pushes_and_clocks() -> None:
    roster = Roster([A, B])
    roster.log(A, 1, None, 5.0)
    member = roster.log(A, 2, Refusal.LATE, 6.0)
    assert (member.sequence, member.refusal, member.log_number, member.clock, member.taken) == (
        2,
        Refusal.LATE,
        2,
        2,
        1,
    )
    assert roster.clock() == 0
    assert roster.clock(without=[B]) == 2
    assert roster.get(C) is None
    with pytest.raises(AssertionError):
        roster.log(A, 4, None, 7.0)


def test_who_joins_later_starts_at_the_least_clock() -> None:
    roster = Roster([A, B])
    for sequence in (1, 2, 3):
        roster.log(A, sequence, None, 0.0)
        roster.log(B, sequence, None, 0.0)
    roster.log(A, 4, None, 0.0)
    assert roster.set([C, B, A]) == []
    assert roster.workers == (C, B, A)
    assert (roster[C].clock, roster.clock()) == (3, 3)


def test_who_has_left_comes_back_as_another_life_only() -> None:
    roster = Roster([A, B])
    assert roster.set([B]) == [A]
    with pytest.raises(LocalProtocolError, match="has left"):
        roster.set([A, B])
    assert roster.set([Worker(A.node, 1), B]) == []
    with pytest.raises(LocalProtocolError, match="twice"):
        roster.set([B, B])
    assert roster.clock(without=roster.workers) == 0


def test_at_a_mark_all_clocks_become_those_of_the_foremost() -> None:
    roster = Roster([A, B])
    roster.log(A, 1, None, 0.0)
    roster.level()
    assert (roster[A].clock, roster[B].clock, roster.clock()) == (1, 1, 1)
    assert roster[B].sequence == 0


def test_every_life_has_a_number_of_its_own() -> None:
    roster = Roster([A, B])
    assert [roster.number(w) for w in (A, B)] == [1, 2]
    roster.set([B, C])
    again = Worker(A.node, A.incarnation + 1)
    roster.set([B, C, again])
    assert [roster.number(w) for w in (B, C, again)] == [2, 3, 4]
    assert (roster.worker(1), roster.worker(4), roster.came) == (None, again, 4)
    other = Roster([])
    other.load(roster.members, roster.log_number, roster.left, [2, 3, 4], 4)
    assert [other.number(w) for w in other.workers] == [2, 3, 4]
    other.set([B, C, again, Worker(A.node, A.incarnation + 2)])
    assert other.came == 5
