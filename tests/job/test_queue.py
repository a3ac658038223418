"""A node's one place, and that two coordinators can never wait for each other."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from p2pnn.job.queue import Grant, PlaceQueue, Ticket, Wait
from p2pnn.types import JobId, NodeId


def ticket(job: str, generation: int = 1, node: str = "n") -> Ticket:
    return Ticket(JobId(job), generation, NodeId(node))


def test_the_first_is_granted_and_others_learn_behind_whom_they_wait() -> None:
    queue = PlaceQueue()
    assert queue.reserve(ticket("a")) == [Grant(ticket("a"))]
    assert queue.reserve(ticket("b")) == [Wait(ticket("b"), JobId("a"), 1)]
    assert queue.reserve(ticket("c"))[-1] == Wait(ticket("c"), JobId("a"), 2)
    assert queue.release(ticket("a")) == [Grant(ticket("b")), Wait(ticket("c"), JobId("b"), 1)]


def test_asking_again_is_harmless_and_a_new_start_replaces_the_old_one() -> None:
    queue = PlaceQueue()
    queue.reserve(ticket("a"))
    assert queue.reserve(ticket("a")) == [Grant(ticket("a"))]
    queue.reserve(ticket("b", 1))
    queue.reserve(ticket("b", 2))
    assert queue.waiting == [ticket("b", 2)]
    assert queue.release(ticket("a", 0)) == [Wait(ticket("b", 2), JobId("a"), 1)]
    assert queue.holder == ticket("a")


def test_starts_of_one_generation_by_two_coordinators_do_not_replace_each_other() -> None:
    queue = PlaceQueue()
    queue.reserve(ticket("a"))
    queue.reserve(ticket("b", 2, node="x"))
    queue.reserve(ticket("b", 2, node="y"))
    queue.reserve(ticket("b", 1, node="z"))
    assert [t.coordinator for t in queue.waiting] == ["x", "y", "z"]
    queue.reserve(ticket("b", 3, node="y"))
    assert queue.waiting == [ticket("b", 3, node="y")]


def test_a_lost_coordinator_is_forgotten() -> None:
    queue = PlaceQueue()
    queue.reserve(ticket("a", node="x"))
    queue.reserve(ticket("b", node="x"))
    queue.reserve(ticket("c", node="y"))
    assert queue.drop_coordinator(NodeId("x")) == [Grant(ticket("c", node="y"))]


def test_only_the_coordinator_that_asked_gives_the_place_back() -> None:
    queue = PlaceQueue()
    queue.reserve(ticket("a", node="x"))
    queue.reserve(ticket("b", node="x"))
    queue.release(ticket("a", 9, node="y"))
    queue.release(ticket("b", 9, node="y"))
    assert (queue.holder, queue.waiting) == (ticket("a", node="x"), [ticket("b", node="x")])


def test_the_queue_is_bounded() -> None:
    queue = PlaceQueue()
    for number in range(PlaceQueue.LENGTH_MAX + 10):
        queue.reserve(ticket(f"job-{number}"))
    assert len(queue.waiting) == PlaceQueue.LENGTH_MAX


@given(st.integers(0, 2**32))
def test_jobs_that_take_their_nodes_in_order_never_wait_for_each_other(seed: int) -> None:
    dice = random.Random(seed)
    places = [PlaceQueue() for _ in range(4)]
    wanted = {f"job-{j}": sorted(dice.sample(range(4), dice.randint(1, 4))) for j in range(6)}
    held: dict[str, list[int]] = {job: [] for job in wanted}
    asked: set[tuple[str, int]] = set()
    done: set[str] = set()
    for _ in range(1000):
        runnable = [j for j in wanted if j not in done]
        if not runnable:
            break
        job = dice.choice(runnable)
        missing = [n for n in wanted[job] if n not in held[job]]
        if not missing:
            for node in held[job]:
                places[node].release(ticket(job))
            done.add(job)
        else:
            if (job, missing[0]) not in asked:
                places[missing[0]].reserve(ticket(job))
                asked.add((job, missing[0]))
            if places[missing[0]].holder == ticket(job):
                held[job].append(missing[0])
    assert done == set(wanted)
