"""Taking nodes in order, also when the plan changes on the way."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from p2pnn.job.actions import ReleaseNode, ReserveNode
from p2pnn.job.queue import Grant, PlaceQueue, Ticket
from p2pnn.job.reservation import Reservation
from p2pnn.types import JobId, NodeId

A, B, C, D = (NodeId(c) for c in "abcd")


def test_nodes_are_asked_one_after_the_other_in_their_order() -> None:
    r = Reservation()
    assert r.want([C, A, B]) == [ReserveNode(A)]
    assert r.granted(A) == [ReserveNode(B)]
    assert r.granted(A) == []
    assert r.granted(B) == [ReserveNode(C)]
    assert not r.complete
    assert r.granted(C) == []
    assert r.complete


def test_a_place_that_is_not_wanted_is_given_back_at_once() -> None:
    r = Reservation()
    r.want([A, B])
    assert r.granted(D) == [ReleaseNode(D)]
    r.granted(A)
    assert r.want([B, C]) == [ReleaseNode(A)]  # B is still asked for
    assert r.granted(B) == [ReserveNode(C)]
    assert r.want([B]) == [ReleaseNode(C)]  # never granted, but it waits there
    assert r.complete


def test_nothing_behind_the_first_missing_node_is_held() -> None:
    r = Reservation()
    r.want([B, C])
    r.granted(B)
    assert r.want([A, B]) == [ReleaseNode(B), ReleaseNode(C), ReserveNode(A)]
    assert r.granted(A) == [ReserveNode(B)]


def test_lost_nodes_are_forgotten_and_the_rest_is_given_back() -> None:
    r = Reservation()
    r.want([A, B, C])
    r.granted(A)
    r.granted(B)
    r.lost(A)
    assert r.give_back() == [ReleaseNode(B), ReleaseNode(C)]
    assert r.give_back() == []
    r.want([A])
    r.lost(A)
    assert r.want([B]) == [ReserveNode(B)]


@given(st.integers(0, 2**32))
def test_jobs_whose_plans_change_never_wait_for_each_other(seed: int) -> None:
    """Nodes with real queues; now and then a plan changes. In the end every job has its nodes and gives them back."""
    dice = random.Random(seed)
    nodes = [A, B, C, D]
    places = {node: PlaceQueue() for node in nodes}
    jobs = {f"job-{n}": Reservation() for n in range(5)}
    done: set[str] = set()

    def do(job: str, actions: list[ReserveNode] | list[ReleaseNode] | list[ReserveNode | ReleaseNode]) -> None:
        ticket = Ticket(JobId(job), 1, NodeId(job))
        for action in actions:
            place = places[action.node]
            changes = place.reserve(ticket) if isinstance(action, ReserveNode) else place.release(ticket)
            for change in changes:
                if isinstance(change, Grant):
                    do(change.ticket.job, jobs[change.ticket.job].granted(action.node))

    for job, reservation in jobs.items():
        do(job, reservation.want(dice.sample(nodes, dice.randint(1, 4))))
    for turn in range(1000):
        left = [job for job in jobs if job not in done]
        if not left:
            break
        job = dice.choice(left)
        if jobs[job].complete:
            done.add(job)
            do(job, list(jobs[job].give_back()))
        elif turn < 20 and dice.random() < 0.3:
            do(job, jobs[job].want(dice.sample(nodes, dice.randint(1, 4))))
    assert done == set(jobs)
    assert all(place.holder is None and not place.waiting for place in places.values())
