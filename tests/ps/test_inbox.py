"""Places: given out before bytes come, bounded, in turn, and never to two at once."""

from __future__ import annotations

import pytest

from p2pnn.ps.inbox import Discard, Inbox, Receive, Wait
from p2pnn.ps.messages import Push, Refusal, Worker
from p2pnn.ps.roster import Roster
from tests.ps.network import workers_named

A, B, C, D = workers_named(4)


def inbox(places: int = 2, one_each: bool = False) -> tuple[Inbox, Roster]:
    roster = Roster([A, B, C])
    return Inbox([8, 4], places, roster, one_each=one_each), roster


def push(worker: Worker, sequence: int = 1, part: int = 0) -> Push:
    return Push(worker, 0, sequence, part, (8, 4)[part], 0)


def come(box: Inbox, header: Push) -> Receive:
    found = box.announce(header)
    assert isinstance(found, Receive)
    return found


def test_parts_lie_in_one_place_and_make_it_whole_in_any_order() -> None:
    box, _ = inbox()
    second, first = come(box, push(A, part=1)), come(box, push(A, part=0))
    assert (second.into.nbytes, first.into.nbytes) == (4, 8)
    assert second.staged is first.staged
    assert box.announce(push(A, part=1)) == Discard()  # on its way already
    box.received(second)
    assert box.announce(push(A, part=1)) == Discard()  # here already
    assert not box.whole
    box.received(first)
    assert list(box.whole) == [first.staged]
    assert box.received_bytes == 12


def test_a_part_that_broke_comes_again() -> None:
    box, _ = inbox()
    box.received(come(box, push(A, part=0)))
    box.broken(come(box, push(A, part=1)))
    box.received(come(box, push(A, part=1)))
    assert len(box.whole) == 1
    assert box.free == 1


def test_a_dropped_place_is_free_only_when_nothing_goes_into_it() -> None:
    box, _ = inbox(places=1)
    coming = come(box, push(A))
    box.drop(A)
    assert box.free == 0
    assert box.announce(push(B)) == Wait()
    box.received(coming)
    assert box.free == 1
    assert not box.whole
    assert box.next_room() == B


def test_pushes_follow_one_another() -> None:
    box, roster = inbox(places=3)
    assert box.announce(push(A, 2)) == Discard(Refusal.GAP)
    first = [come(box, push(A, 1, part)) for part in (0, 1)]
    assert box.announce(push(A, 2)) == Discard(Refusal.GAP)  # the first is not whole
    for receive in first:
        box.received(receive)
    come(box, push(A, 2))
    box.close(box.whole.popleft())
    roster.log(A, 1, None, 0.0)
    assert box.announce(push(A, 4)) == Discard(Refusal.GAP)


def test_in_rounds_there_is_one_of_each() -> None:
    box, _ = inbox(one_each=True)
    for part in (0, 1):
        box.received(come(box, push(A, 1, part)))
    assert box.announce(push(A, 2)) == Discard(Refusal.GAP)


def test_places_are_given_in_turn() -> None:
    box, _ = inbox(places=1)
    staged = come(box, push(A)).staged
    assert box.announce(push(B)) == Wait()
    assert box.announce(push(C)) == Wait()
    assert box.next_room() is None
    staged.receiving.clear()
    box.drop(A)
    assert box.announce(push(C)) == Wait()  # B was first
    assert box.next_room() == B
    assert box.next_room() is None
    come(box, push(B))
    box.disconnected(C)
    staged = box.workers
    assert staged == [B]


def test_a_link_that_broke_gives_up_its_turn() -> None:
    box, _ = inbox(places=1)
    receive = come(box, push(A))
    box.announce(push(B))
    box.announce(push(C))
    box.disconnected(B)
    box.broken(receive)
    box.drop(A)
    assert box.next_room() == C


@pytest.mark.parametrize(
    ("header", "why"),
    [
        (push(A), None),
        (push(D), Refusal.UNKNOWN),
        (Push(A, 1, 1, 0, 8, 0), Refusal.STALE_GENERATION),
        (Push(A, 0, 1, 0, 4, 0), Refusal.SHAPE),
        (Push(A, 0, 1, 2, 4, 0), Refusal.SHAPE),
        (Push(A, 0, 1, -1, 4, 0), Refusal.SHAPE),
        (push(C), Refusal.SET_ASIDE),
    ],
)
def test_who_is_welcome(header: Push, why: Refusal | None) -> None:
    box, _ = inbox()
    assert box.unwelcome(header, 0, {C}) is why


def test_more_places() -> None:
    box, _ = inbox(places=1)
    box.grow(3)
    box.grow(2)
    assert box.free == 3
