"""When nothing can be decided here, and how that is said."""

from __future__ import annotations

import msgspec

from p2pnn.cluster.parking import Parked, look, names_of
from tests.cluster.charters import A, B, C, D, E, charter_of

FIVE = charter_of((A, B, C, D, E))
NAMES = names_of(FIVE)


def test_a_living_coordinator_parks_nobody() -> None:
    assert look(FIVE, A, A, {A}, None, 5.0) is None
    assert look(FIVE, B, A, {A, B}, Parked(1.0), 5.0) is None


def test_a_coordinator_that_gossip_doubts_is_none() -> None:
    parked = look(FIVE, B, A, {A, C, D}, None, 5.0)
    assert parked == Parked(5.0, (NAMES[A], NAMES[C], NAMES[D]), (NAMES[B], NAMES[E]), 3)
    assert parked.reason(7.0) == (
        f"there is no coordinator for 2 s: an election is under way; this node sees 3 of 5 voters ({NAMES[A]}, {NAMES[C]} and"
        f" {NAMES[D]}), and 3 must agree"
    )


def test_the_minority_says_what_is_missing_and_since_when_and_what_to_do() -> None:
    parked = look(FIVE, None, A, {A, B}, None, 5.0)
    assert parked is not None
    later = look(FIVE, None, A, {A, B}, parked, 300.0)
    assert later == parked, "its time goes on"
    assert later.reason(305.0) == (
        f"this node sees 2 of 5 voters ({NAMES[A]} and {NAMES[B]}), and 3 must agree: no coordinator can be elected here, for"
        f" 5 min; start {NAMES[C]}, {NAMES[D]} and {NAMES[E]} again, or mend the network to there; if too many of them are lost"
        " for good: p2pnn cluster recover"
    )


def test_names_are_in_order_whenever_their_nodes_became_voters() -> None:
    parked = look(charter_of((E, B, D, A, C)), None, D, {D, B}, None, 0.0)
    assert parked == Parked(0.0, (NAMES[B], NAMES[D]), (NAMES[A], NAMES[C], NAMES[E]), 3)


def test_the_second_of_two_misses_the_founder() -> None:
    parked = look(charter_of((A,), learners=(B,)), None, B, {B}, None, 0.0)
    assert parked is not None
    assert parked.reason(0.0).startswith(
        "this node sees 0 of 1 voter, and 1 must agree: no coordinator can be elected here"
    )


def test_who_was_never_admitted_is_told_where_to_look() -> None:
    parked = look(None, None, A, {A}, None, 2.0)
    assert parked == Parked(2.0)
    assert "no cluster has admitted this node for 3 s" in parked.reason(5.0)


def test_two_members_of_one_name_can_be_told_apart() -> None:
    charter = charter_of((A, B), learners=(C,))
    first, second, third = charter.members
    charter = msgspec.structs.replace(charter, members=(first, msgspec.structs.replace(second, name=first.name), third))
    assert names_of(charter) == {A: f"{first.name} ({A[:8]})", B: f"{first.name} ({B[:8]})", C: third.name}
