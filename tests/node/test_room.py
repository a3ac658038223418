"""How a part's memory is divided, and which plans are none."""

from __future__ import annotations

import msgspec
import pytest

from p2pnn.errors import UsageError
from p2pnn.job.spans import RING_BYTES
from p2pnn.node import room as module
from p2pnn.node.room import check, divide
from p2pnn.train.cuts import COUNTER_BYTES, places
from tests.node.nodes import A, B, plan_of, toy


def test_tensors_ring_counter_and_slots_lie_behind_each_other() -> None:
    spec, _ = toy()
    plan = plan_of(spec, [A, B])
    room, copies = divide(spec, plan, 1), places(spec, plan, 1)
    assert room.ring == room.tensors.arena_bytes
    assert room.counter >= room.ring + RING_BYTES
    assert room.counter % COUNTER_BYTES == 0
    assert room.slot(0) == (room.counter + COUNTER_BYTES, copies.nbytes)
    assert sum(room.slot(copies.slots - 1)) == room.nbytes


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
