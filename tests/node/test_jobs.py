"""Jobs that a node coordinates: what it tells its peers, and whom it believes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from p2pnn.errors import CheckpointError, NotFoundError, UsageError
from p2pnn.job import records as codec
from p2pnn.job import script, watch
from p2pnn.job.checkpoint import Manifest, Part
from p2pnn.job.plan import Plan
from p2pnn.job.spec import JobSpec
from p2pnn.node import jobs as jobs_module
from p2pnn.node import parcels
from p2pnn.node.jobs import Jobs
from p2pnn.node.storage import Storage
from p2pnn.types import BlobId, NodeId
from p2pnn.wire import messages as wire
from tests.node.nodes import A, B, C, exchange, plan_of, post, stored, toy, until

pytestmark = pytest.mark.asyncio


class FakePlanning:
    def __init__(self) -> None:
        self.nodes = [A, B]
        self.asked = 0

    async def plan(self, spec: JobSpec) -> Plan:
        self.asked += 1
        return plan_of(spec, self.nodes)


class Bench:
    """Node A, which coordinates; B is in the plan, C a member beside it. Nobody answers but the test."""

    def __init__(self, folder: Path) -> None:
        self.post, self.outside = post(A)
        self.storage = Storage(folder / "state")
        self.exchange = exchange(folder / "state", self.post)
        self.members = {A: "a", B: "b", C: "c"}
        self.planning = FakePlanning()
        self.jobs = Jobs(self.post, self.storage, self.exchange, self.planning, lambda: self.members)  # type: ignore[arg-type]
        self.spec, blobs = toy()
        self.spec_blob = stored(self.spec, blobs, self.exchange.blobs)

    def hear(self, node: NodeId, message: wire.Message) -> None:
        self.jobs.receive(node, message)

    async def submitted(self) -> str:
        return await self.jobs.submit(self.spec_blob)

    async def running(self) -> str:
        job = await self.submitted()
        for node in (A, B):
            self.hear(node, wire.Granted(job, 1))
        for node in (A, B):
            self.hear(node, wire.Prepared(job, 1, 10))
        assert self.jobs.get(job).state == "running"
        return job

    def state(self, job: str) -> str:
        return self.jobs.get(job).state

    async def close(self) -> None:
        await self.jobs.close("node a was stopped")
        self.storage.close()


async def test_nodes_are_reserved_in_the_order_of_their_ids_and_then_prepared(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    job = await bench.submitted()
    await asyncio.sleep(0)  # messages to the node itself go by the loop
    assert bench.outside.of(wire.Reserve) == [wire.Reserve(job, 1, "made")]
    assert [n for n, m in bench.outside.sent if isinstance(m, wire.Reserve)] == [A]
    bench.hear(A, wire.Granted(job, 1))
    assert [n for n, m in bench.outside.sent if isinstance(m, wire.Reserve)] == [A, B]
    bench.hear(B, wire.Waiting(job, 1, "other-1", 2))
    assert bench.outside.of(wire.Prepare) == []
    bench.hear(B, wire.Granted(job, 1))
    await asyncio.sleep(0)
    first, second = sorted(bench.outside.of(wire.Prepare), key=lambda message: message.index)
    assert (first.index, second.index) == (0, 1)
    assert first.nodes == (A, B)
    assert msgspec.msgpack.decode(first.plan, type=Plan) == bench.jobs.get(job).plan
    assert bench.state(job) == "preparing"
    told = [codec.decode(m.record, "x").state for m in bench.outside.of(wire.Record, C)]
    assert told[-1] == "preparing"
    kept = bench.outside.of(wire.Keep)
    assert kept, "what only the coordinator has gets its second copy"
    await bench.close()


async def test_messages_of_another_start_or_from_no_node_of_the_plan_change_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    job = await bench.submitted()
    before = bench.jobs.get(job)
    bench.hear(C, wire.Granted(job, 1))
    bench.hear(B, wire.Granted(job, 7))
    bench.hear(B, wire.Granted("nothing-1", 1))
    releases = [(n, m.job, m.generation) for n, m in bench.outside.sent if isinstance(m, wire.Release)]
    assert releases == [(C, job, 1), (B, job, 7), (B, "nothing-1", 1)]
    for message in (
        wire.Waiting(job, 2, "other-1", 1),
        wire.Preparing(job, 2, 1, 2),
        wire.Prepared(job, 2, 1),
        wire.JobFailed(job, 2, "late"),
        wire.Report(job, 2, b"\xc1"),
    ):
        bench.hear(B, message)
    for message in (
        wire.JobFailed(job, 1, "not mine"),
        wire.Report(job, 1, b"\x93\x19\x01\xc4\x00"),
        wire.Kept(job, 1),
    ):
        bench.hear(C, message)
    assert bench.jobs.get(job) == before
    await bench.close()


async def test_answers_of_strangers_do_not_count_and_nonsense_fails_the_job(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    job = await bench.running()
    trains = bench.outside.of(wire.Command, B)
    done = [msgspec.msgpack.encode(script.Done(sequence)) for sequence in range(1, len(trains) + 1)]
    for node in (B, C):
        for data in done:
            bench.hear(node, wire.Report(job, 1, data))
    assert bench.outside.of(wire.Command, B) == trains
    for data in done:
        bench.hear(A, wire.Report(job, 1, data))
    last = bench.outside.of(wire.Command, B)[-1]
    assert isinstance(msgspec.msgpack.decode(last.command, type=script.Command), script.Evaluate)
    bench.hear(B, wire.Report(job, 1, b"\xc1"))
    assert bench.state(job) == "failed"
    assert "node b: its report cannot be read" in bench.jobs.get(job).reason
    await asyncio.sleep(0)
    assert {n for n, m in bench.outside.sent if isinstance(m, wire.Release)} == {A, B}
    await bench.close()


async def test_a_report_that_comes_as_a_parcel_is_fetched(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    job = await bench.running()
    trains = bench.outside.of(wire.Command, B)
    for sequence in range(1, len(trains) + 1):
        small = msgspec.msgpack.encode(script.Done(sequence))
        bench.hear(A, wire.Report(job, 1, small))
        if sequence < len(trains):
            bench.hear(B, wire.Report(job, 1, small))
    large = msgspec.msgpack.encode(script.Done(len(trains), bytes(100_000)))
    bench.hear(B, wire.Report(job, 1, parcels.pack(large, bench.exchange.blobs)))
    await until(lambda: len(bench.outside.of(wire.Command, B)) > len(trains))
    bench.outside.peers.clear()
    bench.hear(B, wire.Report(job, 1, msgspec.msgpack.encode("0" * 64)))
    await until(lambda: bench.state(job) == "failed")
    assert "its report cannot be had" in bench.jobs.get(job).reason
    await bench.close()


async def test_jobs_that_lose_a_node_are_planned_again_whether_they_run_or_wait(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    running, queued = await bench.running(), await bench.submitted()
    del bench.members[B]
    bench.planning.nodes = [A, C]
    bench.jobs.member_lost(B, "connection reset")
    bench.jobs.member_failed(B, "no process listens there")
    assert bench.state(running) == "recovering"
    assert bench.jobs.get(running).reason == "node b is lost (connection reset)"
    await until(lambda: bench.outside.of(wire.CutsWanted))
    for node in (A, C):
        bench.hear(node, wire.CutsHeld(running, 1, 1 + (node == C), 0, (), ()))
    await until(lambda: bench.planning.asked == 4)
    await until(
        lambda: [s.name for s in (bench.jobs.get(running).plan or plan_of(bench.spec, [A])).nodes] == ["a", "c"]
    )
    assert bench.jobs.get(running).generation == 2
    await until(lambda: [s.name for s in (bench.jobs.get(queued).plan or plan_of(bench.spec, [A])).nodes] == ["a", "c"])
    await bench.close()


async def test_jobs_of_a_lost_coordinator_can_be_resumed_here_with_all_that_it_takes(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    part = bench.exchange.blobs.put(b"part")
    manifest = Manifest("toy-9", bench.spec_blob, 6, 1, (Part(part, 4, bytes(32)),))  # type: ignore[arg-type]
    record = codec.JobRecord(
        "toy-9", "toy", "train", bench.spec_blob, "running", C, "c", 3, 5, checkpoints=(manifest,), history=({"epoch": 1.0},)  # type: ignore[arg-type]
    )  # fmt: skip
    bench.hear(C, wire.Record("toy-9", 3, 5, codec.encode(record)))
    with pytest.raises(UsageError, match="a job that is running cannot resume"):
        await bench.jobs.resume("toy-9")
    followed = asyncio.ensure_future(_all(bench.jobs.events("toy-9", 0)))
    await asyncio.sleep(0)
    with pytest.raises(UsageError, match="coordinated by node c; ask its daemon"):
        bench.jobs.cancel("toy-9")
    del bench.members[C]
    bench.jobs.member_failed(C, "connection reset")
    assert "node c, which coordinated it, is gone: connection reset" in bench.jobs.get("toy-9").reason
    assert [e.get("state") or e.get("epoch") for e in await followed] == [1, "running", "failed"]
    assert [e["state"] async for e in bench.jobs.events("toy-9", 0) if e["kind"] == "state"] == ["failed"]
    assert bench.jobs.journal("toy-9").number == 0, "what happens to jobs of others is not written down here"  # type: ignore[arg-type]
    await bench.jobs.resume("toy-9")
    again = bench.jobs.get("toy-9")
    assert (again.state, again.generation, again.coordinator, again.step, again.epoch) == ("queued", 4, A, 6, 1)
    for node in (A, B):
        bench.hear(node, wire.Granted("toy-9", 4))
    assert msgspec.msgpack.decode(bench.outside.of(wire.Prepare)[0].checkpoint, type=Manifest) == manifest
    bench.hear(C, wire.Record("toy-9", 3, 9, codec.encode(msgspec.structs.replace(record, revision=9))))
    assert bench.state("toy-9") == "preparing"
    elsewhere = msgspec.structs.replace(record, generation=5, revision=0, coordinator=B, coordinator_name="b")
    bench.hear(B, wire.Record("toy-9", 5, 0, codec.encode(elsewhere)))  # B has resumed it: this start is over
    assert bench.jobs.get("toy-9").coordinator == B
    assert wire.Release("toy-9", 4) in bench.outside.of(wire.Release)
    await bench.close()


async def test_a_job_resumed_at_two_peers_at_once_goes_on_at_one(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    job = await bench.running()
    ours = bench.jobs.get(job)
    larger = msgspec.structs.replace(ours, coordinator=B, coordinator_name="b", revision=99)
    bench.hear(B, wire.Record(job, 1, 99, codec.encode(larger)))
    assert bench.jobs.get(job) == ours
    zero = NodeId("0" * 32)
    bench.members[zero] = "z"
    smaller = msgspec.structs.replace(ours, coordinator=zero, coordinator_name="z", revision=0)
    bench.hear(zero, wire.Record(job, 1, 0, codec.encode(smaller)))
    assert bench.jobs.get(job) == smaller
    await asyncio.sleep(0)
    assert {n for n, m in bench.outside.sent if isinstance(m, wire.Release)} == {A, B}
    bench.hear(B, wire.Record(job, 1, 99, codec.encode(larger)))
    assert bench.jobs.get(job) == smaller
    await bench.close()


async def test_a_node_that_hangs_fails_the_job_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path)
    job = await bench.running()
    hanging = await bench.submitted()
    monkeypatch.setattr(watch, "LIMIT_S", 0.02)
    for node in (A, B):
        bench.hear(node, wire.Granted(hanging, 1))
    await until(lambda: bench.state(hanging) == "failed")
    assert "its preparing has not moved for 0 s" in bench.jobs.get(hanging).reason
    assert bench.state(job) == "running"
    await bench.close()


async def test_who_is_overdue_when_this_process_stood_still_may_still_speak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path)
    await bench.running()
    monkeypatch.setattr(jobs_module, "LATE_S", 0.05)
    monkeypatch.setattr(watch, "FACTOR", 0.0)  # else A's long silence would earn B a longer one
    job = await bench.submitted()
    for node in (A, B):
        bench.hear(node, wire.Granted(job, 1))
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(bench.jobs, "_now", lambda: loop.time() + 1000)  # as if it had stood still so long
    bench.jobs._timers[job].cancel()
    bench.jobs._handle_timer(job)
    assert bench.state(job) == "preparing"
    second = bench.jobs._timers[job]
    bench.hear(A, wire.Preparing(job, 1, 1, 2))
    assert bench.jobs._timers[job] is second, "what others say must not put the second look off"
    await until(lambda: bench.state(job) == "failed")
    await bench.close()


async def test_cancel_and_pause_are_asked_of_the_node_that_coordinates(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    record = codec.JobRecord("toy-9", "toy", "train", bench.spec_blob, "running", C, "c", 3)  # type: ignore[arg-type]
    bench.hear(C, wire.Record("toy-9", 3, 0, codec.encode(record)))
    asking = asyncio.ensure_future(bench.jobs.ask("toy-9", "pause"))
    await until(lambda: bench.outside.of(wire.Ask))
    assert bench.outside.of(wire.Ask, C) == [wire.Ask(1, "toy-9", "pause")]
    bench.hear(C, wire.Answered(1, "pausing"))
    assert await asking == "pausing"
    job = await bench.submitted()
    bench.hear(B, wire.Ask(8, job, "cancel"))
    assert bench.outside.of(wire.Answered, B) == [wire.Answered(8, "cancelled")]
    bench.hear(B, wire.Ask(9, "toy-9", "cancel"))
    assert "coordinated by node c; ask its daemon" in bench.outside.of(wire.Answered, B)[1].error
    await bench.close()


async def test_a_paused_job_of_a_lost_coordinator_can_be_cancelled_anywhere(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    record = codec.JobRecord("toy-9", "toy", "train", bench.spec_blob, "paused", C, "c", 3, 5)  # type: ignore[arg-type]
    bench.hear(C, wire.Record("toy-9", 3, 5, codec.encode(record)))
    del bench.members[C]
    bench.jobs.member_failed(C, "connection reset")
    assert await bench.jobs.ask("toy-9", "cancel") == "cancelled"
    told = codec.decode(bench.outside.of(wire.Record, B)[-1].record, "x")
    assert (told.state, told.coordinator, told.version) == ("cancelled", A, (4, 0))
    await bench.close()


async def test_a_job_whose_spec_is_nowhere_cannot_be_resumed(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    record = codec.JobRecord("toy-9", "toy", "train", BlobId("0" * 64), "failed", C, "c", 1)  # type: ignore[arg-type]
    bench.hear(C, wire.Record("toy-9", 1, 0, codec.encode(record)))
    bench.outside.peers.clear()
    with pytest.raises(CheckpointError, match="its specification is gone"):
        await bench.jobs.resume("toy-9")
    await bench.close()


async def test_pause_cancel_and_unknown_jobs(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    for ask in (bench.jobs.get, bench.jobs.cancel, bench.jobs.pause, lambda job: bench.jobs.events(job, 0)):
        with pytest.raises(NotFoundError, match="no job 'nothing-1'"):
            ask("nothing-1")
    job = await bench.submitted()
    assert bench.jobs.pause(job) == "paused"
    with pytest.raises(UsageError, match="paused cannot pause"):
        bench.jobs.pause(job)
    assert bench.jobs.cancel(job) == "cancelled"
    with pytest.raises(UsageError, match="cancelled cannot cancel"):
        bench.jobs.cancel(job)
    kinds = [e["state"] async for e in bench.jobs.events(job, 0) if e["kind"] == "state"]
    assert kinds == ["queued", "paused", "cancelled"]
    await bench.close()


@pytest.mark.parametrize("remove", ["chunk", "spec"])
async def test_a_job_whose_data_is_not_here_is_not_submitted(tmp_path: Path, remove: str) -> None:
    bench = Bench(tmp_path)
    assert bench.spec.train is not None
    chunk = bench.spec.train.dataset.columns[0].chunks[0].blob
    bench.exchange.blobs.remove(chunk if remove == "chunk" else bench.spec_blob)
    with pytest.raises(Exception, match="1 data chunks of the job are not" if remove == "chunk" else "is not here"):
        await bench.submitted()
    assert bench.jobs.records == {}
    await bench.close()


async def test_stopping_fails_the_jobs_with_what_to_do_and_a_restart_finds_them(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    job = await bench.running()
    followed = asyncio.ensure_future(_all(bench.jobs.events(job, 0)))
    await bench.close()
    assert f"node a was stopped; go on with `p2pnn jobs resume {job}`" in (await followed)[-1]["reason"]
    again = Bench(tmp_path)
    assert again.state(job) == "failed"
    queued = await again.submitted()
    again.storage.close()  # as if killed
    third = Bench(tmp_path)
    third.jobs.fail_orphans()
    assert "node a was restarted" in third.jobs.get(queued).reason
    await third.close()


async def _all(events: Any) -> list[dict[str, Any]]:
    return [event async for event in events]
