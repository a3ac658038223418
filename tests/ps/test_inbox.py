"""Pushes on their way in: in any order, at most a window of each worker, and taken in each worker's order."""

from __future__ import annotations

import numpy as np
import pytest

from p2pnn.ps.inbox import Inbox
from p2pnn.ps.messages import Push, Refusal, Worker
from p2pnn.ps.roster import Roster
from p2pnn.ps.staging import Staging
from tests.ps.network import workers_named

A, B, C, D = workers_named(4)


def inbox() -> tuple[Inbox, Roster]:
    roster = Roster([A, B, C])
    staging = Staging([8, 4], roster.workers, lambda worker, number: np.zeros(12, np.uint8))
    return Inbox([8, 4], roster, staging), roster


def push(worker: Worker, sequence: int = 1, part: int = 0) -> Push:
    return Push(worker, 0, sequence, part, (8, 4)[part], 0)


def come(box: Inbox, worker: Worker, sequence: int = 1) -> None:
    for part in (0, 1):
        assert box.arrived(push(worker, sequence, part)) is None


def ready(box: Inbox) -> list[tuple[Worker, int]]:
    found = box.ready(lambda worker: box._roster[worker].sequence + 1)
    return [(staged.header.worker, staged.header.sequence) for staged in found]


def test_parts_make_a_push_whole_in_any_order_and_once() -> None:
    box, _ = inbox()
    assert box.arrived(push(A, part=1)) is None
    assert box.arrived(push(A, part=1)) is None
    assert (ready(box), box.received_bytes) == ([], 4)
    assert box.arrived(push(A, part=0)) is None
    assert (ready(box), box.received_bytes, box.whole) == ([(A, 1)], 12, 1)
    (staged,) = box.ready(lambda worker: 1)
    assert box.get(A, 1) is staged
    assert box.get(A, 2) is None


def test_each_workers_pushes_are_taken_in_order_and_all_in_the_order_of_arrival() -> None:
    box, roster = inbox()
    come(box, A, 2)
    come(box, B)
    come(box, A, 1)
    assert ready(box) == [(B, 1), (A, 1)]
    assert box.arrived(push(A, 3)) is Refusal.GAP  # its slot is that of the first
    for staged in list(box.ready(lambda worker: 1)):
        roster.log(staged.header.worker, 1, None, 0.0)
        box.close(staged)
    assert ready(box) == [(A, 2)]
    assert box.arrived(push(A, 3)) is None
    assert box.arrived(push(A, 5)) is Refusal.GAP


def test_what_is_taken_into_a_round_waits_no_more_but_is_here() -> None:
    box, _ = inbox()
    come(box, A)
    (staged,) = box.ready(lambda worker: 1)
    box.take(staged)
    come(box, A)  # again
    assert (ready(box), box.workers) == ([], [A])
    box.close(staged)
    assert box.workers == []


def test_what_was_dropped_may_come_again() -> None:
    box, _ = inbox()
    come(box, A)
    come(box, A, 2)
    box.drop(A)
    assert (ready(box), box.whole, box.workers) == ([], 0, [])
    come(box, A)
    assert ready(box) == [(A, 1)]


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
