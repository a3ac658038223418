"""The keeper of snapshots: whose cuts it takes, how many it keeps, to whom it sends its own, and when it forgets."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from p2pnn.executor.parts import Parts
from p2pnn.job.checkpoint import Part
from p2pnn.job.plan import Plan
from p2pnn.job.records import JobRecord, queued
from p2pnn.node import snapshots as module
from p2pnn.node.snapshots import HOLDINGS_MAX, WRITERS, Own, Snapshots
from p2pnn.train.cuts import CUTS_MAX, Places, places
from p2pnn.types import BlobId, JobId, NodeId
from p2pnn.wire import messages as wire
from tests.node.nodes import DEADLINE_S, JOB, NAMES, A, B, C, exchange, plan_of, post, stored, toy, until

pytestmark = pytest.mark.asyncio


class Bench:
    """Node B's keeper; a job runs on A and B, and C is a member beside them."""

    def __init__(self, folder: Path, here: NodeId = B) -> None:
        self.post, self.outside = post(here)
        self.exchange = exchange(folder, self.post)
        self.spec, blobs = toy()
        self.spec_blob = stored(self.spec, blobs, self.exchange.blobs)
        plan = plan_of(self.spec, [A, B])
        shares = tuple(msgspec.structs.replace(share, memory_bytes=100_000) for share in plan.nodes)
        self.plan = msgspec.structs.replace(plan, nodes=shares)
        record = queued(JOB, self.spec_blob, self.spec, A, "a", 0.0)
        self.record = msgspec.structs.replace(record, state="running", plan=self.plan, generation=7)
        self.members = dict(NAMES)
        self.coordinator = A
        obeys = lambda node: node == self.coordinator  # noqa: E731
        self.keeper = Snapshots(self.post, self.exchange, lambda: self.members, self.known, obeys)
        self.freed: list[int] = []

    def known(self, job: JobId) -> JobRecord | None:
        return self.record if job == JOB else None

    def places(self, index: int) -> Places:
        return places(self.spec, self.plan, index)

    def begin(self, index: int = 1, plan: Plan | None = None) -> Own:
        counter = memoryview(bytearray((12).to_bytes(8, "little")))
        found = self.places(index)
        return self.keeper.begin((JOB, 7, index), self.spec_blob, plan or self.plan, found, counter, self.freed.append)

    def hear(self, step: int, node: NodeId = A, index: int = 0, nbytes: int = 0, generation: int = 7) -> bool:
        """A snapshot comes; whether it was taken."""
        message = wire.Snapshot(JOB, generation, index, step)
        room = self.keeper.body_for(node, message, nbytes or self.places(index).nbytes)
        if room is None:
            return False
        room[:4] = step.to_bytes(4, "little")
        self.keeper.body(node, message)
        return True

    def held(self, generation: int = 7) -> set[tuple[int, int]]:
        self.outside.sent.clear()
        self.keeper.receive(A, wire.CutsWanted(JOB, generation, 1))
        (answer,) = self.outside.of(wire.CutsHeld)
        return set(zip(answer.indices, answer.steps, strict=True))


async def test_the_newest_few_of_a_buddys_cuts_are_kept(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    for step in range(1, CUTS_MAX + 4):
        assert bench.hear(step)
    assert bench.held() == {(0, step) for step in range(4, CUTS_MAX + 4)}
    assert bench.keeper.held_bytes == CUTS_MAX * bench.places(0).nbytes


@pytest.mark.parametrize(
    ("what", "changes"),
    [
        ("another start", {"generation": 6}),
        ("from who has not that part", {"node": C}),
        ("no part of the plan", {"index": 1}),
        ("larger than the plan says", {"nbytes": 100_001}),
    ],
)
async def test_what_nobody_should_send_takes_no_memory(tmp_path: Path, what: str, changes: dict[str, int]) -> None:
    bench = Bench(tmp_path)
    assert not bench.hear(4, **changes), what  # type: ignore[arg-type]
    assert bench.keeper.held_bytes == 0


async def test_no_more_is_kept_than_there_is_memory_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path)
    monkeypatch.setattr(module, "available_bytes", lambda: 100)
    assert not bench.hear(4)
    monkeypatch.undo()
    assert bench.hear(4)
    assert not bench.hear(5, nbytes=8), "a part does not change its size"


