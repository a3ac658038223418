"""What a coordinator has the cluster decide: the next start of a job, and who has which role in one that runs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from p2pnn.errors import CharterError
from p2pnn.job import assignment, script, work
from p2pnn.job.assignment import Assignment, initial
from p2pnn.job.plan import Plan, ShardHome
from p2pnn.job.spec import JobSpec
from p2pnn.node import deciding as module
from p2pnn.node.keeping import NotKept
from p2pnn.replication.configuration import demoted
from p2pnn.wire import messages as wire
from tests.node.nodes import A, B, C, plan_of_data, stored, toy_of_data, until
from tests.node.test_jobs import Bench as JobsBench

pytestmark = pytest.mark.asyncio


class Bench(JobsBench):
    """Node A coordinates a data-parallel job: A and B compute, the shards lie on A and C and on B and A."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.spec, blobs = toy_of_data()
        self.spec_blob = stored(self.spec, blobs, self.exchange.blobs)
        self.planning.plan = self.planned  # type: ignore[method-assign]
        self.plans = 0

    async def planned(self, spec: JobSpec, *, compared: bool = True) -> Plan:
        self.plans += 1
        plan = plan_of_data(spec, [A, B, C], workers=(0, 1), homes=(0, 1))
        return msgspec.structs.replace(plan, shards=(ShardHome((0, 2)), ShardHome((1, 0))))

    async def started(self) -> str:
        job = await self.submitted()
        for node in (A, B, C):
            self.hear(node, wire.Granted(job, 1))
        for node in (A, B, C):
            self.hear(node, wire.Prepared(job, 1, 10))
        await asyncio.sleep(0)
        self.outside.sent.clear()
        return job

    def entry(self, job: str) -> work.Entry:
        return self.jobs.work.entries[job]  # type: ignore[index]

    def warnings(self, job: str | None) -> list[str]:
        assert job is not None
        return [event["text"] for event in self.jobs.journal(job)._events if event["kind"] == "warning"]

    def told(self, node: str = A) -> list[tuple[int, Assignment]]:
        """(term, what it was told) of each Assigned."""
        return [
            (m.term, assignment.decode(m.assignment))
            for n, m in self.outside.sent
            if n == node and isinstance(m, wire.Assigned)
        ]

    def lose(self, node: str) -> None:
        self.members.pop(node)  # type: ignore[call-overload]
        self.jobs.member_lost(node, "connection reset")  # type: ignore[arg-type]
        self.jobs.member_failed(node, "no process listens there")  # type: ignore[arg-type]


async def test_a_lost_node_is_told_of_when_the_cluster_has_decided_that_the_start_goes_on_without_it(
    tmp_path: Path,
) -> None:
    bench = Bench(tmp_path)
    job = await bench.started()
    assert bench.entry(job).assignment == b""
    bench.cluster.delays = True
    bench.lose(B)
    await until(lambda: bench.cluster.proposed)
    await asyncio.sleep(0)
    assert bench.state(job) == "running"
    assert not bench.told()
    bench.cluster.commit()
    await until(bench.told)
    held = bench.entry(job).assigned()
    assert held is not None
    assert (held.gone, [m.node for m in held.shards[1].in_sync], held.shards[1].generation) == ((1,), [A], 2)
    assert bench.told() == bench.told(C) == [(1, held)]
    assert not bench.told(B)
    assert bench.entry(job).generation == 1, "it is the same start"
    assert not bench.entry(job).takes_part(B)
    assert work.generations(bench.jobs.work.entries, B) == {}
    assert work.generations(bench.jobs.work.entries, C) == {job: 1}
    assert bench.outside.of(wire.Release) == [wire.Release(job, 1, 1)]
    texts = bench.warnings(job)
    assert texts[-1] == ("node b is lost (connection reset): shard 1 goes on at a; worker 1's batches go to the others")
    await bench.close()


