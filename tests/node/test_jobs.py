"""What a person asks of jobs at a node, whoever coordinates."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from p2pnn.errors import CheckpointError, NotFoundError, UsageError
from p2pnn.job import records as codec
from p2pnn.job import script
from p2pnn.job.checkpoint import Manifest, Part
from p2pnn.job.plan import Plan
from p2pnn.job.spec import JobSpec
from p2pnn.node import coordinator as coordinator_module
from p2pnn.node import succession
from p2pnn.node.jobs import Jobs
from p2pnn.node.storage import Storage
from p2pnn.types import BlobId, JobId, NodeId
from p2pnn.wire import messages as wire
from tests.node.nodes import A, B, C, FakeCluster, exchange, plan_of, post, stored, toy, until

pytestmark = pytest.mark.asyncio


class FakePlanning:
    def __init__(self, members: dict[NodeId, str]) -> None:
        self.nodes = [A, B]
        self.asked = 0
        self.draining: set[NodeId] = set()
        self.members = members

    def usable(self) -> dict[NodeId, str]:
        return {node: name for node, name in self.members.items() if node not in self.draining}

    def asked_to_drain(self, node: NodeId) -> None:
        self.draining.add(node)

    def cannot_drain(self, node: NodeId) -> None:
        self.draining.discard(node)

    async def plan(self, spec: JobSpec, *, compared: bool = True) -> Plan:
        self.asked += 1
        return plan_of(spec, self.nodes)


class Bench:
    """Node A, which coordinates; B is in the plan, C a member beside it. Nobody answers but the test."""

    def __init__(self, folder: Path, cluster: FakeCluster | None = None) -> None:
        self.post, self.outside = post(A)
        self.storage = Storage(folder / "state")
        self.exchange = exchange(folder / "state", self.post)
        self.members = {A: "a", B: "b", C: "c"}
        self.planning = FakePlanning(self.members)
        self.cluster = cluster or FakeCluster(A)
        self.jobs = Jobs(
            self.post, self.storage, self.exchange, self.planning, lambda: self.members, self.cluster  # type: ignore[arg-type]
        )  # fmt: skip
        self.cluster.committed = self.jobs.charter_committed
        self.cluster.changed = self.jobs.coordinator_changed
        self.cluster.commit()
        self.spec, blobs = toy()
        self.spec_blob = stored(self.spec, blobs, self.exchange.blobs)

    def hear(self, node: NodeId, message: wire.Message) -> None:
        self.jobs.receive(node, message)

    async def submitted(self) -> str:
        return await self.jobs.submit(self.spec_blob)

    async def running(self) -> str:
        job = await self.submitted()
        generation = self.jobs.get(job).generation
        for node in (A, B):
            self.hear(node, wire.Granted(job, generation))
        for node in (A, B):
            self.hear(node, wire.Prepared(job, generation, 10))
        assert self.jobs.get(job).state == "running"
        return job

    def commands(self, node: NodeId) -> list[script.Command]:
        """All that the node was told, in this order."""
        sent = [
            msgspec.msgpack.decode(m.commands, type=list[script.Command]) for m in self.outside.of(wire.Command, node)
        ]
        return [command for commands in sent for command in commands]

    def state(self, job: str) -> str:
        return self.jobs.get(job).state

    async def close(self) -> None:
        await self.jobs.close()
        self.storage.close()


async def test_a_job_whose_spec_is_nowhere_cannot_be_resumed(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    record = codec.JobRecord("toy-9", "toy", "train", BlobId("0" * 64), "failed", C, "c", 1)  # type: ignore[arg-type]
    bench.hear(C, wire.Record("toy-9", 1, 0, codec.encode(record)))
    bench.outside.peers.clear()
    with pytest.raises(CheckpointError, match="its specification is gone"):
        await bench.jobs.ask("toy-9", "resume")
    await bench.close()


async def test_pause_cancel_and_unknown_jobs(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    for ask in (bench.jobs.get, lambda job: bench.jobs.events(job, 0)):
        with pytest.raises(NotFoundError, match="no job 'nothing-1'"):
            ask("nothing-1")
    for verb in ("pause", "cancel", "resume"):
        with pytest.raises(NotFoundError, match="no job 'nothing-1'"):
            await bench.jobs.ask("nothing-1", verb)
    job = await bench.submitted()
    with pytest.raises(UsageError, match="queued cannot resume"):
        await bench.jobs.ask(job, "resume")
    assert await bench.jobs.ask(job, "pause") == "paused"
    with pytest.raises(UsageError, match="paused cannot pause"):
        await bench.jobs.ask(job, "pause")
    assert await bench.jobs.ask(job, "cancel") == "cancelled"
    with pytest.raises(UsageError, match="cancelled cannot cancel"):
        await bench.jobs.ask(job, "cancel")
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


async def test_what_is_asked_here_is_passed_on_to_the_coordinator(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    record = codec.JobRecord(JobId("toy-9"), "toy", "train", bench.spec_blob, "running", C, "c", 3)
    bench.cluster.elect(C)
    bench.hear(C, wire.Record("toy-9", 3, 0, codec.encode(record)))
    asking = asyncio.ensure_future(bench.jobs.ask("toy-9", "pause"))
    await until(lambda: bench.outside.of(wire.Ask))
    assert bench.outside.of(wire.Ask, C) == [wire.Ask(1, "toy-9", "pause")]
    bench.hear(C, wire.Answered(1, "pausing"))
    assert await asking == "pausing"
    with pytest.raises(UsageError, match="running cannot resume"):
        await bench.jobs.ask("toy-9", "resume")
    await bench.close()


async def test_a_job_is_submitted_to_the_coordinator_which_fetches_its_spec_here(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.cluster.elect(C)
    submitting = asyncio.ensure_future(bench.submitted())
    await until(lambda: bench.outside.of(wire.Ask, C))
    [question] = bench.outside.of(wire.Ask, C)
    assert (question.verb, question.blob) == ("submit", bench.spec_blob)
    record = codec.JobRecord(question.job, "toy", "train", bench.spec_blob, "queued", C, "c", 1)
    bench.hear(C, wire.Answered(question.request, "queued"))
    await asyncio.sleep(0)
    assert not submitting.done(), "whoever submits wants to follow it at once"
    bench.hear(C, wire.Record(question.job, 1, 0, codec.encode(record)))
    assert await submitting == question.job
    await bench.close()


async def test_the_next_coordinator_is_asked_where_one_is_replaced_meanwhile(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.cluster.elect(C)
    record = codec.JobRecord(JobId("toy-9"), "toy", "train", bench.spec_blob, "running", C, "c", 3)
    bench.hear(C, wire.Record("toy-9", 3, 0, codec.encode(record)))
    asking = asyncio.ensure_future(bench.jobs.ask("toy-9", "cancel"))
    await until(lambda: bench.outside.of(wire.Ask, C))
    bench.cluster.elect(B)
    bench.jobs.member_lost(C, "connection reset")
    await until(lambda: bench.outside.of(wire.Ask, B))
    [question] = bench.outside.of(wire.Ask, B)
    bench.cluster.elect(C)
    bench.hear(B, wire.Answered(question.request, "again", "node b does not coordinate any more"))
    await until(lambda: len(bench.outside.of(wire.Ask, C)) == 2)
    bench.hear(C, wire.Answered(bench.outside.of(wire.Ask, C)[1].request, "cancelled"))
    assert await asking == "cancelled"
    await bench.close()


async def test_a_coordinator_does_what_peers_pass_on(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.hear(B, wire.Ask(7, "toy-7", "submit", bench.spec_blob))
    await until(lambda: bench.outside.of(wire.Answered, B))
    assert bench.outside.of(wire.Answered, B) == [wire.Answered(7, "queued")]
    assert bench.state("toy-7") == "queued"
    bench.hear(B, wire.Ask(8, "toy-7", "submit", bench.spec_blob))  # again: the answer was lost
    await until(lambda: len(bench.outside.of(wire.Answered, B)) == 2)
    assert bench.outside.of(wire.Answered, B)[1] == wire.Answered(8, "queued")
    assert bench.planning.asked == 1
    bench.hear(B, wire.Ask(9, "toy-7", "cancel"))
    await until(lambda: len(bench.outside.of(wire.Answered, B)) == 3)
    assert bench.outside.of(wire.Answered, B)[2] == wire.Answered(9, "cancelled")
    bench.hear(B, wire.Ask(10, "toy-7", "cancel"))
    await until(lambda: len(bench.outside.of(wire.Answered, B)) == 4)
    assert bench.outside.of(wire.Answered, B)[3] == wire.Answered(10, "cancelled")
    bench.hear(B, wire.Ask(11, "toy-7", "resume"))
    await until(lambda: len(bench.outside.of(wire.Answered, B)) == 5)
    bench.hear(B, wire.Ask(12, "toy-7", "resume"))
    await until(lambda: len(bench.outside.of(wire.Answered, B)) == 6)
    assert [m.state for m in bench.outside.of(wire.Answered, B)[4:]] == ["queued", "queued"]
    bench.cluster.elect(C)
    bench.hear(B, wire.Ask(13, "toy-7", "resume"))
    await until(lambda: len(bench.outside.of(wire.Answered, B)) == 7)
    assert bench.outside.of(wire.Answered, B)[6].state == "again"
    await bench.close()


async def test_without_a_coordinator_nothing_is_done_and_it_is_said_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator_module, "ELECTION_S", 0.02)
    bench = Bench(tmp_path)
    bench.cluster.elect(None)
    with pytest.raises(UsageError, match="no coordinator was elected"):
        await bench.submitted()
    bench.cluster.elect(C)
    bench.outside.peers.discard(C)  # elected, but not to be reached from here
    with pytest.raises(UsageError, match="no coordinator was elected"):
        await bench.submitted()
    assert bench.jobs.records == {}
    await bench.close()


async def test_a_job_is_resumed_with_all_that_it_takes(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    part = bench.exchange.blobs.put(b"part")
    manifest = Manifest(JobId("toy-9"), bench.spec_blob, 6, 1, (Part(part, 4, bytes(32)),))
    record = codec.JobRecord(
        JobId("toy-9"), "toy", "train", bench.spec_blob, "failed", C, "c", 0, 5, checkpoints=(manifest,),
        history=({"epoch": 1.0},), starts=1,
    )  # fmt: skip
    bench.hear(C, wire.Record("toy-9", 0, 5, codec.encode(record)))
    assert await bench.jobs.ask("toy-9", "resume") == "queued"
    again = bench.jobs.get("toy-9")
    assert (again.generation, again.starts, again.coordinator, again.step, again.epoch) == (1, 2, A, 6, 1)
    for node in (A, B):
        bench.hear(node, wire.Granted("toy-9", 1))
    assert msgspec.msgpack.decode(bench.outside.of(wire.Prepare)[0].checkpoint, type=Manifest) == manifest
    bench.hear(C, wire.Record("toy-9", 0, 9, codec.encode(msgspec.structs.replace(record, revision=9))))
    assert bench.state("toy-9") == "preparing"
    await bench.close()


async def test_a_paused_job_is_cancelled_though_nobody_leads_it(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    record = codec.JobRecord(JobId("toy-9"), "toy", "train", bench.spec_blob, "paused", C, "c", 3, 5)
    bench.hear(C, wire.Record("toy-9", 3, 5, codec.encode(record)))
    assert await bench.jobs.ask("toy-9", "cancel") == "cancelled"
    told = codec.decode(bench.outside.of(wire.Record, B)[-1].record, "x")
    assert (told.state, told.version) == ("cancelled", (3, 6))
    await bench.close()


async def test_a_node_that_stops_leaves_its_jobs_to_the_next_coordinator(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    job = await bench.running()
    await asyncio.sleep(0)
    bench.outside.sent.clear()
    await bench.close()
    assert bench.outside.sent == [], "what runs goes on"
    again = Bench(tmp_path, bench.cluster)
    await until(lambda: len(again.outside.of(wire.Adopt)) == 2)
    assert again.state(job) == "running"
    await again.close()


async def test_a_job_that_the_cluster_does_not_know_of_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(succession, "TELL_S", 0.0)
    bench = Bench(tmp_path)
    job = await bench.running()
    await bench.close()
    again = Bench(tmp_path)  # another cluster, founded anew
    await until(lambda: again.state(job) == "failed")
    assert (
        again.jobs.get(job).reason == f"the cluster does not know of this start; go on with `p2pnn jobs resume {job}`"
    )
    await again.close()


async def test_who_submits_to_a_node_that_stops_is_told_so(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.cluster.delays = True
    submitting = asyncio.ensure_future(bench.submitted())
    await until(lambda: bench.cluster.proposed)
    await bench.jobs.close()
    with pytest.raises(UsageError, match="node a is stopping; ask another node"):
        await submitting
    bench.storage.close()


async def test_a_node_that_was_not_there_from_the_beginning_follows_by_the_record(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.cluster.elect(C)
    record = codec.JobRecord(
        JobId("toy-9"), "toy", "train", bench.spec_blob, "running", C, "c", 3, 5, history=({"epoch": 1.0},), starts=1
    )
    bench.hear(C, wire.Record("toy-9", 3, 5, codec.encode(record)))
    bench.hear(
        C, wire.Happened("toy-9", 3, "epoch", msgspec.msgpack.encode({"epoch": 2}))
    )  # it came too late for the first
    found: list[object] = []

    async def follow() -> None:
        async for event in bench.jobs.events("toy-9", 0):
            found.append(event.get("state") or event.get("epoch"))

    following = asyncio.ensure_future(follow())
    await until(lambda: len(found) == 2)
    done = msgspec.structs.replace(record, state="failed", revision=6, history=({"epoch": 1.0}, {"epoch": 2.0}))
    bench.hear(C, wire.Record("toy-9", 3, 6, codec.encode(done)))
    await following
    assert found == [1, "running", 2, "failed"]
    await bench.close()


async def test_a_job_that_is_submitted_again_while_it_is_planned_is_begun_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.cluster.delays = True
    for request in (7, 8):
        bench.hear(B, wire.Ask(request, "toy-7", "submit", bench.spec_blob))
    await until(lambda: bench.cluster.proposed)
    bench.cluster.delays = False
    bench.cluster.commit()
    await until(lambda: len(bench.outside.of(wire.Answered, B)) == 2)
    assert {(m.state, m.error) for m in bench.outside.of(wire.Answered, B)} == {("queued", "")}
    assert bench.planning.asked == 1
    await bench.close()


@pytest.mark.parametrize("job", ["Toy-7", "../toy", "t" * 100])
async def test_an_id_that_cannot_be_stored_is_refused_before_anything_is_decided(tmp_path: Path, job: str) -> None:
    bench = Bench(tmp_path)
    bench.hear(B, wire.Ask(7, job, "submit", bench.spec_blob))
    await until(lambda: bench.outside.of(wire.Answered, B))
    assert "cannot be the id of a job" in bench.outside.of(wire.Answered, B)[0].error
    assert (bench.jobs.work.entries, bench.planning.asked) == ({}, 0)
    await bench.close()


@pytest.mark.parametrize("resumed", [False, True])
async def test_a_job_that_was_planned_before_a_drain_is_planned_again(tmp_path: Path, resumed: bool) -> None:
    bench = Bench(tmp_path)
    if resumed:
        job = await bench.submitted()
        await bench.jobs.ask(job, "pause")
    bench.planning.draining.add(B)
    plan, before = bench.planning.plan, bench.planning.asked

    async def stale(spec: JobSpec, *, compared: bool = True) -> Plan:
        found = await plan(spec)  # over A and B: asked for before B said so
        bench.planning.nodes = [A, C]
        return found

    bench.planning.plan = stale  # type: ignore[method-assign]
    if resumed:
        await bench.jobs.ask(job, "resume")
    else:
        job = await bench.submitted()
    assert bench.planning.asked - before == (1 if resumed else 2) + resumed
    record = bench.jobs.get(job)
    assert record.plan is not None
    assert [share.name for share in record.plan.nodes] == ["a", "c"]
    await bench.close()
