"""The places of pushes and values: apart from each other, aligned, the same for daemon and executor, and enough for all."""

from __future__ import annotations

from functools import partial

import msgspec
import numpy as np
import pytest

from p2pnn.errors import LocalProtocolError, PlanError
from p2pnn.job.plan import Plan, Replica
from p2pnn.job.spec import DataParallel, JobSpec, Optimizer
from p2pnn.ps.compression import Bytes
from p2pnn.ps.consistency import settings
from p2pnn.ps.layout import (
    ALIGNMENT_BYTES,
    LANDINGS,
    WINDOW,
    Bump,
    Slots,
    server_layout,
    shardings_of,
    slot_of,
    window,
    worker_layout,
    workers_of,
)
from p2pnn.ps.messages import Pull, Push
from p2pnn.ps.shard import Shard
from p2pnn.ps.worker import Replica as WorkerReplica
from tests.ps.models import mlp
from tests.ps.network import plan_of

GRAPH = mlp(300, 200, inputs=100)


def spec_of(**data: object) -> JobSpec:
    return JobSpec("net", GRAPH, {}, data=DataParallel(**data))  # type: ignore[arg-type]


def one_server(workers: int, shards: int) -> Plan:
    """All shards on the node behind the workers."""
    plan = plan_of(workers, shards)
    home = msgspec.structs.replace(plan.shards[0])
    return msgspec.structs.replace(plan, shards=(home,) * shards)


WAYS = [
    {},
    {"push": "int8", "pull": "bf16"},
    {"push": "bf16", "pull": "int8", "consistency": "ssp:2"},
    {"push": "top:1", "pull": "top:1", "consistency": "sync", "backup": 1, "cut": "greedy"},
]


@pytest.mark.parametrize("data", WAYS)
def test_slots_are_apart_and_in_front(data: dict[str, object]) -> None:
    spec, plan = spec_of(**data), one_server(3, 2)
    layout = server_layout(spec, plan, 3)
    taken = np.zeros(layout.arena_bytes, np.uint8)
    for shard in (0, 1):
        parts = layout.sharding.shards[shard].parts
        for worker in range(3):
            for sequence in (5, 6):
                starts = []
                for part in range(len(parts)):
                    offset, nbytes = layout.slot(shard, worker, sequence, part)
                    assert not taken[offset : offset + nbytes].any()
                    taken[offset : offset + nbytes] = 1
                    starts.append(offset)
                    assert layout.slot(shard, worker, sequence + WINDOW, part) == (offset, nbytes)
                assert starts[0] % ALIGNMENT_BYTES == 0
    assert len(parts) > 1
    assert not taken[layout.rest :].any()
    assert taken[: layout.rest].mean() > 0.9


@pytest.mark.parametrize("data", WAYS)
def test_the_rest_is_enough_for_versions_and_answers_and_not_more(data: dict[str, object]) -> None:
    spec, plan = spec_of(**data), one_server(3, 2)
    assert spec.data is not None
    layout, names = server_layout(spec, plan, 3), workers_of(plan)
    arena = memoryview(bytearray(layout.arena_bytes))
    bump = Bump(arena, layout.rest, layout.arena_bytes)
    for shard in layout.sharding.shards:
        initial = np.zeros(shard.size, np.float32)
        slot = partial(slot_of, arena, layout.slots[shard.index])
        made = Shard(shard, initial, Optimizer(), settings(spec.data), names, slot=slot, buffer=bump)
        answers = []
        for name in names:
            made.pull(Pull(name, 0, 1), 0.0)
        while (answer := made.next_answer(0.0)) is not None:
            answers.append(answer)
            assert answer.values is not None
            offset, nbytes = bump.run(answer.values.data)
            assert layout.rest <= offset
            assert offset + nbytes <= layout.arena_bytes
        assert len(answers) == 3
    with pytest.raises(LocalProtocolError, match="the layout leaves 0 bytes where 1 are needed"):
        bump(1)


def test_a_push_in_its_slot_is_what_the_shard_applies() -> None:
    spec, plan = spec_of(), one_server(2, 1)
    assert spec.data is not None
    layout, names = server_layout(spec, plan, 2), workers_of(plan)
    arena = memoryview(bytearray(layout.arena_bytes))
    (shard,) = layout.sharding.shards
    made = Shard(
        shard,
        np.zeros(shard.size, np.float32),
        Optimizer("sgd", 1.0, schedule="constant"),
        settings(spec.data),
        names,
        slot=partial(slot_of, arena, layout.slots[0]),
        buffer=Bump(arena, layout.rest, layout.arena_bytes),
    )
    gradient = np.arange(shard.size, dtype=np.float32)
    for part in shard.parts:
        offset, nbytes = layout.slot(0, 1, 1, part.index)
        arena[offset : offset + nbytes] = gradient[part.start : part.stop].tobytes()
        made.arrived(Push(names[1], 0, 1, part.index, nbytes, 0), 0.0)
    assert made.work(0.0)
    assert np.array_equal(made.arrays["parameters"], -gradient)


