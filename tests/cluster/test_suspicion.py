"""How long a suspect has, by the number of those that suspect it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnn.cluster.suspicion import Suspicion
from tests.simulator.mesh import node_id


@pytest.mark.parametrize(
    ("confirmations", "seconds"),
    [(0, 30.0), (1, 30 - 28 * math.log(2) / math.log(4)), (2, 30 - 28 * math.log(3) / math.log(4)), (3, 2.0), (9, 2.0)],
)
def test_each_accuser_brings_the_end_nearer(confirmations: int, seconds: float) -> None:
    """The table of memberlist's suspicion_test.go, with k = 3, 2 s and 30 s."""
    suspicion = Suspicion(node_id(0), 100.0, 2.0, 30.0, 3)
    for number in range(1, confirmations + 1):
        assert suspicion.confirm(node_id(number)) is (number <= 3)
    assert suspicion.due == pytest.approx(100 + seconds)


def test_an_accuser_counts_once() -> None:
    suspicion = Suspicion(node_id(1), 0.0, 1.0, 3.0, 2)
    assert not suspicion.confirm(node_id(1))
    assert suspicion.confirm(node_id(2))
    assert not suspicion.confirm(node_id(2))
    assert suspicion.accusers == [node_id(1), node_id(2)]


@pytest.mark.parametrize("wanted", [0, -1])
def test_where_nobody_could_confirm_the_suspect_has_the_longest_time(wanted: int) -> None:
    suspicion = Suspicion(node_id(1), 5.0, 1.0, 3.0, wanted)
    assert suspicion.due == 8.0
    assert not suspicion.confirm(node_id(2))


def test_time_in_which_this_node_stood_still_does_not_count() -> None:
    suspicion = Suspicion(node_id(1), 0.0, 1.0, 3.0, 1)
    suspicion.postpone(10.0)
    assert suspicion.due == 13.0


@given(st.integers(1, 8), st.floats(0.1, 10), st.floats(1, 10))
def test_the_end_only_comes_nearer_and_never_before_the_shortest(wanted: int, shortest: float, factor: float) -> None:
    suspicion = Suspicion(node_id(0), 0.0, shortest, shortest * factor, wanted)
    ends = [suspicion.due]
    for number in range(1, wanted + 1):
        suspicion.confirm(node_id(number))
        ends.append(suspicion.due)
    assert ends == sorted(ends, reverse=True)
    assert ends[0] == shortest * factor
    assert ends[-1] == pytest.approx(shortest)
