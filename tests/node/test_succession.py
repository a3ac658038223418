"""A new coordinator and the jobs that another has led: what it asks, what it goes on with, and what it begins anew."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from p2pnn.errors import CharterError, CheckpointError, PlanError
from p2pnn.job import assignment, script, work
from p2pnn.job import records as codec
from p2pnn.job.checkpoint import Manifest, Part
from p2pnn.job.part_log import PartLog
from p2pnn.job.plan import Plan, ShardHome
from p2pnn.job.spec import JobSpec
from p2pnn.node import parcels, succession
from p2pnn.types import BlobId, JobId, NodeId
from p2pnn.wire import messages as wire
from tests.node.nodes import A, B, C, plan_of_data, stored, toy_of_data, until
from tests.node.test_jobs import Bench as JobsBench

pytestmark = pytest.mark.asyncio


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for members that come back after a power cut."""
    monkeypatch.setattr(succession, "GATHER_S", 0.0)
    monkeypatch.setattr(succession, "TELL_S", 0.0)


class Bench(JobsBench):
    """Node A led a job over B and C, C coordinated for a moment, and A does again: it knows of the start what its nodes tell."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.planning.nodes = [B, C]
        self.logs = {B: PartLog(), C: PartLog()}
        self.job = JobId("")
        self.read = 0

    async def led(self) -> None:
        self.job = JobId(await self.submitted())
        for node in (B, C):
            self.hear(node, wire.Granted(self.job, 1))
        for node in (B, C):
            self.hear(node, wire.Prepared(self.job, 1, 10))
        self.listen()

    def listen(self) -> None:
        """The nodes take what they were sent."""
        sent, self.read = self.outside.sent[self.read :], len(self.outside.sent)
        for node, message in sent:
            if isinstance(message, wire.Command) and node in self.logs:
                for command in msgspec.msgpack.decode(message.commands, type=list[script.Command]):
                    data = msgspec.msgpack.encode(command)
                    self.logs[node].command(command.sequence, data, message.oldest, message.state)

    def succeed(self) -> None:
        self.cluster.elect(C)
        self.outside.sent.clear()
        self.read = 0
        self.cluster.elect(A)

    async def asked(self) -> None:
        await until(lambda: len(self.outside.of(wire.Adopt)) == 2)

    def adopted(self, node: NodeId, **changes: Any) -> None:
        state = self.logs[node].tell(codec.encode(self.jobs.records[self.job]))
        data = msgspec.msgpack.encode(msgspec.structs.replace(state, **changes))
        self.hear(node, wire.Adopted(self.job, 1, parcels.pack(data, self.exchange.blobs)))

    def progress(self, node: NodeId, *, rows: int, term: int) -> None:
        """The node has trained on so many rows, and says so to A."""
        found = script.Progress(4, (0.5 * rows, rows), {}, 0.1, 0.2)
        self.logs[node].progress(found)
        self.hear(node, wire.Report(self.job, 1, msgspec.msgpack.encode(found), term))

    def rows_counted(self, name: str) -> int:
        return self.jobs._supervision.led[self.job]._run.meter.counted[name].rows

    @property
    def is_led(self) -> bool:
        return self.job in self.jobs._supervision.led

    @property
    def busy(self) -> bool:
        return self.jobs._succession.busy


async def test_the_nodes_are_asked_in_the_new_term_and_the_start_goes_on_as_it_was(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    await bench.led()
    bench.succeed()
    assert not bench.is_led
    await bench.asked()
    assert {(n, m.job, m.generation, m.term) for n, m in bench.outside.sent if isinstance(m, wire.Adopt)} == {
        (B, bench.job, 1, 3),
        (C, bench.job, 1, 3),
    }
    bench.adopted(B)
    assert bench.busy
    bench.adopted(C)
    await until(lambda: bench.is_led)
    record = bench.jobs.get(bench.job)
    assert (record.state, record.generation, record.coordinator) == ("running", 1, A)
    assert record.revision >= 3 << 32, "what the old coordinator still tells counts less"
    again = bench.outside.of(wire.Command, B)
    assert [m.term for m in again] == [3]
    outstanding = [number for number, _ in bench.logs[B].tell(b"").commands]
    assert [c.sequence for c in bench.commands(B) if not isinstance(c, script.Finish)] == outstanding
    assert bench.outside.of(wire.Reserve) == bench.outside.of(wire.Prepare) == bench.outside.of(wire.Release) == []
    await bench.close()


async def test_what_nodes_say_before_all_have_told_is_held_back_in_its_order(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    await bench.led()
    bench.succeed()
    await bench.asked()
    bench.adopted(B)
    trains = [number for number, _ in bench.logs[B].tell(b"").commands]
    done = [wire.Report(bench.job, 1, msgspec.msgpack.encode(script.Done(number))) for number in trains]
    for message in done:
        bench.hear(B, message)
    bench.hear(A, wire.JobFailed(bench.job, 1, "A has no part of it"))
    bench.adopted(C)
    await until(lambda: bench.is_led)
    bench.listen()
    sent = len(bench.commands(C))
    for message in done:
        bench.hear(C, message)
    assert len(bench.commands(C)) > sent, "the answers of both were taken"
    assert bench.state(bench.job) == "running"
    await bench.close()


async def test_what_was_told_to_this_node_when_it_coordinated_before_counts_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    await bench.led()
    bench.succeed()
    await bench.asked()
    bench.progress(B, rows=8, term=1)
    for node in (B, C):
        bench.adopted(node)
    bench.progress(B, rows=4, term=3)
    await until(lambda: bench.is_led)
    assert bench.rows_counted("b") == 8 + 4
    await bench.close()


async def test_a_failure_that_came_meanwhile_is_heard_as_well(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    await bench.led()
    bench.succeed()
    await bench.asked()
    bench.adopted(B)
    bench.hear(B, wire.JobFailed(bench.job, 1, "the loss became NaN"))
    bench.adopted(C)
    await until(lambda: bench.state(bench.job) == "failed")
    assert bench.jobs.get(bench.job).reason == "node b: the loss became NaN"
    await bench.close()


async def test_a_node_that_stays_silent_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(succession, "ANSWER_S", 0.01)
    bench = Bench(tmp_path)
    await bench.led()
    bench.succeed()
    await bench.asked()
    bench.adopted(B)
    await until(lambda: bench.is_led)
    assert bench.state(bench.job) == "recovering"
    assert "node c does not answer, and another node coordinates now" in bench.jobs.get(bench.job).reason
    assert {n for n, m in bench.outside.sent if isinstance(m, wire.Release)} == {B, C}
    await bench.close()


@pytest.mark.parametrize("how", ["lost", "away", "nonsense", "ended"])
async def test_a_node_that_cannot_go_on_is_named(tmp_path: Path, how: str) -> None:
    bench = Bench(tmp_path)
    await bench.led()
    reason = {
        "lost": "node c: it is lost",
        "away": "node c: it is not connected",
        "nonsense": "node c: what it told cannot be read",
        "ended": "node c: its compute process was killed by signal 9",
    }[how]
    if how == "away":
        bench.outside.peers.discard(C)
        bench.succeed()
        await until(lambda: bench.outside.of(wire.Adopt))
    else:
        bench.succeed()
        await bench.asked()
    if how == "lost":
        bench.jobs.member_lost(C, "connection reset")
    elif how == "nonsense":
        bench.hear(C, wire.Adopted(bench.job, 1, b"\xc1"))
    elif how == "ended":
        bench.adopted(C, stage="ended", text="its compute process was killed by signal 9")
    bench.adopted(B)
    await until(lambda: bench.is_led)
    assert reason in bench.jobs.get(bench.job).reason
    await bench.close()


async def test_a_start_that_had_not_begun_begins_anew_under_another_generation(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.job = JobId(await bench.submitted())
    before = bench.jobs.get(bench.job)
    bench.succeed()
    await until(lambda: bench.is_led and bench.jobs.get(bench.job).generation > before.generation)
    after = bench.jobs.get(bench.job)
    assert (after.state, after.starts) == ("queued", before.starts + 1)
    assert bench.outside.of(wire.Adopt) == [], "nobody has anything to tell"
    told = [event for event in bench.jobs.journal(bench.job)._events if event["kind"] == "warning"]
    assert "the job begins anew from step 0 under another coordinator: it was queued when" in told[-1]["text"]
    assert 0 not in {m.generation for m in bench.outside.of(wire.Reserve)}
    await bench.close()


@pytest.mark.parametrize("how", ["memory", "checkpoint"])
async def test_a_job_that_cannot_be_begun_anew_now_is_parked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    bench = Bench(tmp_path)
    bench.job = JobId(await bench.submitted())
    real = bench.planning.plan
    lost = {"memory": PlanError("the model needs 2.1 GiB more"), "checkpoint": CheckpointError("b is away")}[how]

    async def plan(spec: JobSpec, *, compared: bool = True) -> Plan:
        raise lost

    monkeypatch.setattr(bench.planning, "plan", plan)
    bench.succeed()
    for node in (A, B, C):
        await until(lambda node=node: bench.outside.of(wire.CutsWanted, node))
        question = bench.outside.of(wire.CutsWanted, node)[-1]
        bench.hear(node, wire.CutsHeld(bench.job, question.generation, question.request, 0, (), ()))
    await until(lambda: bench.state(bench.job) == "parked")
    assert bench.jobs.get(bench.job).reason == f"parked: {lost}"
    assert not bench.busy
    monkeypatch.setattr(bench.planning, "plan", real)
    bench.jobs.member_usable(C, "c")
    await until(lambda: bench.jobs.get(bench.job).generation > 1)
    assert bench.state(bench.job) == "recovering"
    await bench.close()


async def test_a_job_whose_spec_is_gone_ends_with_the_reason(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.job = JobId(await bench.submitted())
    bench.exchange.blobs.remove(bench.spec_blob)
    bench.outside.peers.clear()
    bench.succeed()
    await until(lambda: bench.state(bench.job) == "failed")
    await until(lambda: bench.jobs.work.entries == {})
    assert not bench.busy
    await bench.close()


async def test_a_job_that_is_cancelled_while_it_is_to_begin_anew_stays_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path)
    bench.job = JobId(await bench.submitted())
    going, real = asyncio.Event(), bench.planning.plan

    async def plan(spec: JobSpec, *, compared: bool = True) -> Plan:
        await going.wait()
        return await real(spec)

    monkeypatch.setattr(bench.planning, "plan", plan)
    bench.succeed()
    await until(lambda: not bench.busy)
    assert await bench.jobs.ask(bench.job, "cancel") == "cancelled"
    going.set()
    await until(lambda: bench.jobs.work.entries == {})
    await bench.jobs._succession._tasks.drain()
    assert not bench.is_led
    assert bench.state(bench.job) == "cancelled"
    await bench.close()


async def test_the_entry_of_a_job_that_had_ended_goes(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    await bench.led()
    bench.cluster.elect(C)
    over = msgspec.structs.replace(bench.jobs.get(bench.job), state="done", revision=99)
    bench.hear(C, wire.Record(bench.job, 1, 99, codec.encode(over)))
    bench.cluster.elect(A)
    await until(lambda: bench.jobs.work.entries == {})
    assert bench.state(bench.job) == "done"
    assert bench.outside.of(wire.Adopt) == []
    await bench.close()


async def test_a_job_that_the_charter_does_not_know_has_failed_unless_somebody_knows_its_end(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    await bench.led()
    other = msgspec.structs.replace(bench.jobs.get(bench.job), job=JobId("toy-8"))
    bench.hear(C, wire.Record("toy-8", 1, other.revision, codec.encode(other)))
    bench.cluster.elect(C, work.encode([]))
    bench.cluster.elect(A)
    assert {n for n, m in bench.outside.sent if isinstance(m, wire.RecordRequest)} >= {B, C}
    ended = msgspec.structs.replace(other, state="done", revision=99)
    bench.hear(C, wire.Record("toy-8", 1, 99, codec.encode(ended)))
    await until(lambda: bench.state(bench.job) == "failed")
    assert "the cluster does not know of this start" in bench.jobs.get(bench.job).reason
    assert bench.state("toy-8") == "done"
    await bench.close()


async def test_who_is_deposed_while_it_takes_up_lets_go(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    await bench.led()
    bench.succeed()
    await bench.asked()
    bench.adopted(B)
    bench.cluster.elect(C)
    bench.adopted(C)
    await bench.jobs._succession._tasks.drain()
    assert not bench.is_led
    assert not bench.busy
    assert bench.state(bench.job) == "running"
    assert bench.outside.of(wire.Command) == []
    await bench.close()


async def test_more_messages_than_any_start_sends_are_not_held_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(succession, "HELD_BACK_MAX", 3)
    bench = Bench(tmp_path)
    await bench.led()
    bench.succeed()
    await bench.asked()
    for _ in range(10):
        bench.hear(B, wire.Report(bench.job, 1, b"\xc1"))
    [asking] = bench.jobs._succession._asking.values()
    assert len(asking.held_back) == 3
    assert not bench.jobs._succession.receive(B, wire.Report(bench.job, 7, b"")), "of another start"
    assert bench.jobs._succession.receive(B, wire.Adopted("nothing-1", 1, b"")), "nobody else takes it"
    assert asking.parts == {}
    await bench.close()


async def test_large_answers_come_as_parcels(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    await bench.led()
    bench.succeed()
    await bench.asked()
    number = bench.logs[B].tell(b"").commands[0][0]
    large = parcels.pack(msgspec.msgpack.encode(script.Done(number, bytes(100_000))), bench.exchange.blobs)
    assert parcels.is_name(large)
    bench.adopted(B, answers=((number, large),))
    bench.adopted(C)
    await until(lambda: bench.is_led)
    assert bench.state(bench.job) == "running"
    await bench.close()


@pytest.mark.parametrize("is_back", [False, True])
async def test_a_node_that_is_lost_after_it_told_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_back: bool
) -> None:
    bench = Bench(tmp_path)
    await bench.led()
    going, fetching = asyncio.Event(), asyncio.Event()

    async def fetch(*_: object, **__: object) -> None:
        fetching.set()
        await going.wait()

    bench.succeed()
    await bench.asked()
    monkeypatch.setattr(bench.exchange, "fetch", fetch)
    bench.adopted(B)
    bench.adopted(C)
    await fetching.wait()
    if not is_back:
        del bench.members[C]
    bench.jobs.member_lost(C, "connection reset")
    going.set()
    await until(lambda: bench.is_led)
    assert bench.state(bench.job) == "recovering"
    assert bench.jobs.get(bench.job).reason == "node c is lost (while another node took the job over)"
    await bench.close()


async def test_an_answer_that_cannot_be_read_costs_the_start_and_not_the_job(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    await bench.led()
    number = 0
    while not number:
        for command in bench.commands(B):
            if isinstance(command, script.Evaluate):
                number = command.sequence
                break
            for node in (B, C):
                bench.hear(node, wire.Report(bench.job, 1, msgspec.msgpack.encode(script.Done(command.sequence))))
    bench.listen()
    bench.succeed()
    await bench.asked()
    for node in (B, C):
        bench.adopted(node, answers=((number, msgspec.msgpack.encode(script.Done(number, b"\xc1"))),))
    await until(lambda: bench.is_led)
    assert bench.state(bench.job) == "recovering"
    assert "what its nodes told cannot be read" in bench.jobs.get(bench.job).reason
    await bench.close()


async def test_a_queued_job_does_not_go_back_while_who_holds_its_checkpoint_may_still_boot(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.planning.nodes = [A, B]
    bench.job = JobId(await bench.submitted())
    parts = [bench.exchange.blobs.put(b"part"), BlobId("9" * 64)]
    manifests = tuple(
        Manifest(bench.job, bench.spec_blob, 6 * n, n, (Part(blob, 4, bytes(32)),)) for n, blob in enumerate(parts, 1)
    )
    bench.cluster.elect(C)
    record = msgspec.structs.replace(bench.jobs.get(bench.job), checkpoints=manifests, revision=99)
    bench.hear(C, wire.Record(bench.job, 1, 99, codec.encode(record)))
    del bench.members[B]
    bench.planning.nodes = [A, C]
    bench.cluster.elect(A)
    for node in (A, C):
        await until(lambda node=node: bench.outside.of(wire.CutsWanted, node))
        question = bench.outside.of(wire.CutsWanted, node)[-1]
        bench.hear(node, wire.CutsHeld(bench.job, 1, question.request, 0, (), ()))
    await until(lambda: bench.state(bench.job) == "parked")
    assert "it waits for b" in bench.jobs.get(bench.job).reason
    assert bench.jobs.get(bench.job).checkpoints == manifests
    bench.jobs._supervision._back_until = 0.0
    bench.jobs.member_usable(C, "c")
    await until(lambda: bench.jobs.get(bench.job).generation > 1)
    assert bench.jobs.get(bench.job).checkpoints == manifests[:1]
    await bench.close()


async def test_a_start_that_nobody_heard_of_keeps_the_history_and_plan_of_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path)
    await bench.led()
    bench.cluster.elect(C)
    history = tuple({"epoch": float(n), "loss": 1.0 / n} for n in range(1, 101))
    newest = Manifest(bench.job, bench.spec_blob, 60, 60, ())
    record = msgspec.structs.replace(
        bench.jobs.get(bench.job), state="paused", history=history, checkpoints=(newest,), revision=99
    )
    bench.hear(C, wire.Record(bench.job, 1, 99, codec.encode(record)))
    restarted: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def restart(record: codec.JobRecord, _: str) -> None:
        restarted.set_result(record)

    monkeypatch.setattr(bench.jobs._succession, "_restart", restart)
    begun = work.entry(codec.resumed(record, C, "c"), 7)
    assert begun.began().plan is None
    bench.cluster.elect(A, work.encode([begun]))
    found = await restarted
    assert (found.state, found.generation) == ("queued", 7)
    assert found.history == history[:60]
    assert found.plan == record.plan
    await bench.close()


async def test_a_table_that_cannot_be_read_is_not_taken_up(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    await bench.led()
    bench.cluster.elect(C)
    bench.cluster.elect(A, b"\xc1")
    assert not bench.busy
    assert bench.outside.of(wire.Adopt) == []
    with pytest.raises(CharterError, match="table of jobs cannot be read"):
        await bench.submitted()
    assert bench.state(bench.job) == "running"
    await bench.close()


# --- a start that can go on without a node


class Replicated(Bench):
    """B and C compute, and each has the backup of the other's shard."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.spec, blobs = toy_of_data()
        self.spec_blob = stored(self.spec, blobs, self.exchange.blobs)
        self.planning.plan = self.planned  # type: ignore[method-assign]

    async def planned(self, spec: JobSpec, *, compared: bool = True) -> Plan:
        plan = plan_of_data(spec, [B, C], workers=(0, 1), homes=(0, 1))
        return msgspec.structs.replace(plan, shards=(ShardHome((0, 1)), ShardHome((1, 0))))

    def told(self, node: NodeId) -> list[assignment.Assignment]:
        return [assignment.decode(message.assignment) for message in self.outside.of(wire.Assigned, node)]

    async def without_c(self) -> assignment.Assignment:
        plan = await self.planned(self.spec)
        before = assignment.initial(plan, 1)
        after = assignment.without(before, plan, self.spec, 1)
        assert after is not None
        return assignment.committed(before, after, 2)


