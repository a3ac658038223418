"""What a part records of the tensors that it carries, until its end and beyond, and how it goes about two executors; the rest
of it is in test_place."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from p2pnn.executor import commands
from p2pnn.job import answers, assignment, script, trace
from p2pnn.job.checkpoint import Part
from p2pnn.job.part_log import PartState
from p2pnn.job.plan import ShardHome
from p2pnn.job.recovery import Loss
from p2pnn.job.segment import transfers
from p2pnn.job.spans import RING_BYTES, Kind, Ring, unpack
from p2pnn.node import part as module
from p2pnn.node import roles
from p2pnn.node.room import divide
from p2pnn.train.cuts import COUNTER_BYTES, places
from p2pnn.train.frames import layout
from p2pnn.types import BlobId
from p2pnn.wire import messages as wire
from tests.node.data_bench import DataBench
from tests.node.nodes import JOB, A, B, C, until
from tests.node.test_place import Bench, FakeExecutor

pytestmark = pytest.mark.asyncio
encode = msgspec.msgpack.encode


@pytest.fixture(autouse=True)
def fake_executor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Executor", FakeExecutor)
    monkeypatch.setattr(FakeExecutor, "made", [])
    monkeypatch.setattr(FakeExecutor, "error", None)


def spans(bench: Bench) -> list[tuple[int, int, int]]:
    """(kind, transfer, micro-batch) of what was kept; none before."""
    data = bench.storage.load_trace(JOB)
    found = trace.decode(data, "it").moved if data else b""
    return [(span.kind, span.what, span.micro_batch) for span in unpack(found)]


async def test_tensors_are_recorded_when_they_are_whole_and_free(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    executor = await bench.running()
    there, nbytes = bench.incoming()
    back = next(t.index for t in transfers(bench.spec.graph, bench.plan.assignment) if t.source == 1)
    assert bench.place.body_for(A, wire.Tensor(JOB, 1, there, 1), nbytes) is not None
    assert bench.place.body_for(A, wire.Tensor(JOB, 1, there, 0), nbytes) is not None
    bench.place.body(A, wire.Tensor(JOB, 1, there, 0))
    bench.outside.hold = asyncio.Event()
    executor.say(commands.Send(back, 0))
    await until(lambda: bench.outside.bodies)
    bench.outside.hold.set()
    await until(lambda: commands.Sent(back, 0) in executor.sent)
    bench.outside.hold = asyncio.Event()
    executor.say(commands.Send(back, 1))  # never free
    await until(lambda: len(bench.outside.bodies) == 2)
    bench.release()
    await until(lambda: spans(bench))
    assert spans(bench) == [(Kind.RECEIVE, there, 0), (Kind.SEND, back, 0)]


@pytest.mark.parametrize("crashed", [False, True])
async def test_the_executors_ring_lies_behind_its_tensors_and_is_kept_however_it_ends(
    tmp_path: Path, crashed: bool
) -> None:
    bench = Bench(tmp_path)
    bench.reserve()
    bench.prepare()
    await until(lambda: FakeExecutor.made and FakeExecutor.made[-1].sent)
    executor = FakeExecutor.made[-1]
    tensors = layout(bench.spec.graph, bench.plan, 1, bench.spec.rows_per_micro_batch).arena_bytes
    prepare: Any = executor.sent[0]
    copies = places(bench.spec, bench.plan, 1)
    start = -(-(tensors + RING_BYTES) // COUNTER_BYTES) * COUNTER_BYTES
    assert (prepare.spans, prepare.snapshots) == (tensors, start)
    assert len(executor.memory) == start + COUNTER_BYTES + copies.slots * copies.nbytes
    ring = Ring(memoryview(executor.memory)[tensors:])
    ring.add(1.0, 2.0, 0, 0, Kind.FORWARD, 1)
    ring.waits(2.0)
    if crashed:
        executor.killed = True
        executor.exit("its compute process was killed by signal 9")
        assert bench.failures
    bench.release()
    await until(lambda: bench.storage.load_trace(JOB))
    kept = trace.decode(bench.storage.load_trace(JOB) or b"", "it")
    assert [span.kind for span in unpack(kept.computed)] == [Kind.FORWARD]
    assert kept.since == 2.0
    assert msgspec.msgpack.encode(kept)


async def test_a_node_that_computes_and_serves_has_an_executor_for_each_and_is_prepared_when_both_are(
    tmp_path: Path,
) -> None:
    bench = DataBench(tmp_path)
    await bench.begin()
    computes, serves = bench.prepares
    assert (computes.role, computes.spans, computes.snapshots, computes.landings > 0) == ("compute", 0, -1, True)
    ring = bench.served.arena_bytes  # behind all else
    assert (serves.role, serves.spans, serves.snapshots, serves.landings) == ("serve", ring, -1, -1)
    assert (computes.plan, computes.node_index) == (serves.plan, serves.node_index) == (encode(bench.plan), 1)
    assert (len(bench.compute.memory), len(bench.serve.memory)) == (computes_bytes(bench), ring + RING_BYTES)
    assert bench.place.executor_pids == {"compute": 4711, "serve": 4711}
    bench.serve.say(commands.Prepared(4))
    assert bench.outside.of(wire.Prepared) == []
    bench.compute.say(commands.Prepared(3))
    assert bench.outside.of(wire.Prepared) == [wire.Prepared(JOB, 1, 7)]
    bench.release()
    await until(lambda: bench.compute.ended and bench.serve.ended)


def computes_bytes(bench: DataBench) -> int:
    return divide(bench.spec, bench.plan, 1).nbytes


async def test_both_executors_get_each_command_and_answer_as_one(tmp_path: Path) -> None:
    bench = DataBench(tmp_path)
    await bench.begin()
    bench.both_ready()
    orders = [script.Train(1, 4), script.Checkpoint(2)]
    bench.command(*orders)
    assert bench.compute.sent == bench.serve.sent == orders
    bench.serve.say(script.Done(1))
    bench.serve.say(script.Done(2, encode(Part(BlobId("6" * 64), 1, bytes(32)))))
    assert bench.outside.of(wire.Report) == []
    bench.compute.say(script.Done(1))
    bench.compute.say(script.Done(2, encode(Part(BlobId("7" * 64), 2, bytes(32)))))
    first, second = (msgspec.msgpack.decode(m.report, type=script.Report) for m in bench.outside.of(wire.Report))
    assert first == script.Done(1)
    parts, writers = answers.parts([B], {B: second})
    assert ({part.size for part in parts}, writers) == ({1, 2}, (0, 0))
    bench.adopt()
    state = await bench.adopted()
    assert [number for number, _ in state.answers] == [1, 2]


async def test_an_error_of_either_is_the_nodes_and_an_unreadable_answer_fails_it(tmp_path: Path) -> None:
    bench = DataBench(tmp_path)
    await bench.begin()
    bench.both_ready()
    bench.command(script.Checkpoint(1), script.Checkpoint(2))
    bench.compute.say(script.Done(1, encode(Part(BlobId("7" * 64), 2, bytes(32)))))
    bench.serve.say(script.Done(1, error="the disk is full"))
    [report] = bench.outside.of(wire.Report)
    assert msgspec.msgpack.decode(report.report, type=script.Report) == script.Done(1, b"", "the disk is full")
    for executor in (bench.compute, bench.serve):
        executor.say(script.Done(2, b"\xc1"))
    assert "cannot be read" in bench.failures[0]


async def test_the_worker_says_how_far_a_node_is_and_the_server_what_its_shards_saw(tmp_path: Path) -> None:
    bench = DataBench(tmp_path)
    await bench.begin()
    bench.both_ready()
    shard = script.ShardReport(0, 4, {0: 4}, {0: 2, 1: 2}, (), (), 8, 9, 0)
    bench.compute.say(script.Progress(3, (2.0, 4), {}, 0.1, 0.2))
    bench.serve.say(script.Progress(0, (0.0, 0), {}, 0.2, 0.2, served=(shard,)))
    reports = [msgspec.msgpack.decode(m.report, type=script.Report) for m in bench.outside.of(wire.Report)]
    assert reports == [
        script.Progress(3, (2.0, 4), {}, 0.1, 0.2),
        script.Progress(3, (0.0, 0), {}, 0.0, 0.0, served=(shard,)),
    ]
    bench.adopt()
    state = await bench.adopted()
    assert (state.step, state.totals.rows) == (3, 4)


@pytest.mark.parametrize("role", ["compute", "serve"])
@pytest.mark.parametrize("crashed", [False, True])
async def test_what_ends_one_executor_ends_the_part_and_both(tmp_path: Path, role: str, crashed: bool) -> None:
    bench = DataBench(tmp_path)
    await bench.begin()
    bench.both_ready()
    executor = bench.compute if role == "compute" else bench.serve
    which = ", which served shards of the parameters" if role == "serve" else ""
    if crashed:
        executor.exit("its compute process was killed by signal 9")
    else:
        executor.say(commands.Failed("the loss became NaN"))
    [failed] = bench.outside.of(wire.JobFailed)
    assert (failed.text, failed.kind) == (
        (f"its compute process was killed by signal 9{which}", Loss.KILLED)
        if crashed
        else ("the loss became NaN", Loss.FINAL)
    )
    assert bench.place.body_for(A, bench.push(), bench.push_bytes) is None
    bench.release()
    await until(lambda: bench.compute.ended and bench.serve.ended)
    assert (bench.compute.killed, bench.serve.killed) == (True, True)


async def test_a_shard_that_only_this_node_lost_is_a_loss_of_this_node(tmp_path: Path) -> None:
    bench = DataBench(tmp_path)
    await bench.begin()
    bench.both_ready()
    bench.serve.say(commands.Failed("what b sent as the primary of shard 0 makes no sense", is_lost=True))
    [failed] = bench.outside.of(wire.JobFailed)
    assert failed.kind == Loss.UNREACHABLE
    bench.release()
    await until(lambda: bench.compute.ended and bench.serve.ended)


async def test_after_finish_both_may_go(tmp_path: Path) -> None:
    bench = DataBench(tmp_path)
    await bench.begin()
    bench.both_ready()
    bench.command(script.Finish())
    for executor in (bench.compute, bench.serve):
        assert executor.sent == [script.Finish()]
        executor.exit("its compute process ended with exit status 0")
    assert bench.failures == []


async def test_a_worker_and_a_shard_on_one_node_speak_by_copies_from_arena_to_arena(tmp_path: Path) -> None:
    bench = DataBench(tmp_path)
    await bench.begin()
    bench.post._deliver = bench.place.receive  # type: ignore[method-assign]  # as the daemon routes it
    bench.both_ready()
    bench.command(script.Train(1, 4))
    for executor in (bench.compute, bench.serve):
        executor.sent.clear()
    start, nbytes = bench.prepares[0].landings, bench.push_bytes
    body = bytes(number % 251 for number in range(nbytes))
    bench.compute.memory[start : start + nbytes] = body
    bench.compute.say(commands.PushPart(11, 0, 1, 0, start, nbytes, 7, 6, True, 5, 2))
    bench.compute.say(commands.FetchValues(0, 4, 2, 9))
    await until(lambda: len(bench.serve.sent) == 2)
    assert bench.outside.bodies == []
    assert commands.PushArrived(0, 1, 1, 0, 7, 6, True, 5, 0) in bench.serve.sent
    assert commands.Fetched(0, 1, 4, 2, 9) in bench.serve.sent
    offset, _ = bench.served.slot(0, 1, 1, 0)
    assert bytes(bench.serve.memory[offset : offset + nbytes]) == body
    assert bench.compute.sent == [commands.Left(11)]
    size = bench.value_bytes(0)
    bench.serve.memory[bench.served.rest] = 77
    bench.compute.say(commands.Lend(0))
    bench.serve.say(commands.SendAnswer(5, 0, 1, 1, 0, "", 1, 1, bench.served.rest, size, 8, 7))
    await until(lambda: commands.AnswerLeft(5) in bench.serve.sent)
    assert bench.compute.sent[1:] == [commands.Answered(0, 1, 0, 0, "", 1, True, 8, 7, True, 0, True, size)]
    place = bench.worked.landings[0][0] - bench.worked.start + start
    assert bench.compute.memory[place] == 77


class ReplicatedBench(DataBench):
    """Shard 0 lies at B with its backup at C, shard 1 the other way round."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.plan = msgspec.structs.replace(self.plan, shards=(ShardHome((1, 2)), ShardHome((2, 1))))

    async def begin(self) -> None:
        await super().begin()
        self.both_ready()
        for made in FakeExecutor.made:
            made.sent.clear()

    def without(self, index: int, generation: int = 5) -> assignment.Assignment:
        before = assignment.initial(self.plan, 1)
        after = assignment.without(before, self.plan, self.spec, index)
        assert after is not None
        return assignment.committed(before, after, generation)

    def assigned(self, held: assignment.Assignment, term: int = 1) -> None:
        self.place.receive(A, wire.Assigned(JOB, 1, assignment.encode(held), term))

    def told(self) -> list[list[assignment.Assignment]]:
        return [
            [assignment.decode(m.assignment) for m in made.sent if isinstance(m, commands.Assigned)]
            for made in FakeExecutor.made
        ]