async def test_commands_go_to_those_that_take_part(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    job = await bench.started()
    bench.lose(B)
    await until(bench.told)
    bench.outside.sent.clear()
    bench.outside.peers.add(B)
    for sequence in (1, 2, 3):
        for node in (A, C):
            bench.hear(node, wire.Report(job, 1, msgspec.msgpack.encode(script.Done(sequence))))
    await asyncio.sleep(0)
    assert bench.commands(A)
    assert bench.commands(A) == bench.commands(C)
    assert not bench.commands(B)
    await bench.close()


async def test_a_wish_is_committed_and_one_that_comes_too_late_is_answered(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    job = await bench.started()
    held = initial(await bench.planned(bench.spec), 1)
    wish = assignment.encode_configuration(demoted(held.shards[0], held.shards[0].in_sync[1]))
    bench.hear(B, wire.ShardWish(job, 7, 0, b""))
    bench.hear(A, wire.ShardWish(job, 1, 0, b"\xc1"))
    await asyncio.sleep(0)
    assert not bench.told(A)
    assert not bench.told(B)
    bench.hear(B, wire.ShardWish(job, 1, 0, b""))
    assert bench.told(B) == [(1, held)]
    bench.hear(A, wire.ShardWish(job, 1, 0, wish))
    await until(lambda: bench.told(A))
    assert bench.told(A)[0][1].shards[0].learners == (held.shards[0].in_sync[1],)
    bench.hear(A, wire.ShardWish(job, 1, 0, wish))
    await until(lambda: len(bench.told(A)) == 2)
    assert bench.told(A)[1] == bench.told(A)[0]
    await bench.close()


async def test_what_cannot_be_decided_ends_the_start_with_the_reason(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    job = await bench.started()
    bench.cluster.work_bytes_max = 10
    with pytest.raises(CharterError):
        await bench.jobs.work.decide(job, lambda _: bench.entry(job))  # type: ignore[arg-type]
    bench.lose(B)
    await until(lambda: bench.state(job) != "running")
    texts = bench.warnings(job)
    assert "node b is lost (connection reset), and the charter would be too large" in texts
    await bench.close()


async def test_what_the_charter_has_no_room_for_is_not_decided_and_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path)
    job = await bench.started()
    monkeypatch.setattr(work, "ASSIGNMENT_BYTES_MAX", 100)
    held = initial(await bench.planned(bench.spec), 1)
    wish = assignment.encode_configuration(demoted(held.shards[0], held.shards[0].in_sync[1]))
    bench.hear(A, wire.ShardWish(job, 1, 0, wish))
    failover = bench.jobs._supervision.led[job].failover  # type: ignore[index]
    assert failover.changing
    await until(lambda: not failover.changing)
    assert not bench.told(A)
    assert bench.entry(job).assignment == b""
    assert bench.state(job) == "running"
    bench.lose(B)
    await until(lambda: bench.state(job) != "running")
    texts = bench.warnings(job)
    assert any(text.startswith("node b is lost (connection reset), and who has which role in job ") for text in texts)
    assert await bench.jobs.work.decide(job, lambda _: None)  # type: ignore[arg-type]
    await bench.close()


async def test_a_change_of_a_start_that_is_over_when_it_is_committed_changes_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    job = await bench.started()
    bench.cluster.delays = True
    bench.lose(B)
    await until(lambda: bench.cluster.proposed)
    bench.lose(A)  # A's own process would be: both replicas of shard 1 are gone
    assert bench.state(job) == "recovering"
    bench.cluster.commit()
    await asyncio.sleep(0)
    assert not bench.told(C)
    await bench.close()


async def test_no_change_of_a_start_gets_into_the_entry_of_another(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    job = await bench.started()
    other = msgspec.structs.replace(bench.entry(job), generation=7)
    await bench.jobs.work.decide(job, lambda _: other)  # type: ignore[arg-type]
    revision = bench.cluster.charter.revision
    bench.lose(B)
    await until(lambda: bench.cluster.charter.revision > revision)
    assert bench.entry(job) == other
    await bench.close()


async def test_a_commit_that_is_heard_of_when_another_start_has_begun_is_none_of_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path)
    job = await bench.started()
    heard: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    waits: list[object] = []

    async def decide(*about: object) -> int:
        waits.append(about)
        return await heard

    monkeypatch.setattr(bench.jobs.work, "decide", decide)
    bench.lose(B)
    await until(lambda: waits)
    supervisor = bench.jobs._supervision.led[job]  # type: ignore[index]
    assert supervisor.failover.changing
    supervisor._ledger.change(generation=2)
    heard.set_result(9)
    await bench.jobs._supervision._deciding._tasks.drain()
    assert supervisor.failover.changing
    assert not bench.told()
    await bench.close()


async def test_nothing_moves_while_an_alarm_says_that_it_may_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan that a run is compared with takes a while to make: what holds behind it counts."""
    bench = Bench(tmp_path)
    job = await bench.started()
    bench.lose(B)
    await until(bench.told)
    bench.members[B] = "b"
    bench.jobs.member_usable(B, "b")
    plans, supervisor = bench.plans, bench.jobs._supervision.led[job]  # type: ignore[index]
    due = supervisor._healing.due
    assert due is not None
    monkeypatch.setattr(bench.jobs._supervision, "_alarm", lambda: "most members are away")
    bench.jobs._supervision.act(job, lambda supervisor, now: supervisor.handle_timer(due))  # type: ignore[arg-type]
    await bench.jobs._supervision._tasks.drain()
    assert bench.plans > plans
    assert (bench.state(job), supervisor.record.vacating) == ("running", "")
    await bench.close()


async def test_a_run_that_could_be_stronger_is_planned_while_it_runs(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    job = await bench.started()
    bench.lose(B)
    await until(bench.told)
    bench.members[B] = "b"
    bench.jobs.member_usable(B, "b")
    assert bench.outside.of(wire.Release, B)[-1] == wire.Release(job, 1, 1)
    plans, supervisor = bench.plans, bench.jobs._supervision.led[job]  # type: ignore[index]
    due = supervisor._healing.due
    assert due is not None
    bench.jobs._supervision.act(job, lambda supervisor, now: supervisor.handle_timer(due))  # type: ignore[arg-type]
    await until(lambda: bench.state(job) == "pausing")
    assert bench.plans == plans + 1
    assert supervisor.record.vacating.startswith("the job moves onto b as well: ")
    assert await bench.jobs.ask(job, "pause") == "pausing"
    assert not supervisor.record.vacating, "what a person asks for counts"
    await bench.close()


async def test_a_job_that_has_run_waits_for_voters_that_can_keep_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEEP_AGAIN_S", 0.0)
    bench = JobsBench(tmp_path)
    job = await bench.running()
    refused = 0

    async def on_voters(*_: object) -> None:
        nonlocal refused
        if refused < 2:
            refused += 1
            raise NotKept("too few of the voters could store it")

    monkeypatch.setattr(bench.jobs._supervision._keeping, "on_voters", on_voters)
    bench.planning.nodes = [A, C]
    bench.members.pop(B)
    bench.jobs.member_lost(B, "connection reset")
    bench.jobs.member_failed(B, "no process listens there")
    for node in (A, C):
        bench.hear(node, wire.CutsHeld(job, 1, 1 + (node == C), 0, (), ()))
    await until(lambda: bench.jobs.get(job).generation == 2)
    assert bench.state(job) == "recovering"
    texts = [event["text"] for event in bench.jobs.journal(job)._events if event["kind"] == "warning"]
    assert texts.count("too few of the voters could store it; tried again in 0 s") == refused == 2
    assert not bench.jobs._supervision._deciding._deciding
    await bench.close()