@pytest.mark.parametrize("data", WAYS)
def test_landings_hold_values_whole_and_as_differences_and_bodies_fit_behind(data: dict[str, object]) -> None:
    spec, plan = spec_of(**data), plan_of(3, 2)
    assert spec.data is not None
    layout = worker_layout(spec, plan, 1, start=1000)
    assert layout.start == 1024
    end = layout.start
    for shard in layout.sharding.shards:
        for turn in range(LANDINGS):
            offset, nbytes = layout.landing(shard.index, turn)
            assert layout.landing(shard.index, turn + LANDINGS) == (offset, nbytes)
            assert offset % ALIGNMENT_BYTES == 0
            assert offset >= end
            assert nbytes >= max(layout.values[shard.index])
            end = offset + nbytes
        assert layout.values[shard.index][0] == 4 * shard.size
    assert end <= layout.bodies
    arena = memoryview(bytearray(layout.stop))
    bump = Bump(arena, layout.bodies, layout.stop)
    WorkerReplica(workers_of(plan)[1], layout.sharding, settings(spec.data), buffer=bump, optimizer=Optimizer())
    with pytest.raises(LocalProtocolError, match="the layout leaves"):
        bump(1)
    assert layout.nbytes == layout.stop - 1024
    with pytest.raises(LocalProtocolError, match="no shard 2"):
        layout.landing(2)


def test_a_node_that_serves_nothing_needs_nothing() -> None:
    layout = server_layout(spec_of(), plan_of(2, 2), 0)
    assert (layout.slots, layout.arena_bytes) == ({}, 0)
    with pytest.raises(LocalProtocolError, match="part 0 of a push of worker 0 to shard 0 has no place on this node"):
        layout.slot(0, 0, 1, 0)


def test_what_was_handed_out_is_found_again() -> None:
    bump = Bump(memoryview(bytearray(400)), 10, 400)
    made: list[Bytes] = [bump(5), bump(100)]
    assert [bump.run(data) for data in made] == [(64, 5), (128, 100)]
    assert bump.run(made[1][7:9]) == (135, 2)


def test_slots_of_parts() -> None:
    slots = Slots.of([8, 4, 1], 3, 64)
    assert (slots.nbytes, slots.stride, slots.stop) == (13, 64, 64 + 3 * 2 * 64)
    assert slots.place(2, 7, 1) == (64 + 5 * 64 + 8, 4)


def cut_plan(shards: int) -> Plan:
    """Two replicas of two nodes each: the first has the first layer."""
    first = {"fc0/weight", "fc0/bias"}
    assignment = tuple(int(not first & set(op.inputs)) for op in GRAPH.ops)
    plan = plan_of(4, shards)
    return msgspec.structs.replace(plan, assignment=assignment, replicas=(Replica((0, 1)), Replica((2, 3))))


def test_nodes_of_one_replica_have_places_for_the_shards_of_their_own_layers() -> None:
    spec, plan = spec_of(push="bf16"), cut_plan(3)
    whole, own = shardings_of(spec, plan)
    worked = [worker_layout(spec, plan, node) for node in range(4)]
    assert [set(layout.landings) for layout in worked] == [set(layout.landings) for layout in worked[2:]] * 2
    assert set(worked[0].landings) | set(worked[1].landings) == {0, 1, 2}
    assert not set(worked[0].landings) & set(worked[1].landings)
    assert sum(part.space.size for part in own) == whole.space.size
    for part in own:
        for shard in part.shards:
            assert worked[whole.segments[shard.index]].landing(shard.index)[1] == whole.shards[shard.index].byte_count


def test_what_cannot_be_cut_so_and_other_jobs_are_refused() -> None:
    with pytest.raises(PlanError, match=r"shards = 1, but a model replica has 2 segments.* take at least 2 shards"):
        shardings_of(spec_of(), cut_plan(1))
    idle = msgspec.structs.replace(cut_plan(2), assignment=(0,) * len(GRAPH.ops))
    with pytest.raises(PlanError, match="would have no parameters to train: cut the model over fewer nodes"):
        shardings_of(spec_of(), idle)
    with pytest.raises(PlanError, match="not data-parallel"):
        shardings_of(JobSpec("net", GRAPH, {}), plan_of(2, 1))


def test_shards_with_copies_have_twice_the_slots() -> None:
    assert (window(1), window(2), window(3)) == (WINDOW, 2 * WINDOW, 2 * WINDOW)
    slots = Slots.of([8, 4], 2, window=window(2))
    offsets = [slots.place(worker, sequence, 0)[0] for worker in (0, 1) for sequence in range(4)]
    assert offsets == [slots.stride * n for n in range(8)]
    assert slots.stop == 8 * slots.stride
    assert slots.place(0, 4, 1) == slots.place(0, 0, 1)


def test_a_backup_has_the_same_slots_as_the_primary_four_per_worker() -> None:
    plan = plan_of(2, 2)
    first, second = (home.nodes[0] for home in plan.shards)
    both = (
        msgspec.structs.replace(plan.shards[0], nodes=(first, second)),
        msgspec.structs.replace(plan.shards[1], nodes=(second, first)),
    )
    plan = msgspec.structs.replace(plan, shards=both)
    assert (plan.copies, plan.served_by(first), plan.served_by(second)) == (2, (0, 1), (0, 1))
    one, other = (server_layout(spec_of(), plan, node) for node in (first, second))
    assert one.slots == other.slots
    assert {slots.window for slots in one.slots.values()} == {window(2)}
    assert one.arena_bytes == other.arena_bytes