async def test_a_start_that_lost_a_node_together_with_its_coordinator_goes_on_without_it(tmp_path: Path) -> None:
    bench = Replicated(tmp_path)
    await bench.led()
    bench.outside.peers.discard(C)
    bench.members.pop(C)
    bench.succeed()
    await until(lambda: bench.outside.of(wire.Adopt))
    bench.adopted(B)
    await until(lambda: bench.told(B))
    assert bench.told(B)[0] == assignment.initial(await bench.planned(bench.spec), 1), "what holds is told first"
    await until(lambda: len(bench.told(B)) == 2)
    held = bench.jobs.work.entries[bench.job].assigned()
    assert held is not None
    assert (held.gone, bench.told(B)[1]) == ((1,), held)
    assert [shard.primary.node for shard in held.shards] == [B, B]
    assert bench.state(bench.job) == "running"
    assert bench.jobs.get(bench.job).generation == 1
    await bench.close()


async def test_a_node_that_lives_and_has_no_part_any_more_is_done_without(tmp_path: Path) -> None:
    bench = Replicated(tmp_path)
    await bench.led()
    bench.succeed()
    await bench.asked()
    bench.adopted(B)
    bench.adopted(C, stage="ended", text="its compute process was killed by signal 9")
    await until(lambda: len(bench.told(B)) == 2)
    assert bench.told(B)[1].gone == (1,)
    assert bench.outside.of(wire.Release, C) == [wire.Release(bench.job, 1, 3)]
    texts = [event["text"] for event in bench.jobs.journal(bench.job)._events if event["kind"] == "warning"]
    assert texts[-1].startswith(
        "node c is lost (its compute process was killed by signal 9): shard 0 has no backup now; "
    )
    await bench.close()


