"""A node's one place: who may use it, and what its part of a job takes from whom."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from p2pnn.errors import StorageError
from p2pnn.executor import commands
from p2pnn.job import script
from p2pnn.job.part_log import PartState
from p2pnn.job.queue import PlaceQueue
from p2pnn.job.segment import transfers
from p2pnn.job.spec import JobSpec
from p2pnn.node import parcels, roles
from p2pnn.node import part as module
from p2pnn.node.asking import Asking
from p2pnn.node.place import Place
from p2pnn.node.snapshots import Snapshots
from p2pnn.node.storage import Storage
from p2pnn.node.traces import Traces
from p2pnn.train.frames import layout
from p2pnn.types import BlobId, JobId, NodeId
from p2pnn.wire import messages as wire
from tests.node.nodes import JOB, A, B, C, exchange, plan_of, post, stored, toy, until


class FakeExecutor:
    """In the executor's place: keeps what it is sent; the test says what it answers."""

    made: list[FakeExecutor] = []
    error: Exception | None = None

    def __init__(self, arena_bytes: int, on_message: Callable[[Any], None], on_exit: Callable[[str], None]) -> None:
        self.pid = 4711
        self.say, self.exit = on_message, on_exit
        self.memory = bytearray(arena_bytes)
        self.sent: list[Any] = []
        self.killed = self.ended = False

    @classmethod
    async def start(cls, arena_bytes: int, threads: int, on_message: Any, on_exit: Any) -> FakeExecutor:
        if cls.error is not None:
            raise cls.error
        cls.made.append(cls(arena_bytes, on_message, on_exit))
        return cls.made[-1]

    def room(self, offset: int, size: int) -> memoryview | None:
        return None if self.killed else memoryview(self.memory)[offset : offset + size]

    def send(self, message: Any) -> None:
        self.sent.append(message)

    def kill(self) -> None:
        self.killed = True

    async def end(self) -> None:
        self.ended = True


@pytest.fixture(autouse=True)
def fake_executor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Executor", FakeExecutor)
    monkeypatch.setattr(FakeExecutor, "made", [])
    monkeypatch.setattr(FakeExecutor, "error", None)


class Bench:
    """Node B's place; A coordinates a job that is cut over A and B."""

    def __init__(self, folder: Path, spec: tuple[JobSpec, dict[BlobId, bytes]] | None = None, **settings: Any) -> None:
        self.post, self.outside = post(B)
        self.exchange = exchange(folder, self.post)
        self.storage = Storage(folder / "state")
        traces = Traces(self.post, self.storage, self.exchange, Asking(self.post))
        self.refusal = ""
        self.snapshots = Snapshots(
            self.post, self.exchange, lambda: {A: "a", B: "b"}, lambda job: None, lambda node: True
        )
        self.place = Place(
            self.post,
            self.exchange,
            traces,
            self.snapshots,
            lambda node, term: self.refusal,
            lambda job: f"what it knows of {job}".encode(),
            lambda node, generation: self.newer.append((node, generation)),
        )
        self.newer: list[tuple[NodeId, int]] = []
        self.spec, blobs = spec or toy(**settings)
        self.spec_blob = stored(self.spec, blobs, self.exchange.blobs)
        self.plan = plan_of(self.spec, [A, B])

    def reserve(self, job: str = JOB, generation: int = 1, node: NodeId = A) -> None:
        self.place.receive(node, wire.Reserve(job, generation, "toy"))

    def release(self, job: str = JOB, generation: int = 1, node: NodeId = A) -> None:
        self.place.receive(node, wire.Release(job, generation))

    def prepare(self, generation: int = 1, node: NodeId = A, **changes: Any) -> None:
        fields: dict[str, Any] = {
            "job": JOB,
            "generation": generation,
            "spec": self.spec_blob,
            "plan": msgspec.msgpack.encode(self.plan),
            "checkpoint": b"",
            "nodes": (A, B),
            "index": 1,
            "sources": (A,),
            "term": 1,
        }
        self.place.receive(node, wire.Prepare(**(fields | changes)))

    async def running(self) -> FakeExecutor:
        """Reserve, prepare, and wait for the executor."""
        self.reserve()
        self.prepare()
        await until(lambda: FakeExecutor.made and FakeExecutor.made[-1].sent)
        executor = FakeExecutor.made[-1]
        executor.sent.clear()
        return executor

    def command(self, *orders: script.Command, oldest: int = 1, state: bytes = b"", node: NodeId = A) -> None:
        data = msgspec.msgpack.encode(list(orders))
        self.place.receive(node, wire.Command(JOB, 1, data, 1, oldest, state))

    def adopt(self, node: NodeId = C, generation: int = 1, term: int = 2) -> None:
        self.place.receive(node, wire.Adopt(JOB, generation, term))

    async def adopted(self, node: NodeId = C) -> PartState:
        """What the node's part tells the new coordinator; only the first time."""
        await until(lambda: self.outside.of(wire.Adopted, node))
        [message] = self.outside.of(wire.Adopted, node)
        data = message.part
        if parcels.is_name(data):
            blob = BlobId(msgspec.msgpack.decode(data))
            data = self.exchange.blobs.read(blob, 0, self.exchange.blobs.size(blob))
        return msgspec.msgpack.decode(data, type=PartState)

    @property
    def failures(self) -> list[str]:
        return [m.text for m in self.outside.of(wire.JobFailed)]

    def incoming(self) -> tuple[int, int]:
        """The transfer from A to B, and its size in bytes."""
        found = next(t.index for t in transfers(self.spec.graph, self.plan.assignment) if t.source == 0)
        return found, layout(self.spec.graph, self.plan, 1, self.spec.rows_per_micro_batch).offsets[found][1]


