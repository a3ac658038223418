"""How many vote, and the way there in single steps."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnn.cluster.charter import Charter
from p2pnn.cluster.voters import is_single_change, next_voters, wanted
from p2pnn.types import NodeId

from .charters import A, B, C, D, E, F, charter_of

NODES = (A, B, C, D, E, F)


@pytest.mark.parametrize(("members", "voters"), [(1, 1), (2, 1), (3, 3), (4, 3), (5, 5), (6, 5), (100, 5)])
def test_how_many_a_cluster_wants(members: int, voters: int) -> None:
    assert wanted(members) == voters


def test_a_single_change_keeps_majorities_in_touch() -> None:
    for before in range(1, 6):
        for after in range(1, 7):
            one, other = NODES[:before], NODES[:after]
            if is_single_change(one, other):
                assert all(
                    set(p) & set(q)
                    for p in combinations(one, before // 2 + 1)
                    for q in combinations(other, after // 2 + 1)
                )
    assert not is_single_change((A, B, C), (A, B, D)), "one out and one in are two"
    assert not is_single_change((A,), ())


def steps(charter: Charter, ready: set[NodeId], gone: set[NodeId] = frozenset()) -> list[str]:  # type: ignore[assignment]
    """Each step's voters, until none is left to take."""
    taken = []
    while True:
        after = next_voters(charter, A, ready, gone, lambda node: NODES.index(node), wanted(len(charter.members)))
        if after is None:
            return taken
        assert is_single_change(charter.voters, after)
        charter = charter.successor(voters=after)
        taken.append("".join(sorted(voter[0] for voter in after)))
        assert len(taken) < 10, taken


def test_growing() -> None:
    assert steps(charter_of((A,), learners=(B,)), {A, B}) == []
    assert steps(charter_of((A,), learners=(B, C)), {A, B, C}) == ["ab", "abc"]
    assert steps(charter_of((A,), learners=(B, C)), {A, B}) == ["ab"], "C is not ready"
    assert steps(charter_of((A, B, C), learners=(D,)), set(NODES)) == []
    assert steps(charter_of((A, B, C), learners=(D, E)), set(NODES)) == ["abcd", "abcde"]


def test_replacing_a_lost_voter() -> None:
    charter = charter_of((A, B, C), learners=(D,))
    assert steps(charter, {A, B}, {C}) == [], "nobody is there to take its place"
    assert steps(charter, {A, B, D}, {C}) == ["ab", "abd"]
    assert steps(charter_of((A, B, C)), {A, B}, {C}) == []


def test_shrinking() -> None:
    assert steps(charter_of((A, B, C)).successor(members=charter_of((A, B, C)).members[:2], voters=(A, B)), {A, B}) == [
        "a"
    ]
    assert steps(charter_of((A, B, C, D)), set(NODES), {B}) == ["acd"], "a lost one first"
    assert steps(charter_of((A, B, C, D)), set(NODES)) == ["abc"], "then the youngest"


def test_the_leader_stays() -> None:
    after = next_voters(charter_of((A, B)), B, {A, B}, set(), lambda node: 0.0, 1)
    assert after == (B,)


@given(st.sets(st.sampled_from(NODES)), st.sets(st.sampled_from(NODES)), st.integers(1, 5), st.integers(1, 6))
def test_whatever_is_ready_or_gone_each_step_is_single_and_the_leader_stays(
    ready: set[NodeId], gone: set[NodeId], voters: int, members: int
) -> None:
    members = max(voters, members)
    charter = charter_of(NODES[:voters], learners=NODES[voters:members])
    after = next_voters(charter, A, ready - gone, gone, lambda node: NODES.index(node), wanted(members))
    if after is not None:
        assert A in after
        assert is_single_change(charter.voters, after)
        assert set(after) - set(charter.voters) <= ready - gone
