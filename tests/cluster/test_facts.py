"""The algebra of facts: in whatever order and however often they are told, all nodes end with the same."""

from __future__ import annotations

from functools import reduce

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnn.cluster.facts import as_seen_from_here, hearsay, living, member_of, merge, overrules
from p2pnn.types import Address
from p2pnn.wire.messages import Fact, Life, Member
from tests.simulator.mesh import node_id

NODE = node_id(1)
ALIVE = Fact(NODE, "a", "10.0.0.1", 7700, "b1", 3, Life.ALIVE)

facts = st.builds(
    Fact,
    node=st.just(NODE),
    name=st.just("a"),
    host=st.sampled_from(["10.0.0.1", "10.0.0.2"]),
    port=st.just(7700),
    boot=st.sampled_from(["b1", "b2"]),
    incarnation=st.integers(0, 3),
    life=st.sampled_from(Life),
    by=st.sampled_from(["", node_id(2), node_id(3)]),
    load=st.integers(0, 2),
)


def at(incarnation: int, life: Life) -> Fact:
    return msgspec.structs.replace(ALIVE, incarnation=incarnation, life=life)


@given(facts, facts, facts)
def test_merging_is_commutative_associative_and_idempotent(one: Fact, two: Fact, three: Fact) -> None:
    assert merge(one, two) == merge(two, one)
    assert merge(merge(one, two), three) == merge(one, merge(two, three))
    assert merge(one, one) == one
    assert merge(merge(one, two), two) == merge(one, two)


@given(st.lists(facts, min_size=1), st.randoms(use_true_random=False))
def test_nodes_that_are_told_in_any_order_agree(told: list[Fact], random: st.DataObject) -> None:
    shuffled = [*told, *told[: len(told) // 2]]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert reduce(merge, told) == reduce(merge, shuffled)


@given(facts, facts)
def test_what_overrules_is_what_merging_keeps(new: Fact, old: Fact) -> None:
    if overrules(new, old):
        assert merge(new, old) == new
        assert not overrules(old, new)
    elif not overrules(old, new):
        assert (new.incarnation, new.life) == (old.incarnation, old.life)


@pytest.mark.parametrize(
    ("new", "old", "news"),
    [
        (at(3, Life.SUSPECT), at(3, Life.ALIVE), True),
        (at(3, Life.ALIVE), at(3, Life.SUSPECT), False),
        (at(4, Life.ALIVE), at(3, Life.SUSPECT), True),
        (at(4, Life.ALIVE), at(3, Life.DEAD), True),
        (at(4, Life.ALIVE), at(3, Life.LEFT), True),
        (at(3, Life.DEAD), at(3, Life.SUSPECT), True),
        (at(3, Life.LEFT), at(3, Life.DEAD), True),
        (at(3, Life.DEAD), at(3, Life.LEFT), False),
        (at(2, Life.DEAD), at(3, Life.ALIVE), False),
        (at(3, Life.ALIVE), at(3, Life.ALIVE), False),
    ],
)
def test_which_fact_is_news(new: Fact, old: Fact, news: bool) -> None:
    assert overrules(new, old) is news


def test_who_lives() -> None:
    assert [life for life in Life if living(at(1, life))] == [Life.ALIVE, Life.SUSPECT]


def test_an_address_is_told_as_the_teller_sees_it() -> None:
    near, far = Address("127.0.0.1", 7700), Address("10.0.0.9", 7709)
    own = msgspec.structs.replace(ALIVE, host="", port=0)
    assert as_seen_from_here(own, far, True) == msgspec.structs.replace(ALIVE, host="10.0.0.9", port=7709)
    assert as_seen_from_here(ALIVE, far, False) == ALIVE
    local = msgspec.structs.replace(ALIVE, host="127.0.0.1")
    assert as_seen_from_here(local, far, False).host == "10.0.0.9"
    assert as_seen_from_here(local, near, False).host == "127.0.0.1"


def test_a_roster_is_hearsay_that_any_word_of_the_member_overrules() -> None:
    member = Member(NODE, "a", "10.0.0.1", 7700, "b1")
    assert overrules(at(1, Life.ALIVE), hearsay(member))
    assert member_of(hearsay(member), Address("10.0.0.1", 7700)) == member
