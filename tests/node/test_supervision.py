"""Jobs that a node coordinates: what it tells its peers, and whom it believes."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest

from p2pnn.errors import PlanError, StorageError, UsageError
from p2pnn.job import records as codec
from p2pnn.job import script, watch
from p2pnn.job.plan import Plan
from p2pnn.job.spec import JobSpec
from p2pnn.node import parcels, recovering
from p2pnn.node import supervision as module
from p2pnn.node.work import NotDecided
from p2pnn.wire import messages as wire
from tests.node.nodes import A, B, C, plan_of, until
from tests.node.test_jobs import Bench

pytestmark = pytest.mark.asyncio


async def undecided(bench: Bench, asked: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """Ask for a start that the cluster proposes and does not decide yet."""
    bench.cluster.delays = True
    task = asyncio.get_running_loop().create_task(asked)
    await until(lambda: bench.cluster.proposed)
    return task


async def paused(bench: Bench) -> str:
    """A job that was submitted and paused, so that the cluster has no start of it."""
    job = await bench.submitted()
    await bench.jobs.ask(job, "pause")
    await until(lambda: bench.jobs.work.entries == {})
    return job


async def test_nodes_are_reserved_in_the_order_of_their_ids_and_then_prepared(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    job = await bench.submitted()
    await asyncio.sleep(0)  # messages to the node itself go by the loop
    assert bench.outside.of(wire.Reserve) == [wire.Reserve(job, 1, "made", 1)]
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
    trains = bench.commands(B)
    done = [msgspec.msgpack.encode(script.Done(sequence)) for sequence in range(1, len(trains) + 1)]
    for node in (B, C):
        for data in done:
            bench.hear(node, wire.Report(job, 1, data))
    assert bench.commands(B) == trains
    for data in done:
        bench.hear(A, wire.Report(job, 1, data))
    assert isinstance(bench.commands(B)[-1], script.Evaluate)
    await asyncio.sleep(0)
    assert bench.commands(A) == bench.commands(B)
    bench.hear(B, wire.Report(job, 1, b"\xc1"))
    assert bench.state(job) == "failed"
    assert "node b: its report cannot be read" in bench.jobs.get(job).reason
    await asyncio.sleep(0)
    assert {n for n, m in bench.outside.sent if isinstance(m, wire.Release)} == {A, B}
    await bench.close()


async def test_a_report_that_comes_as_a_parcel_is_fetched(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    job = await bench.running()
    trains = bench.commands(B)
    for sequence in range(1, len(trains) + 1):
        small = msgspec.msgpack.encode(script.Done(sequence))
        bench.hear(A, wire.Report(job, 1, small))
        if sequence < len(trains):
            bench.hear(B, wire.Report(job, 1, small))
    large = msgspec.msgpack.encode(script.Done(len(trains), bytes(100_000)))
    bench.hear(B, wire.Report(job, 1, parcels.pack(large, bench.exchange.blobs)))
    await until(lambda: len(bench.commands(B)) > len(trains))
    bench.outside.peers.clear()
    bench.hear(B, wire.Report(job, 1, msgspec.msgpack.encode("0" * 64)))
    await until(lambda: bench.state(job) == "recovering")
    assert "its report cannot be had" in bench.jobs.get(job).reason
    await bench.close()


@pytest.mark.parametrize("readable", [True, False])
async def test_a_parcel_that_comes_when_its_start_is_over_is_no_report_of_the_next(
    tmp_path: Path, readable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path)
    job = await bench.running()

    async def late(*_: object) -> bytes:
        if not readable:
            raise StorageError("nobody has it")
        return msgspec.msgpack.encode(script.Done(99))

    monkeypatch.setattr(parcels, "unpack", late)
    monkeypatch.setattr(parcels, "forget", lambda *_: None)
    supervisor = bench.jobs._supervision.led[job]
    heard: list[object] = []
    monkeypatch.setattr(supervisor, "report", lambda *a: heard.append(a))
    monkeypatch.setattr(supervisor, "node_failed", lambda *a: heard.append(a))
    old = wire.Report(job, supervisor.record.generation - 1, msgspec.msgpack.encode("0" * 64))
    await bench.jobs._supervision._fetch_report(B, old, supervisor)
    assert heard == []
    await bench.close()


@pytest.mark.parametrize("fits", [True, False])
async def test_who_asks_to_move_its_jobs_is_not_planned_on_though_gossip_has_not_told_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fits: bool
) -> None:
    bench = Bench(tmp_path)
    await bench.running()
    usable: list[set[str]] = []

    async def plan(spec: JobSpec, *, compared: bool = True) -> Plan:
        usable.append(set(bench.planning.usable()))
        if not fits:
            raise PlanError("needs 2.1 GiB more")
        return plan_of(spec, [A, C])

    monkeypatch.setattr(bench.planning, "plan", plan)
    if fits:
        await bench.jobs._supervision.vacate(B)
    else:
        with pytest.raises(PlanError, match=r"cannot run without it: needs 2\.1 GiB more"):
            await bench.jobs._supervision.vacate(B)
    assert usable[0] == {A, C}
    assert (B in bench.planning.draining) == fits
    await bench.close()


async def test_what_a_lost_node_holds_is_waited_for_before_an_older_checkpoint_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path)
    job = await bench.running()
    bench.jobs._supervision._back_until = 0.0  # this daemon has run for long
    waits: list[float] = []

    async def replan(*arguments: Any) -> None:
        waits.append(arguments[-1] - asyncio.get_running_loop().time())

    monkeypatch.setattr(recovering, "replan", replan)
    bench.jobs.member_lost(B, "connection reset")
    await until(lambda: bench.outside.of(wire.CutsWanted))
    for number, node in enumerate((A, C)):
        bench.hear(node, wire.CutsHeld(job, 1, 1 + number, 0, (), ()))
    await until(lambda: waits)
    assert waits[0] > recovering.BACK_S / 2
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
    for job in (running, queued):
        await until(lambda job=job: [s.name for s in bench.jobs.get(job).plan.nodes] == ["a", "c"])
    await until(lambda: {bench.jobs.get(job).generation for job in (running, queued)} <= {3, 4})
    assert {job: entry.nodes for job, entry in bench.jobs.work.entries.items()} == {running: (A, C), queued: (A, C)}
    await bench.close()


async def test_a_node_that_hangs_fails_the_job_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path)
    job = await bench.running()
    hanging = await bench.submitted()
    monkeypatch.setattr(watch, "LIMIT_S", 0.02)
    for node in (A, B):
        bench.hear(node, wire.Granted(hanging, 2))
    await until(lambda: bench.state(hanging) == "failed")
    assert "its preparing has not moved for 0 s" in bench.jobs.get(hanging).reason
    assert bench.state(job) == "running"
    await bench.close()


async def test_who_is_overdue_when_this_process_stood_still_may_still_speak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path)
    await bench.running()
    monkeypatch.setattr(module, "LATE_S", 0.05)
    monkeypatch.setattr(watch, "FACTOR", 0.0)  # else A's long silence would earn B a longer one
    job = await bench.submitted()
    for node in (A, B):
        bench.hear(node, wire.Granted(job, 2))
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(bench.jobs._supervision, "_now", lambda: loop.time() + 1000)  # as if it had stood still so long
    bench.jobs._supervision._timers[job].cancel()
    bench.jobs._supervision._handle_timer(job)
    assert bench.state(job) == "preparing"
    second = bench.jobs._supervision._timers[job]
    bench.hear(A, wire.Preparing(job, 2, 1, 2))
    assert bench.jobs._supervision._timers[job] is second, "what others say must not put the second look off"
    await until(lambda: bench.state(job) == "failed")
    await bench.close()


def generations(bench: Bench) -> set[int]:
    told = [m for _, m in bench.outside.sent if not isinstance(m, wire.Happened)]
    return {m.generation for m in told if hasattr(m, "generation")}


async def test_a_node_that_is_lost_while_a_start_is_decided_is_planned_around(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    submitting = await undecided(bench, bench.submitted())
    bench.planning.nodes = [A, C]
    del bench.members[B]
    bench.jobs.member_lost(B, "connection reset")
    bench.jobs.member_failed(B, "no process listens there")
    await asyncio.sleep(0)
    assert bench.outside.of(wire.Reserve) == []
    bench.cluster.delays = False
    bench.cluster.commit()
    job = await submitting
    await until(lambda: bench.jobs.get(job).generation == 2)
    await asyncio.sleep(0)
    assert [m.generation for m in bench.outside.of(wire.Reserve)] == [2]
    for node in (A, C):
        bench.hear(node, wire.Granted(job, 2))
    assert bench.state(job) == "preparing"
    assert 0 not in generations(bench)
    assert bench.jobs.work.entries[job].nodes == (A, C)
    await bench.close()


async def test_of_two_decisions_under_way_only_the_last_takes_nodes(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    job = await bench.submitted()
    bench.cluster.delays = True
    for lost, nodes in ((B, [A, C]), (C, [A])):
        bench.planning.nodes = nodes
        bench.members.pop(lost)
        bench.jobs.member_lost(lost, "connection reset")
        await until(lambda nodes=nodes: bench.jobs.get(job).plan == plan_of(bench.spec, nodes))
    bench.outside.sent.clear()
    bench.cluster.commit()
    await until(lambda: bench.cluster.proposed)  # the second, which waited
    await asyncio.sleep(0)
    assert bench.outside.of(wire.Reserve) == []
    bench.cluster.commit()
    await until(lambda: bench.outside.of(wire.Reserve))
    assert [(m.job, m.generation) for m in bench.outside.of(wire.Reserve)] == [(job, 3)]
    bench.hear(A, wire.Granted(job, 3))
    assert bench.state(job) == "preparing"
    await bench.close()


async def test_a_start_whose_asker_goes_away_leaves_nothing_in_the_charter(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    submitting = await undecided(bench, bench.submitted())
    submitting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await submitting
    bench.cluster.delays = False
    bench.cluster.commit()
    await until(lambda: bench.cluster.charter.revision == 2)
    assert bench.jobs.work.entries == {}
    assert bench.outside.of(wire.Reserve) == []
    await bench.close()


async def test_a_start_that_is_not_decided_when_this_node_is_deposed_was_not_begun(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    submitting = await undecided(bench, bench.submitted())
    bench.cluster.elect(C)
    await until(lambda: bench.outside.of(wire.Ask, C))  # the next coordinator is asked for the same job
    assert bench.outside.of(wire.Reserve) == []
    [question] = bench.outside.of(wire.Ask, C)
    assert question.verb == "submit"
    submitting.cancel()
    await bench.close()


async def test_a_job_is_begun_once_at_a_time(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    job = await paused(bench)
    bench.cluster.delays = True
    first = asyncio.ensure_future(bench.jobs.ask(job, "resume"))
    second = asyncio.ensure_future(bench.jobs.ask(job, "resume"))
    await until(lambda: bench.cluster.proposed)
    with pytest.raises(UsageError, match="is being started already"):
        await bench.jobs._supervision.begin(bench.jobs.get(job), bench.spec, plan_of(bench.spec, [A, B]), {}, [])
    bench.cluster.delays = False
    bench.cluster.commit()
    assert await asyncio.gather(first, second) == ["queued", "queued"]
    assert bench.jobs.get(job).starts == 2
    await bench.close()


async def test_a_job_that_is_cancelled_while_its_start_is_decided_leaves_nothing_behind(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    job = await paused(bench)
    resuming = await undecided(bench, bench.jobs.ask(job, "resume"))
    assert await bench.jobs.ask(job, "cancel") == "cancelled"
    bench.cluster.delays = False
    bench.cluster.commit()
    assert await resuming == "cancelled"
    await until(lambda: bench.jobs.work.entries == {})
    states = [event["state"] for event in bench.jobs.journal(job)._events if event["kind"] == "state"]
    assert states == ["queued", "paused", "queued", "cancelled"]
    await bench.close()


async def test_the_entry_of_a_job_goes_when_it_has_ended(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    job = await bench.running()
    assert set(bench.jobs.work.entries) == {job}
    bench.hear(B, wire.JobFailed(job, 1, "the loss became NaN"))
    assert bench.state(job) == "failed"
    await until(lambda: bench.jobs.work.entries == {})
    await bench.close()


async def test_what_a_deposed_coordinator_wanted_is_not_done_any_more(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    job = await bench.running()
    await asyncio.sleep(0)
    bench.cluster.elect(C)
    bench.outside.sent.clear()
    for node in (A, B):
        bench.hear(node, wire.Report(job, 1, msgspec.msgpack.encode(script.Done(1))))
    bench.hear(B, wire.JobFailed(job, 1, "the loss became NaN"))
    bench.jobs.member_lost(B, "connection reset")
    await asyncio.sleep(0)
    assert bench.outside.sent == []
    assert bench.state(job) == "running", "the next coordinator knows"
    assert bench.jobs._supervision._timers == {}
    await bench.close()


async def test_what_an_old_start_says_while_the_next_is_decided_counts_for_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    job = await bench.running()
    bench.cluster.delays = True
    bench.planning.nodes = [A, C]
    bench.members.pop(B)
    bench.jobs.member_lost(B, "connection reset")
    bench.jobs.member_failed(B, "no process listens there")
    for node in (A, C):
        bench.hear(node, wire.CutsHeld(job, 1, 1 + (node == C), 0, (), ()))
    await until(lambda: bench.cluster.proposed)
    bench.hear(A, wire.JobFailed(job, 1, "the loss became NaN"))
    assert bench.state(job) == "recovering"
    bench.cluster.delays = False
    bench.cluster.commit()
    await until(lambda: bench.jobs.get(job).generation == 2)
    bench.hear(A, wire.JobFailed(job, 2, "the loss became NaN"))
    assert bench.state(job) == "failed"
    await bench.close()


async def test_what_an_old_start_says_while_a_job_is_resumed_counts_for_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    job = await paused(bench)
    resuming = await undecided(bench, bench.jobs.ask(job, "resume"))
    bench.hear(B, wire.JobFailed(job, 1, "late"))
    bench.cluster.commit()
    assert await resuming == "queued"
    await bench.close()


async def test_who_does_not_coordinate_begins_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path)
    job = await bench.submitted()
    record, plan = bench.jobs.get(job), plan_of(bench.spec, [A, B])
    bench.cluster.elect(C)
    asked: list[object] = []

    async def on_voters(*about: object) -> None:
        asked.append(about)

    monkeypatch.setattr(bench.jobs._supervision._keeping, "on_voters", on_voters)
    with pytest.raises(NotDecided, match="node a does not coordinate the cluster"):
        await bench.jobs._supervision.begin(record, bench.spec, plan, {}, [])
    assert not asked
    assert not bench.jobs._supervision.led
    await bench.close()