async def test_who_has_which_role_now_is_told_to_both_executors_once_and_never_goes_back(tmp_path: Path) -> None:
    bench = ReplicatedBench(tmp_path)
    await bench.begin()
    first, second = bench.without(2), bench.without(2, 9)
    bench.refusal = "it is of a lower term"
    bench.assigned(second)
    bench.refusal = ""
    bench.assigned(first)
    bench.assigned(first)
    bench.assigned(second)
    bench.assigned(first)
    bench.place.receive(A, wire.Assigned(JOB, 1, b"\xc1", 1))
    assert bench.told() == [[first, second], [first, second]]
    assert not bench.failures
    await bench.place.close()


async def test_a_link_to_a_node_that_the_start_goes_on_without_fails_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LINK_GRACE_S", "FIRST_S", "SECOND_S"):
        monkeypatch.setattr(roles, name, 0.0)
    bench = ReplicatedBench(tmp_path)
    await bench.begin()
    bench.assigned(bench.without(2))
    bench.place.member_lost(C, "connection reset")
    bench.place.member_lost(A, "connection reset")  # who coordinates: another is elected, and asks
    for _ in range(20):
        await asyncio.sleep(0)
    assert not bench.failures
    bench.place.receive(A, wire.Adopt(JOB, 1, 2))
    await until(lambda: bench.outside.of(wire.Adopted))
    told = msgspec.msgpack.decode(bench.outside.of(wire.Adopted)[-1].part, type=PartState)
    assert told.stage == "running"
    await bench.place.close()


async def test_without_the_coordinators_word_a_broken_link_fails_the_part_after_some_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roles, "SECOND_S", 0.0)
    bench = ReplicatedBench(tmp_path)
    await bench.begin()
    bench.place.member_lost(C, "connection reset")
    await until(lambda: bench.failures)
    assert bench.failures == ["its link to node c broke: connection reset"]
    await bench.place.close()


async def test_a_part_that_the_start_goes_on_without_ends(tmp_path: Path) -> None:
    bench = ReplicatedBench(tmp_path)
    await bench.begin()
    bench.assigned(bench.without(1))
    assert bench.failures == ["the start goes on without this node"]
    assert bench.told() == [[], []]
    bench.place.decided({}, 5)
    await until(lambda: all(made.ended for made in FakeExecutor.made))
    await bench.place.close()
