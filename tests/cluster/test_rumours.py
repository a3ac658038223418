"""News: told a limited number of times, the least told first, of each member only the newest."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p2pnn.cluster.rumours import Rumours
from p2pnn.wire.messages import Fact, Life
from tests.simulator.mesh import node_id


def fact(number: int, incarnation: int = 1) -> Fact:
    return Fact(node_id(number), f"n{number}", "h", 1, "b", incarnation, Life.ALIVE)


def test_a_rumour_is_told_so_often_and_then_kept() -> None:
    rumours = Rumours()
    rumours.add(fact(1))
    assert [rumours.take(5, 3) for _ in range(4)] == [(fact(1),), (fact(1),), (fact(1),), ()]
    assert len(rumours) == 0


def test_the_least_told_comes_first_and_the_number_is_limited() -> None:
    rumours = Rumours()
    for number in (1, 2, 3):
        rumours.add(fact(number))
    assert rumours.take(2, 9) == (fact(1), fact(2))
    assert rumours.take(2, 9) == (fact(3), fact(1))
    assert rumours.take(0, 9) == ()


def test_newer_news_of_a_member_replaces_the_older() -> None:
    rumours = Rumours()
    rumours.add(fact(1))
    rumours.take(1, 9)
    rumours.add(fact(1, incarnation=2))
    assert rumours.take(5, 1) == (fact(1, incarnation=2),)
    assert rumours.take(5, 1) == ()


def test_nobody_is_told_of_itself_and_that_counts_as_told() -> None:
    rumours = Rumours()
    rumours.add(fact(1))
    rumours.add(fact(2))
    assert rumours.take(5, 1, but=node_id(1)) == (fact(2),)
    assert len(rumours) == 0, "a rumour whose only receiver it is about would never end"


def test_what_is_said_of_oneself_goes_first() -> None:
    rumours = Rumours()
    for number in (1, 2, 3):
        rumours.add(fact(number))
    assert rumours.take(1, 9, first=node_id(3)) == (fact(3),)
    rumours.drop(node_id(3))
    assert rumours.take(1, 9, first=node_id(3)) == (fact(1),)


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 3)), max_size=40), st.integers(1, 4))
def test_no_rumour_is_told_more_often_than_allowed(steps: list[tuple[int, int]], times: int) -> None:
    rumours = Rumours()
    told: dict[Fact, int] = {}
    for at, (number, count) in enumerate(steps):
        if count == 0:
            rumours.add(fact(number, incarnation=at))
        for one in rumours.take(count, times):
            told[one] = told.get(one, 0) + 1
    assert all(count <= times for count in told.values())
