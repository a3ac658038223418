"""How a part's memory is divided, and which plans are none."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from p2pnn.errors import PlanError, UsageError
from p2pnn.job.plan import Replica, ShardHome
from p2pnn.job.spans import RING_BYTES
from p2pnn.job.spec import DataParallel
from p2pnn.node import room as module
from p2pnn.node.room import check, divide
from p2pnn.ps.layout import worker_layout
from p2pnn.train.cuts import COUNTER_BYTES, places
from tests.node.nodes import A, B, C, plan_of, plan_of_data, toy, toy_of_data


def test_tensors_ring_counter_and_slots_lie_behind_each_other() -> None:
    spec, _ = toy()
    plan = plan_of(spec, [A, B])
    room, copies = divide(spec, plan, 1), places(spec, plan, 1)
    assert room.ring == room.tensors.arena_bytes
    assert room.counter >= room.ring + RING_BYTES
    assert room.counter % COUNTER_BYTES == 0
    assert room.slot(0) == (room.counter + COUNTER_BYTES, copies.nbytes)
    assert sum(room.slot(copies.slots - 1)) == room.nbytes


def test_a_worker_has_landing_places_behind_its_ring_and_no_snapshots() -> None:
    spec, _ = toy_of_data()
    plan = plan_of_data(spec, [A, B, C], workers=(0, 1), homes=(1, 2))
    room, found = divide(spec, plan, 1), worker_layout(spec, plan, 1, RING_BYTES)
    assert (room.ring, room.counter, room.snapshots) == (0, -1, None)
    assert (room.landings, room.nbytes) == (found.start, found.stop)
    assert room.landings >= RING_BYTES
    with pytest.raises(PlanError, match="4 parameter tensors"):
        divide(spec, plan_of_data(spec, [A], workers=(0,), homes=(0,) * 5), 0)


@pytest.mark.parametrize("why", ["switched off", "no training", "no memory"])
def test_without_snapshots_there_are_only_tensors_and_the_ring(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, _ = toy()
    if why == "switched off":
        spec = msgspec.structs.replace(spec, snapshot_steps=0)
    elif why == "no training":
        spec = msgspec.structs.replace(spec, kind="evaluate")
    else:
        monkeypatch.setattr(module, "available_bytes", lambda: 0)
    room = divide(spec, plan_of(spec, [A, B]), 0)
    assert room.snapshots is None
    assert room.counter == -1
    assert room.nbytes == room.ring + RING_BYTES


def test_a_plan_that_is_not_this_nodes_is_refused() -> None:
    spec, _ = toy()
    plan = plan_of(spec, [A, B])
    check(spec, plan, [A, B], 1, B)
    for nodes, index, here in (([B, A], 1, B), ([A, B], 0, B), ([A, B], 2, B), ([A], 0, A)):
        with pytest.raises(UsageError, match="does not fit the job's model and nodes"):
            check(spec, plan, nodes, index, here)
    with pytest.raises(UsageError):
        check(spec, msgspec.structs.replace(plan, assignment=plan.assignment[:-1]), [A, B], 1, B)


GOOD: dict[str, Any] = {"workers": (0, 1), "homes": (1, 2)}


@pytest.mark.parametrize(
    "changes",
    [
        {"replicas": ()},
        {"shards": ()},
        {"replicas": (Replica((0,)), Replica((0,)))},
        {"replicas": (Replica((0,)), Replica((3,)))},
        {"replicas": (Replica((-1,)), Replica((1,)))},
        {"replicas": (Replica(()), Replica(()))},
        {"replicas": (Replica((0, 2)), Replica((1,)))},
        {"shards": (ShardHome((1,)), ShardHome((3,)))},
        {"shards": (ShardHome((1,)), ShardHome(()))},
        {"shards": (ShardHome((1, 1)), ShardHome((2,)))},
        {"shards": (ShardHome((1,)), ShardHome((0,)))},  # node 2 has nothing to do
        {"assignment": (1,)},
    ],
)
def test_roles_that_make_no_data_parallel_run_are_refused(changes: dict[str, Any]) -> None:
    spec, _ = toy_of_data()
    plan = plan_of_data(spec, [A, B, C], **GOOD)
    check(spec, plan, [A, B, C], 1, B)
    if "assignment" in changes:
        changes = {"assignment": changes["assignment"] * len(spec.graph.ops)}
    with pytest.raises(UsageError, match="does not fit the job's model and nodes"):
        check(spec, msgspec.structs.replace(plan, **changes), [A, B, C], 1, B)


def test_roles_and_specs_go_together() -> None:
    spec, _ = toy_of_data()
    plan = plan_of_data(spec, [A, B, C], **GOOD)
    for job, cut in ((toy()[0], plan), (spec, plan_of(spec, [A, B, C]))):
        with pytest.raises(UsageError, match="does not fit"):
            check(job, cut, [A, B, C], 1, B)
    uneven, _ = toy_of_data(data=DataParallel("sync"), batch_size=15, micro_batches=3)
    with pytest.raises(UsageError, match="multiple of 2"):
        check(uneven, plan, [A, B, C], 1, B)
