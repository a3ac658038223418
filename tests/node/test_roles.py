"""What a part knows of roles in its start, and how long it waits for the coordinator's word about a broken link."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from p2pnn.errors import CheckpointError
from p2pnn.job import assignment
from p2pnn.job.assignment import Assignment, committed, initial, without
from p2pnn.job.plan import Plan, ShardHome
from p2pnn.job.spec import DataParallel, JobSpec
from p2pnn.node import roles as module
from p2pnn.node.roles import ELECTION_S, FIRST_S, LINK_GRACE_S, SECOND_S, Roles
from p2pnn.types import NodeId
from tests.node.nodes import A, B, C, plan_of, plan_of_data, toy, toy_of_data


def replicated() -> Plan:
    spec, _ = toy_of_data(data=DataParallel())
    plan = plan_of_data(spec, [A, B, C], workers=(0, 1), homes=(0, 1))
    return msgspec.structs.replace(plan, shards=(ShardHome((0, 2)), ShardHome((1, 0))))


def roles_of(node: int, plan: Plan | None = None, spec: JobSpec | None = None) -> Roles:
    roles = Roles()
    roles.begin(plan or replicated(), 1, node, spec or toy_of_data(data=DataParallel())[0])
    return roles


def without_node(index: int, generation: int, before: Assignment | None = None) -> Assignment:
    spec, _ = toy_of_data(data=DataParallel())
    before = before or initial(replicated(), 1)
    after = without(before, replicated(), spec, index)
    assert after is not None
    return committed(before, after, generation)


def test_only_what_is_newer_is_taken_and_nothing_of_another_plan() -> None:
    roles = roles_of(0)
    assert roles.assignment == initial(replicated(), 1)
    assert not roles.take(assignment.encode(roles.assignment))
    first = without_node(1, 5)
    assert roles.take(assignment.encode(first))
    assert roles.is_gone(B)
    assert not roles.take(assignment.encode(initial(replicated(), 1)))
    assert roles.assignment == first
    assert roles.takes_part
    for data in (b"\xc1", assignment.encode(Assignment())):
        with pytest.raises(CheckpointError):
            roles.take(data)
    assert not Roles().take(assignment.encode(first)), "its plan is not known yet"


def test_who_is_left_out_knows_it() -> None:
    roles = roles_of(1)
    assert roles.take(assignment.encode(without_node(1, 5)))
    assert not roles.takes_part


def test_a_link_is_doubted_once_and_none_to_a_node_that_is_gone() -> None:
    roles = roles_of(0)
    assert roles.doubts(B)
    assert not roles.doubts(B)
    assert roles.take(assignment.encode(without_node(2, 5)))
    assert not roles.doubts(C)


def test_one_end_of_a_link_gives_up_first_and_never_the_one_that_coordinates() -> None:
    assert (roles_of(1).patience_s(C, A), roles_of(2).patience_s(B, A)) == (SECOND_S, FIRST_S)
    assert (roles_of(1).patience_s(A, C), roles_of(0).patience_s(B, C)) == (FIRST_S, SECOND_S)
    assert (roles_of(2).patience_s(A, C), roles_of(0).patience_s(C, C)) == (SECOND_S, ELECTION_S)
    spec, _ = toy()
    alone = roles_of(0, plan_of(spec, [A, B]), spec)
    assert alone.patience_s(B, A) == alone.patience_s(A, A) == LINK_GRACE_S
    assert Roles().patience_s(B, A) == LINK_GRACE_S


def test_without_replicas_a_word_is_waited_for_of_a_node_that_holds_no_shard() -> None:
    spec, _ = toy_of_data(data=DataParallel())
    plan = plan_of_data(spec, [A, B, C], workers=(1, 2), homes=(0,))
    assert (roles_of(1, plan, spec).patience_s(C, A), roles_of(1, plan, spec).patience_s(A, C)) == (
        SECOND_S,
        LINK_GRACE_S,
    )
    sync, _ = toy_of_data(data=DataParallel("sync"))
    assert roles_of(1, plan, sync).patience_s(C, A) == LINK_GRACE_S


@pytest.mark.asyncio
async def test_it_gives_up_unless_the_start_goes_on_without_the_other_and_waits_for_an_election(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("FIRST_S", "SECOND_S", "LOOK_S"):
        monkeypatch.setattr(module, name, 0.0)
    assert await roles_of(2).gives_up(B, lambda: A, lambda node: True)
    roles = roles_of(2)
    reachable: set[NodeId] = set()
    waiting = asyncio.ensure_future(roles.gives_up(B, lambda: A, reachable.__contains__))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not waiting.done(), "nobody could have said a word"
    assert roles.take(assignment.encode(without_node(1, 5)))
    reachable.add(A)
    assert not await waiting
    monkeypatch.setattr(module, "ELECTION_S", 0.0)
    assert await roles_of(2).gives_up(B, lambda: A, lambda node: False)
