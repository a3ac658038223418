"""A server's end: which pushes come into its arena, and what leaves it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from p2pnn.executor import commands
from p2pnn.ps.layout import WINDOW
from p2pnn.replication.leases import Wish
from p2pnn.types import NodeId
from p2pnn.wire import messages as wire
from tests.node.data_bench import DataBench, fake_executors
from tests.node.nodes import JOB, A, C, until

pytestmark = pytest.mark.asyncio
STRANGER = NodeId("d" * 32)


@pytest.fixture(autouse=True)
def fake_executor(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_executors(monkeypatch)


async def test_a_push_is_received_into_its_slot_and_told_once_it_is_whole(tmp_path: Path) -> None:
    bench = DataBench(tmp_path)
    await bench.begin()
    place = bench.place.body_for(A, bench.push(), bench.push_bytes)
    assert place is not None
    place[:4] = b"abcd"
    offset, size = bench.served.slot(0, 0, 1, 0)
    assert (bench.serve.memory[offset : offset + 4], size) == (b"abcd", bench.push_bytes)
    assert bench.serve.sent == []
    bench.place.body(A, bench.push())
    assert bench.serve.sent == [commands.PushArrived(0, 0, 1, 0, 7, 6, True, 5, 2)]
    # The same again is read and dropped, and the executor may answer it again.
    assert bench.place.body_for(A, bench.push(), bench.push_bytes) is None
    assert bench.serve.sent[1:] == bench.serve.sent[:1]


async def test_pushes_that_no_honest_worker_sends_are_dropped_and_their_sender_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench = DataBench(tmp_path)
    await bench.begin()
    nbytes = bench.push_bytes
    assert bench.place.body_for(A, bench.push(1), nbytes) is not None
    wrong = [
        (A, bench.push(), nbytes),  # it is coming in already
        (A, bench.push(2, worker=1), nbytes),  # another's
        (C, bench.push(2), nbytes),  # a node that computes nothing
        (STRANGER, bench.push(2), nbytes),
        (A, bench.push(2, worker=2), nbytes),
        (A, bench.push(2, shard=1), nbytes),  # C's
        (A, bench.push(2, part=1), nbytes),
        (A, bench.push(0), nbytes),
        (A, bench.push(1 + WINDOW), nbytes),  # before it is due
    ]
    for count, (node, message, size) in enumerate(wrong, 1):
        assert bench.place.body_for(node, message, size) is None
        lines = [record.getMessage() for record in caplog.records if "push refused" in record.getMessage()]
        assert len(lines) == count, "one line each"
        assert f"node={ {A: 'a', C: 'c'}.get(node, 'dddddddd') } " in lines[-1]
    assert bench.serve.sent == []


async def test_a_push_of_another_size_is_dropped_and_counted_by_the_shard(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench = DataBench(tmp_path)
    await bench.begin()
    for nbytes in (bench.push_bytes + 4, 0):
        assert bench.place.body_for(A, bench.push(2), nbytes) is None
        assert bench.serve.sent[-1] == commands.PushArrived(0, 0, 2, 0, 7, 6, True, 5, 2, misfit=nbytes)
        assert "node=a reason=part 0 of push 2 of worker 0 to shard 0 has" in caplog.text
    assert bench.place.body_for(C, bench.push(2), 0) is None
    assert bench.place.body_for(A, bench.push(2, shard=1), 0) is None
    assert bench.place.body_for(A, bench.push(2, part=1), 0) is None
    assert len(bench.serve.sent) == 2, "others' are no business of the shard's"


async def test_the_window_moves_as_the_shard_decides(tmp_path: Path) -> None:
    bench = DataBench(tmp_path)
    await bench.begin()
    assert bench.place.body_for(A, bench.push(1 + WINDOW), bench.push_bytes) is None
    bench.serve.say(commands.SendAnswer(1, 0, 0, 1, 0, "", 1, 1))
    assert bench.outside.of(wire.Pushed, A) == [wire.Pushed(JOB, 0, 1, 0, 1, log_number=1)]
    assert bench.place.body_for(A, bench.push(1 + WINDOW), bench.push_bytes) is not None


async def test_values_leave_from_the_arena_and_their_memory_is_free_when_they_have_left(tmp_path: Path) -> None:
    bench = DataBench(tmp_path)
    await bench.begin()
    bench.serve.memory[bench.served.rest : bench.served.rest + 4] = b"abcd"
    bench.outside.hold = asyncio.Event()
    bench.serve.say(commands.SendAnswer(5, 0, 0, 3, 0, "LATE", 9, 0, bench.served.rest, 4, 8, 7, False, 2))
    await until(lambda: bench.outside.bodies)
    [(node, message, body)] = bench.outside.bodies
    assert (node, body) == (A, b"abcd")
    assert message == wire.Values(JOB, 1, 0, 0, 3, 0, 8, 7, False, 2, "LATE", 9)
    assert bench.serve.sent == []
    bench.outside.hold.set()
    await until(lambda: bench.serve.sent)
    assert bench.serve.sent == [commands.AnswerLeft(5)]


async def test_fetches_and_marks_are_taken_from_the_worker_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench = DataBench(tmp_path)
    await bench.begin()
    bench.place.receive(A, wire.Fetch(JOB, 1, 0, 0, 4, 2, 9))
    bench.place.receive(A, wire.Mark(JOB, 1, 0, 0, 9))
    assert bench.serve.sent == [commands.Fetched(0, 0, 4, 2, 9), commands.Marked(0, 0, 9)]
    strange = ((STRANGER, 0, 0, 1), (STRANGER, 0, 9, 1))  # a member of the cluster that is none of the plan
    wrong = ((A, 1, 0, 1), (A, 0, 1, 1), (C, 0, 0, 1), (A, 0, 9, 1), *strange, (A, 0, 0, 2))
    for node, shard, worker, generation in wrong:
        bench.place.receive(node, wire.Fetch(JOB, generation, shard, worker, 4))
        bench.place.receive(node, wire.Mark(JOB, generation, shard, worker, 9))
    assert len(bench.serve.sent) == 2
    assert caplog.text.count("refused job=") == 12


async def test_wishes_for_batches_are_taken_from_the_worker_alone_and_answered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench = DataBench(tmp_path)
    await bench.begin()
    bench.place.receive(A, wire.LeaseWish(JOB, 1, 0, 0, 3, ((2, 4),), 5, 6, 10, 8, 2, True))
    bench.place.receive(A, wire.Rest(JOB, 1, 0, 0, 5))
    assert bench.serve.sent == [
        commands.LeasesWished(0, 0, Wish(3, ((2, 4),), 5, 6, 10, 8, 2, True)),
        commands.Rested(0, 0, 5),
    ]
    for node, shard, worker, generation in ((A, 1, 0, 1), (A, 0, 1, 1), (C, 0, 0, 1), (A, 0, 9, 1), (A, 0, 0, 2)):
        bench.place.receive(node, wire.LeaseWish(JOB, generation, shard, worker, 4))
        bench.place.receive(node, wire.Rest(JOB, generation, shard, worker, 4))
    assert len(bench.serve.sent) == 2
    assert caplog.text.count("refused job=") == 8
    bench.serve.say(commands.SendLeased(0, 0, 3, ((4, 9),), 4, 1))
    assert bench.outside.of(wire.Leased, A) == [wire.Leased(JOB, 1, 0, 0, 3, ((4, 9),), 4, 1)]
