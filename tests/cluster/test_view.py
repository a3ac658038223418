"""What may be concluded from gossip."""

from __future__ import annotations

import pytest

from p2pnn.cluster.charter import NOTHING, Version
from p2pnn.cluster.view import SEEN_MAX, Standing, View
from p2pnn.types import NodeId

from .charters import A, B, C, D, E

ALL = [A, B, C, D, E]


def view_of(**standings: Standing) -> View:
    view = View(A, 0.0)
    for node in ALL:
        view.observe(node, standings.get(node[0], Standing.ALIVE), 0.0)
    return view


def test_unknown_is_neither_alive_nor_lost() -> None:
    view = View(A, 0.0)
    assert view.standing(B) is Standing.UNKNOWN
    assert not view.is_lost(B)
    assert view.standing(A) is Standing.ALIVE


def test_silence_counts_when_nothing_changes_any_more_and_proof_at_once() -> None:
    view = view_of(b=Standing.DEAD, c=Standing.SUSPECT)
    assert view.gone(ALL, 1.9) == set()
    assert view.gone(ALL, 2.0) == {B}
    view.observe(D, Standing.SUSPECT, 3.0)
    assert view.gone(ALL, 4.0) == set(), "the view has changed"
    view.observe(C, Standing.PROVED, 4.0)
    assert view.gone(ALL, 4.0) == {C}
    assert view.gone(ALL, 6.0) == {B, C}
    view.observe(B, Standing.ALIVE, 6.0)
    assert view.gone(ALL, 9.0) == {C}


def test_more_than_half_at_once_is_an_alarm_and_no_death() -> None:
    view = view_of(b=Standing.SUSPECT, c=Standing.DEAD)
    assert view.check_alarm(ALL) is None
    view.observe(D, Standing.PROVED, 5.0)
    assert view.check_alarm(ALL) is True
    assert view.check_alarm(ALL) is None
    assert view.lost(ALL) == 3
    assert view.gone(ALL, 100.0) == set()
    view.observe(B, Standing.DEAD, 50.0)
    assert view.check_alarm(ALL) is None, "dead after suspect is the same loss"
    view.observe(B, Standing.ALIVE, 60.0)
    assert view.check_alarm(ALL) is False
    assert view.gone(ALL, 100.0) == {C, D}


def test_losses_that_are_far_apart_are_no_alarm() -> None:
    view = view_of()
    for at, node in enumerate((B, C, D)):
        view.observe(node, Standing.DEAD, 20.0 * at)
        assert view.check_alarm(ALL) is None
    assert view.gone(ALL, 100.0) == {B, C, D}


@pytest.mark.parametrize(
    ("members", "lost", "alarm"), [(2, 1, None), (3, 1, None), (3, 2, True), (4, 2, None), (4, 3, True)]
)
def test_more_than_half_means_more_than_half(members: int, lost: int, alarm: bool | None) -> None:
    view = view_of(**{node[0]: Standing.DEAD for node in ALL[1 : 1 + lost]})
    assert view.check_alarm(ALL[:members]) is alarm


def test_candidates_are_ordered_by_charter_then_by_life() -> None:
    view = View(A, 100.0)
    newer, older = Version(2, 2), Version(2, 1)
    view.observe(B, Standing.ALIVE, 100.0)
    view.describe(B, 100.0, 50.0, 0.0, newer)
    view.observe(C, Standing.ALIVE, 100.0)
    view.describe(C, 100.0, 90.0, 0.0, newer)
    view.observe(D, Standing.ALIVE, 100.0)
    view.describe(D, 100.0, 99.0, 0.0, older)
    view.observe(E, Standing.SUSPECT, 100.0)
    view.describe(E, 100.0, 99.0, 0.0, newer)
    assert view.rank(C, newer, [A, B, C, E]) == 0
    assert view.rank(B, newer, [A, B, C, E]) == 1
    assert view.rank(A, newer, [A, B, C, E]) == 2
    assert view.rank(D, older, ALL) == 2, "nothing is known of A's charter, and it is younger"
    assert view.rank(C, newer, ALL) == 1, "D's charter may be newer by now, and it runs longest"
    assert view.rank(A, NOTHING, ALL) == 3
    assert view.started(C) == 10.0


def test_whose_loop_is_late_comes_after_others_of_the_same_charter() -> None:
    view = View(A, 100.0)
    newer, older = Version(2, 2), Version(2, 1)
    for node, uptime_s, lag_s in ((B, 90.0, 0.3), (C, 50.0, 0.02), (D, 40.0, 0.0)):
        view.describe(node, 100.0, uptime_s, lag_s, newer)
    assert view.rank(C, newer, [B, C, D]) == 0
    assert view.rank(D, newer, [B, C, D]) == 1, "0.02 s are no reason"
    assert view.rank(B, newer, [B, C, D]) == 2
    assert view.rank(C, older, [B, C, D]) == 2, "a newer charter is"


def test_what_is_not_known_is_decided_by_id() -> None:
    view = View(B, 100.0)
    for node in (A, C):
        view.observe(node, Standing.ALIVE, 100.0)
    assert view.rank(B, NOTHING, [A, B, C]) == 1
    assert view.rank(B, NOTHING, [B, C]) == 0
    assert view.started(C) == float("inf")


def test_strangers_take_bounded_memory() -> None:
    view = View(A, 0.0)
    for number in range(SEEN_MAX + 10):
        view.observe(NodeId(f"{number:032x}"), Standing.ALIVE, 0.0)
    assert view.standing(NodeId(f"{SEEN_MAX + 5:032x}")) is Standing.UNKNOWN
    assert view.standing(NodeId(f"{5:032x}")) is Standing.ALIVE
