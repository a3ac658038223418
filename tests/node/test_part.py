"""What a part records of the tensors that it carries, until its end and beyond; the rest of it is in test_place."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from p2pnn.executor import commands
from p2pnn.job import trace
from p2pnn.job.segment import transfers
from p2pnn.job.spans import RING_BYTES, Kind, Ring, unpack
from p2pnn.node import part as module
from p2pnn.train.cuts import COUNTER_BYTES, places
from p2pnn.train.frames import layout
from p2pnn.wire import messages as wire
from tests.node.nodes import JOB, A, until
from tests.node.test_place import Bench, FakeExecutor

pytestmark = pytest.mark.asyncio


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