async def test_a_part_that_is_cut_off_on_its_way_is_none(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.hear(4)
    message = wire.Snapshot(JOB, 7, 0, 8)
    assert bench.keeper.body_for(A, message, bench.places(0).nbytes) is not None
    assert bench.keeper.body_for(A, message, bench.places(0).nbytes) is None, "one at a time"
    bench.keeper.member_lost(A)
    bench.keeper.body(A, message)
    assert bench.held() == {(0, 4)}
    assert bench.hear(12)


async def test_own_cuts_go_to_the_next_node_of_the_plan_and_give_their_slots_back(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    own = bench.begin()
    found = bench.places(1)
    for step in range(CUTS_MAX + 2):
        own.snapped(step, step % found.slots, memoryview(bytes(found.nbytes)))
    assert [(node, message) for node, message, _ in bench.outside.bodies] == [
        (A, wire.Snapshot(JOB, 7, 1, step)) for step in range(CUTS_MAX + 2)
    ]
    assert bench.freed == [0, 1]
    assert bench.held() == {(1, step) for step in range(2, CUTS_MAX + 2)}
    assert bench.outside.of(wire.CutsHeld)[0].step == 12
    assert own.take_seconds() > 0
    assert own.take_seconds() == 0


async def test_without_another_node_of_the_plan_any_other_member_is_the_buddy(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.outside.peers = {B, C}
    own = bench.begin()
    own.snapped(1, 0, memoryview(bytes(8)))
    assert [node for node, _, _ in bench.outside.bodies] == [C]
    bench.members = {B: "b"}
    own.snapped(2, 1, memoryview(bytes(8)))
    assert len(bench.outside.bodies) == 1
    bench.outside.peers = {A, B, C}
    assert (1, 2) in bench.held(), "there is nobody: it is kept here alone"


async def test_what_comes_while_one_is_sent_waits_and_gives_way_to_the_newest(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.outside.hold = asyncio.Event()
    own = bench.begin()
    for step in range(1, CUTS_MAX + 2):
        own.snapped(step, step - 1, memoryview(bytes(8)))
    await until(lambda: bench.outside.bodies)
    assert [message.step for _, message, _ in bench.outside.bodies] == [1]  # type: ignore[attr-defined]
    assert bench.freed == [], "the slot is still being sent"
    bench.outside.hold.set()
    await until(lambda: len(bench.outside.bodies) == 2)
    assert bench.outside.bodies[1][1] == wire.Snapshot(JOB, 7, 1, CUTS_MAX + 1)
    await until(lambda: bench.freed == [0])
    await bench.keeper.close()


async def test_they_go_when_the_job_has_ended_or_a_newer_start_of_it_runs(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.hear(4)
    bench.keeper.record_changed(bench.record)
    recovering = msgspec.structs.replace(bench.record, generation=8, state="recovering")
    bench.keeper.record_changed(recovering)
    assert bench.held() == {(0, 4)}, "the next start may still need them"
    bench.keeper.record_changed(msgspec.structs.replace(recovering, state="running"))
    assert bench.held() == set()
    bench.hear(8)
    bench.keeper.record_changed(msgspec.structs.replace(bench.record, state="done"))
    assert bench.keeper.held_bytes == 0


async def test_a_parked_job_does_not_wait_for_the_memory_of_its_own_cuts(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    own = bench.begin()
    arena = bytearray(8)
    own.snapped(4, 0, memoryview(arena))
    bench.hear(4)
    bench.keeper.record_changed(msgspec.structs.replace(bench.record, state="parked"))
    assert bench.keeper.held_bytes == 0
    arena.extend(b"more")  # raises BufferError while something still looks at it


async def test_a_slot_is_not_given_back_while_its_cut_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path)
    own = bench.begin()
    found = bench.places(1)
    reading, go_on = threading.Event(), threading.Event()

    def slow(*args: Any) -> Part:
        reading.set()
        assert go_on.wait(DEADLINE_S)
        return Part(BlobId("0" * 64), 4, bytes(32))

    monkeypatch.setattr(module, "write", slow)
    own.snapped(0, 0, memoryview(bytes(found.nbytes)))
    bench.keeper.receive(A, wire.PartWanted(JOB, 7, 1, 1, 0))
    try:
        await until(reading.is_set)
        for step in range(1, CUTS_MAX + 2):
            own.snapped(step, step, memoryview(bytes(found.nbytes)))
        assert bench.freed == [1], "that of step 0 is being read"
    finally:
        go_on.set()
    await until(lambda: bench.outside.of(wire.PartMade))
    assert bench.freed == [1, 0]
    await bench.keeper.close()


async def test_only_the_coordinator_has_parts_written_and_a_few_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path)
    bench.hear(4)
    bench.keeper.receive(C, wire.PartWanted(JOB, 7, 1, 0, 4))
    (refused,) = bench.outside.of(wire.PartMade, C)
    assert refused.error == "another node coordinates, as far as node b knows"
    fetching, go_on = 0, asyncio.Event()

    async def fetch(*args: Any, **kwargs: Any) -> None:
        nonlocal fetching
        fetching += 1
        await go_on.wait()

    monkeypatch.setattr(bench.exchange, "fetch", fetch)
    for request in range(HOLDINGS_MAX + 1):
        bench.keeper.receive(A, wire.PartWanted(JOB, 7, request, 0, 4))
    (full,) = bench.outside.of(wire.PartMade, A)
    assert full.error == f"node b writes {HOLDINGS_MAX} parts already; try again when they are done"
    await until(lambda: fetching > 0)
    assert fetching == WRITERS
    monkeypatch.setattr(module, "write", lambda *args: Part(BlobId("0" * 64), 4, bytes(32)))
    go_on.set()
    await until(lambda: len(bench.outside.of(wire.PartMade, A)) == HOLDINGS_MAX + 1)
    await bench.keeper.close()


async def test_a_cut_becomes_a_checkpoints_part(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    found = bench.places(0)
    numbers = np.arange(found.count, dtype="<f4")
    message = wire.Snapshot(JOB, 7, 0, 4)
    room = bench.keeper.body_for(A, message, found.nbytes)
    assert room is not None
    room[:] = numbers.tobytes()
    bench.keeper.body(A, message)
    bench.keeper.receive(A, wire.PartWanted(JOB, 7, 3, 0, 4))
    bench.keeper.receive(A, wire.PartWanted(JOB, 7, 4, 0, 5))
    await until(lambda: len(bench.outside.of(wire.PartMade)) == 2)
    made, missing = sorted(bench.outside.of(wire.PartMade), key=lambda answer: answer.request)
    assert missing.error == "it does not hold part 0 of the cut after step 5 any more"
    part = msgspec.msgpack.decode(made.part, type=Part)
    source = Parts(bench.exchange.blobs, [part.blob])
    for entry in (*found.named, *found.more):
        read = source.read(entry.name, entry.parameter.shape)
        np.testing.assert_array_equal(read.reshape(-1), numbers[entry.offset : entry.offset + entry.count])
    await bench.keeper.close()