@pytest.mark.asyncio
async def test_one_job_has_the_place_and_others_learn_behind_whom_they_wait(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.reserve()
    bench.reserve("other-1", node=C)
    assert bench.place.job == JOB
    assert bench.place.waiting == ("other-1",)
    assert bench.outside.of(wire.Waiting, C) == [wire.Waiting("other-1", 1, JOB, 1)]
    bench.release(generation=0)  # of an earlier start
    assert bench.place.job == JOB
    bench.release()
    assert bench.outside.of(wire.Granted, C) == [wire.Granted("other-1", 1)]


@pytest.mark.asyncio
async def test_a_full_queue_refuses_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PlaceQueue, "LENGTH_MAX", 1)
    bench = Bench(tmp_path)
    for number in range(3):
        bench.reserve(f"job-{number}")
    assert bench.failures == ["1 jobs wait for its place already; start the job again later"]
    assert bench.place.waiting == ("job-1",)


@pytest.mark.asyncio
async def test_prepare_for_a_place_not_reserved_is_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.prepare()
    bench.reserve()
    bench.prepare(generation=2)
    assert len(bench.failures) == 2
    assert all("was not reserved for this start" in text for text in bench.failures)
    assert [n for n, m in bench.outside.sent if isinstance(m, wire.JobFailed)] == [A, A]
    assert FakeExecutor.made == []


