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


def test_a_start_has_one_place_whoever_coordinates_it_and_its_newest_coordinator_is_told() -> None:
    queue = PlaceQueue()
    queue.reserve(ticket("a", node="x"))
    assert [change.ticket.coordinator for change in queue.reserve(ticket("a", node="y"))] == ["y"]
    queue.reserve(ticket("b", 2, node="x"))
    queue.reserve(ticket("b", 2, node="y"))
    assert [t.coordinator for t in queue.waiting] == ["y"]
    [granted] = queue.release(ticket("a", node="z"))
    assert granted.ticket.coordinator == "y"


def test_a_new_coordinator_adopts_only_what_holds_the_place() -> None:
    queue = PlaceQueue()
    assert not queue.adopt(JobId("a"), 1, NodeId("y"))
    queue.reserve(ticket("a", 4, node="x"))
    queue.reserve(ticket("b", 1, node="x"))
    assert not queue.adopt(JobId("a"), 3, NodeId("y"))
    assert not queue.adopt(JobId("b"), 1, NodeId("y"))
    assert queue.adopt(JobId("a"), 4, NodeId("y"))
    assert queue.holder is not None
    assert queue.holder.coordinator == "y"
    assert queue.holder == ticket("a", 4)


def test_what_the_cluster_has_ended_or_replaced_is_forgotten() -> None:
    queue = PlaceQueue()
    for name, generation in (("a", 1), ("b", 2), ("c", 3), ("d", 9)):
        queue.reserve(ticket(name, generation))
    standing = {JobId("a"): 1, JobId("b"): 2, JobId("c"): 3}
    assert queue.fence(standing, 5) == [], "d is not decided yet as far as this node knows"
    changes = queue.fence({JobId("a"): 4, JobId("c"): 3}, 6)
    assert changes == [Grant(ticket("c", 3)), Wait(ticket("d", 9), JobId("c"), 1)]
    assert queue.fence({}, 3) == [Grant(ticket("d", 9))]
    assert queue.fence({JobId("d"): 10}, 10) == []
    assert queue.holder is None


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
