"""What the nodes of a worker that is cut over several tell each other of the batches that it trains."""

from __future__ import annotations

import pytest

from p2pnn.ps.dealing import Deal, Dealing, Dealt
from p2pnn.ps.leasing import Leasing


def leasing(*ranges: tuple[int, int], below: int = 0) -> Leasing:
    """That has just been granted these."""
    found = Leasing(0)
    granted(found, *ranges, below=below)
    return found


def granted(found: Leasing, *ranges: tuple[int, int], below: int = 0) -> None:
    found.grant(100)
    found.say_again()
    wish = found.next_wish(0.0, found.granted, 0, 0, idle=True, able=True)
    assert wish is not None
    found.leased(wish.number, ranges, below, 0)


def untold(first: int, stop: int, bad: bool) -> None:
    raise AssertionError("steps were refused")


def test_the_others_train_the_same_batches_in_the_same_order() -> None:
    lead, dealing, other = leasing((4, 9), (2, 4)), Dealing([1, 2], untold), Dealt(0)
    deal = dealing.next(lead)
    assert deal == Deal(0, ((4, 9), (2, 4)), 0)
    other.take(deal)
    assert dealing.next(lead) is None, "it is told once"
    granted(lead, (4, 9), (2, 4), (9, 12), below=2)
    second = dealing.next(lead)
    assert second == Deal(7, ((9, 12),), 2)
    other.take(second)
    assert (other.granted, other.trained_below) == (10, 2)
    assert [other.batch(step) for step in range(10)] == [lead.batch(step) for step in range(10)]
    other.passed(7)
    assert other.batch(7) == 9
    with pytest.raises(IndexError):
        other.batch(10)


def test_that_others_have_trained_what_the_script_waits_for_is_told() -> None:
    lead, dealing = leasing(), Dealing([1], untold)
    assert dealing.next(lead) is None
    granted(lead, below=9)
    assert dealing.next(lead) == Deal(0, (), 9)
    assert dealing.next(lead) is None


def test_a_step_is_trained_when_all_nodes_shards_have_decided_it() -> None:
    lead, dealing = leasing((0, 8)), Dealing([1, 2], untold)
    dealing.next(lead)
    assert dealing.trained(1, 1) == (0, 0)
    dealing.decided(1, 3)
    assert dealing.trained(2, 2) == (0, 0)
    dealing.decided(2, 1)
    assert dealing.trained(2, 2) == (1, 1)
    dealing.decided(2, 2)
    dealing.decided(2, 1)
    assert dealing.trained(2, 2) == (2, 2), "an older word changes nothing"
    assert Dealing([], untold).trained(3, 2) == (3, 2)


def test_steps_that_are_pushed_together_are_trained_together() -> None:
    lead, dealing = leasing((0, 8)), Dealing([1], untold)
    dealing.next(lead)
    assert dealing.trained(1, 1) == (0, 0)
    dealing.decided(1, 3)
    assert dealing.trained(5, 2) == (1, 1), "the push up to 5 is not decided elsewhere"
    dealing.decided(1, 5)
    assert dealing.trained(5, 2) == (5, 2)


def test_steps_are_in_vain_that_no_shard_of_any_node_has_taken() -> None:
    found: list[tuple[int, int, bool]] = []
    lead, dealing = leasing((0, 8)), Dealing([1], lambda *about: found.append(about))
    dealing.next(lead)
    for first, stop, bad in ((0, 2, False), (2, 3, True), (3, 4, True)):
        dealing.refused(first, stop, bad)
    for first, stop, bad, position in ((1, 2, True, 1), (2, 3, True, 1), (4, 9, True, 1), (0, 1, True, 2)):
        dealing.refused(first, stop, bad, position)
    for step in range(1, 5):
        dealing.trained(step, step)
    assert found == []
    dealing.decided(1, 4)
    assert dealing.trained(4, 4) == (4, 4)
    assert found == [(1, 2, False), (2, 3, True)]


def test_what_cannot_be_is_passed_over() -> None:
    lead, dealing, other = leasing((0, 8)), Dealing([1], untold), Dealt(3)
    dealing.next(lead)
    dealing.decided(1, 9)
    dealing.decided(2, 4)
    assert dealing.trained(4, 4) == (0, 0)
    other.take(Deal(2, ((5, 6),), 8))
    assert (other.granted, other.trained_below) == (0, 3), "something was lost before"