@pytest.mark.asyncio
async def test_prepare_starts_an_executor_and_release_ends_it(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    executor = await bench.running()
    assert bench.place.executor_pids == {"compute": 4711}
    bench.prepare()  # twice
    assert "was not reserved" in bench.failures[-1]
    executor.say(commands.Prepared(99))
    assert bench.outside.of(wire.Prepared, A) == [wire.Prepared(JOB, 1, 99)]
    bench.release()
    assert bench.place.executor_pids == {}
    await until(lambda: executor.ended)


@pytest.mark.asyncio
async def test_messages_of_another_start_or_another_coordinator_are_dropped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    bench = Bench(tmp_path)
    executor = await bench.running()
    order = msgspec.msgpack.encode([script.Train(1, 4)])
    bench.place.decided({JOB: 1}, 1)
    bench.place.receive(A, wire.Command("other-1", 1, order))
    assert bench.newer == []
    bench.place.receive(A, wire.Command(JOB, 2, order))
    assert bench.place.body_for(A, wire.Tensor(JOB, 3, 0, 0), 64) is None
    assert bench.newer == [(A, 2), (A, 3)], "then the committed charter is fetched"
    bench.refusal = "another node coordinates in term 2"
    before = len(bench.outside.sent)
    bench.place.receive(C, wire.Command(JOB, 1, order))
    bench.place.receive(C, wire.Release(JOB, 1))
    bench.place.receive(C, wire.Reserve("other-1", 1))
    bench.prepare(node=C)
    bench.adopt()
    assert "refused message=Adopt" in caplog.text
    assert "reason=another node coordinates in term 2" in caplog.text
    assert (bench.place.job, bench.place.waiting, len(bench.outside.sent)) == (JOB, (), before)
    bench.refusal = ""
    bench.place.receive(A, wire.Retired(JOB, 1, 1, 3))  # A is 0 of the plan, not 1
    bench.place.receive(C, wire.Retired(JOB, 1, 0, 3))
    bench.place.receive(A, wire.Squares(JOB, 1, 9, 0, ()))
    bench.place.receive(A, wire.Release(JOB, 0))
    assert executor.sent == []
    bench.place.receive(A, wire.Command(JOB, 1, order))
    bench.place.receive(A, wire.Retired(JOB, 1, 0, 3))
    bench.place.receive(A, wire.Squares(JOB, 1, 0, 5, (1.0,)))
    assert executor.sent == [script.Train(1, 4), commands.PeerRetired(0, 3), commands.PeerSquares(0, 5, [1.0])]
    await bench.place.close()


@pytest.mark.asyncio
async def test_a_command_that_cannot_be_read_fails_the_job_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    executor = await bench.running()
    bench.place.receive(A, wire.Command(JOB, 1, b"\xc1"))
    bench.place.receive(A, wire.Command(JOB, 1, b"\xc1"))
    executor.exit("its compute process was killed by signal 9")
    assert len(bench.failures) == 1
    assert "commands that cannot be read" in bench.failures[0]
    await bench.place.close()


@pytest.mark.asyncio
async def test_tensors_are_taken_as_the_gate_says(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(tmp_path)
    transfer, nbytes = bench.incoming()
    tensor = wire.Tensor(JOB, 1, transfer, 0)
    assert bench.place.body_for(A, tensor, nbytes) is None  # nothing runs
    executor = await bench.running()
    assert bench.place.body_for(C, tensor, nbytes) is None
    assert bench.place.body_for(B, tensor, nbytes) is None
    assert bench.place.body_for(A, wire.Tensor(JOB, 2, transfer, 0), nbytes) is None
    assert bench.place.body_for(A, tensor, nbytes + 4) is None
    assert bench.place.body_for(A, wire.Tensor(JOB, 1, transfer, 2), nbytes) is None  # two frames: 0 and 1
    assert bench.place.body_for(A, wire.Tensor(JOB, 1, 2**40, 0), nbytes) is None
    assert "instead of" in caplog.text
    assert "outside the window" in caplog.text
    room = bench.place.body_for(A, tensor, nbytes)
    assert room is not None
    assert len(room) == nbytes
    assert bench.place.body_for(A, tensor, nbytes) is None
    assert "came twice" in caplog.text
    bench.place.body(A, tensor)
    assert executor.sent == [commands.Arrived(transfer, 0)]
    executor.say(commands.Retired(1))
    assert bench.outside.of(wire.Retired, A) == [wire.Retired(JOB, 1, 1, 1)]
    assert bench.place.body_for(A, wire.Tensor(JOB, 1, transfer, 2), nbytes) is not None
    executor.kill()
    assert bench.place.body_for(A, wire.Tensor(JOB, 1, transfer, 1), nbytes) is None
    await bench.place.close()


@pytest.mark.asyncio
async def test_a_result_is_sent_from_the_arena_and_sent_is_told_when_it_has_left(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    executor = await bench.running()
    back = next(t.index for t in transfers(bench.spec.graph, bench.plan.assignment) if t.source == 1)
    offset, size = layout(bench.spec.graph, bench.plan, 1, bench.spec.rows_per_micro_batch).place(back, 1)
    executor.memory[offset : offset + size] = bytes([7]) * size
    bench.outside.hold = asyncio.Event()
    executor.say(commands.Send(back, 1))
    await until(lambda: bench.outside.bodies)
    assert bench.outside.bodies == [(A, wire.Tensor(JOB, 1, back, 1), bytes([7]) * size)]
    assert executor.sent == []
    bench.outside.hold.set()
    await until(lambda: executor.sent)
    assert executor.sent == [commands.Sent(back, 1)]
    await bench.place.close()


@pytest.mark.asyncio
async def test_a_broken_link_fails_the_job_after_the_coordinators_time_to_notice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roles, "LINK_GRACE_S", 0.0)
    bench = Bench(tmp_path)
    executor = await bench.running()
    back = next(t.index for t in transfers(bench.spec.graph, bench.plan.assignment) if t.source == 1)
    real = bench.outside.send_body

    async def broken(node: NodeId, message: wire.Message, body: memoryview, priority: int = 0) -> None:
        bench.outside.peers.discard(node)
        try:
            await real(node, message, body, priority)
        finally:
            bench.outside.peers.add(node)

    monkeypatch.setattr(bench.outside, "start_body", broken)
    executor.say(commands.Send(back, 0))
    await until(lambda: bench.failures)
    assert "its link to node a broke: " in bench.failures[0]
    await bench.place.close()


@pytest.mark.asyncio
async def test_ending_kills_first_and_then_waits_for_what_is_half_sent(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    executor = await bench.running()
    back = next(t.index for t in transfers(bench.spec.graph, bench.plan.assignment) if t.source == 1)
    bench.outside.hold = asyncio.Event()
    executor.say(commands.Send(back, 0))
    await until(lambda: bench.outside.bodies)
    bench.release()
    await until(lambda: executor.killed)
    await until(lambda: executor.ended)
    assert executor.sent == []


@pytest.mark.asyncio
async def test_an_executor_that_cannot_start_fails_the_job_and_leaves_the_place_usable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeExecutor, "error", StorageError("the system starts no compute process: no memory"))
    bench = Bench(tmp_path)
    bench.reserve()
    bench.prepare()
    await until(lambda: bench.failures)
    assert bench.failures == ["the system starts no compute process: no memory"]
    bench.release()
    monkeypatch.setattr(FakeExecutor, "error", None)
    await bench.running()
    await bench.place.close()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"plan": b"\xc1"}, "malformed"),
        ({"plan": b"\x91" * 5000}, ""),
        ({"index": 0}, "does not fit the job's model and nodes"),
        ({"index": 7}, "does not fit the job's model and nodes"),
        ({"nodes": (B, A)}, "does not fit the job's model and nodes"),
        ({"spec": "0" * 64}, "no other node can be reached"),
        ({"checkpoint": msgspec.msgpack.encode("0" * 64)}, "no other node can be reached"),
    ],
)
async def test_a_prepare_that_makes_no_sense_is_one_sentence(
    tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    bench = Bench(tmp_path)
    bench.exchange._post._outside = NoBlobs(bench)  # type: ignore[assignment]
    bench.reserve()
    bench.prepare(**changes)
    await until(lambda: bench.failures)
    assert sentence in bench.failures[0].lower()
    assert FakeExecutor.made == []


class NoBlobs:
    """An outside where no peer can be reached for blobs."""

    def __init__(self, bench: Bench) -> None:
        self.send = bench.outside.send
        self.snapshot = bench.outside.snapshot

    def connected(self, node: NodeId) -> bool:
        return False


@pytest.mark.asyncio
async def test_a_spec_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.reserve()
    bench.prepare(spec=bench.exchange.blobs.put(b"not a spec"))
    await until(lambda: bench.failures)
    assert "specification cannot be read" in bench.failures[0]


@pytest.mark.asyncio
async def test_nothing_overtakes_a_restore(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    executor = await bench.running()
    part = bench.exchange.blobs.put(b"part")
    orders = [script.Restore(1, (part,)), script.Evaluate(2, "test"), script.Restore(3, ()), script.Finish()]
    bench.command(*orders[:2])
    for order in orders[2:]:
        bench.command(order)
    await until(lambda: len(executor.sent) == 4)
    assert executor.sent == orders
    executor.exit("its compute process ended with exit status 0")
    assert bench.failures == []  # it was told to finish
    await bench.place.close()


@pytest.mark.asyncio
async def test_a_restore_of_parts_that_nobody_has_fails_the_job(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    await bench.running()
    bench.exchange._post._outside = NoBlobs(bench)  # type: ignore[assignment]
    bench.command(script.Restore(1, ("0" * 64,)))
    await until(lambda: bench.failures)
    assert "no other node can be reached" in bench.failures[0]
    await bench.place.close()


@pytest.mark.asyncio
async def test_a_large_report_goes_as_a_parcel_and_a_large_plan_comes_as_one(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.plan = msgspec.structs.replace(bench.plan, reasons=("x" * 100_000,))
    packed = parcels.pack(msgspec.msgpack.encode(bench.plan), bench.exchange.blobs)
    assert parcels.is_name(packed)
    bench.reserve()
    bench.prepare(plan=packed)
    await until(lambda: FakeExecutor.made and FakeExecutor.made[-1].sent)
    executor = FakeExecutor.made[-1]
    assert executor.sent[0].plan == msgspec.msgpack.encode(bench.plan)
    executor.say(script.Done(1, bytes(100_000)))
    await until(lambda: bench.outside.of(wire.Report, A))
    report = bench.outside.of(wire.Report, A)[0].report
    assert parcels.is_name(report)
    assert bench.exchange.blobs.has(BlobId(msgspec.msgpack.decode(report)))
    await bench.place.close()


@pytest.mark.asyncio
async def test_a_lost_coordinator_without_a_part_of_the_job_disturbs_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.reserve(node=C)
    bench.prepare(node=C)
    await until(lambda: FakeExecutor.made and FakeExecutor.made[-1].sent)
    executor = FakeExecutor.made[-1]
    bench.place.member_lost(C, "connection reset")
    assert bench.place.job == JOB
    assert not executor.killed
    assert bench.failures == []
    await bench.place.close()


@pytest.mark.asyncio
async def test_the_next_coordinator_learns_how_far_the_part_is_and_is_told_from_then_on(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    executor = await bench.running()
    executor.say(commands.Prepared(99))
    bench.command(script.Train(1, 4), script.Train(2, 8), oldest=1, state=b"s1")
    executor.say(script.Progress(4, (2.0, 8), {"accuracy": (3.0, 8.0)}, 0.1, 0.2))
    executor.say(script.Done(1))
    bench.command(script.Train(3, 12), oldest=2, state=b"s2")
    bench.adopt()
    state = await bench.adopted()
    assert (state.stage, state.step, state.last, state.state) == ("running", 4, 3, b"s2")
    assert [number for number, _ in state.commands] == [2, 3]
    assert state.answers == (), "its answer to the first was had by all"
    assert (state.totals.loss_sum, state.totals.rows, state.totals.metrics) == (2.0, 8, {"accuracy": (3.0, 8.0)})
    assert state.record == b"what it knows of toy-1"
    executor.say(script.Done(2))
    assert bench.outside.of(wire.Report, C) == [wire.Report(JOB, 1, msgspec.msgpack.encode(script.Done(2)), 2)]
    assert [report.term for report in bench.outside.of(wire.Report, A)] == [1, 1], "what it had said before"
    bench.command(script.Train(2, 8), script.Train(3, 12), node=C)  # what another node had missed
    assert executor.sent == [script.Train(1, 4), script.Train(2, 8), script.Train(3, 12)]
    assert bench.place.job == JOB
    await bench.place.close()


@pytest.mark.asyncio
async def test_what_does_not_run_here_is_not_adopted_and_says_why(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.adopt()
    state = await bench.adopted()
    assert (state.stage, state.text) == ("absent", "it has no part of this start")
    bench.outside.sent.clear()
    executor = await bench.running()
    bench.adopt(generation=2)
    assert (await bench.adopted()).stage == "absent"
    bench.outside.sent.clear()
    bench.adopt()
    assert (await bench.adopted()).text == "it is not prepared yet"
    bench.outside.sent.clear()
    executor.say(commands.Prepared(1))
    executor.exit("its compute process was killed by signal 9")
    bench.adopt()
    state = await bench.adopted()
    assert (state.stage, state.text) == ("ended", "its compute process was killed by signal 9")
    await bench.place.close()


@pytest.mark.asyncio
async def test_what_the_cluster_has_ended_or_started_anew_ends_here(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    executor = await bench.running()
    bench.reserve("other-1", 3, node=C)
    bench.place.decided({JOB: 1}, 1)
    bench.place.decided({JOB: 1, JobId("other-1"): 3}, 3)
    assert not executor.killed
    bench.place.decided({}, 0)  # an older charter, which did not know of it yet
    assert bench.place.job == JOB
    bench.place.decided({JOB: 4, JobId("other-1"): 3}, 4)
    await until(lambda: executor.ended)
    assert bench.place.job == "other-1"
    assert bench.outside.of(wire.Granted, C) == [wire.Granted("other-1", 3)]
    bench.place.decided({}, 9)
    assert bench.place.job is None


@pytest.mark.asyncio
async def test_a_broken_link_between_two_nodes_of_a_job_fails_it_even_if_nothing_was_being_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roles, "LINK_GRACE_S", 0.0)
    bench = Bench(tmp_path)
    plan = plan_of(bench.spec, [A, B])
    bench.plan = msgspec.structs.replace(
        plan, nodes=(msgspec.structs.replace(plan.nodes[0], node=C, name="c"), plan.nodes[1])
    )
    bench.reserve()
    bench.prepare(nodes=(C, B))
    await until(lambda: FakeExecutor.made and FakeExecutor.made[-1].sent)
    bench.place.member_lost(C, "connection reset")
    await until(lambda: bench.failures)
    assert bench.failures == ["its link to node c broke: connection reset"]
    await bench.place.close()


@pytest.mark.asyncio
async def test_a_closed_place_begins_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.reserve()
    await bench.place.close()
    bench.prepare()
    assert len(bench.failures) == 1
    assert FakeExecutor.made == []