async def test_what_was_committed_and_told_to_nobody_is_told_by_the_next_coordinator(tmp_path: Path) -> None:
    bench = Replicated(tmp_path)
    await bench.led()
    held = await bench.without_c()
    entry = msgspec.structs.replace(bench.jobs.work.entries[bench.job], assignment=assignment.encode(held))
    bench.cluster.elect(C, work.encode([entry]))
    bench.outside.sent.clear()
    bench.read = 0
    bench.cluster.elect(A)
    await until(lambda: bench.outside.of(wire.Adopt))
    bench.adopted(B)
    await until(lambda: bench.is_led)
    assert [n for n, m in bench.outside.sent if isinstance(m, wire.Adopt)] == [B], "nobody else takes part"
    assert bench.told(B) == [held]
    assert bench.outside.of(wire.Release, C) == [wire.Release(bench.job, 1, 3)]
    assert bench.outside.of(wire.Command, B)
    assert not bench.outside.of(wire.Command, C)
    assert bench.jobs._supervision.led[bench.job].nodes == [B]
    await bench.close()


async def test_a_start_of_which_no_node_is_left_begins_anew(tmp_path: Path) -> None:
    bench = Replicated(tmp_path)
    await bench.led()
    bench.succeed()
    await bench.asked()
    bench.adopted(B, stage="ended", text="the start goes on without this node")
    bench.adopted(C, stage="absent")
    await until(lambda: bench.is_led)
    assert bench.state(bench.job) == "recovering"
    await bench.close()
