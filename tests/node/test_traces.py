"""Recordings that are kept, and those of several nodes gathered: in whole daemons, and where somebody does not answer."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from p2pnn.errors import NotFoundError, UsageError
from p2pnn.job import trace
from p2pnn.job.spans import Kind, unpack
from p2pnn.job.trace import NodePart, View
from p2pnn.node import parcels
from p2pnn.node import traces as module
from p2pnn.node.asking import Asking
from p2pnn.node.recording import Recording
from p2pnn.node.storage import Storage
from p2pnn.node.traces import Missing, Traces
from p2pnn.types import JobId, NodeId
from p2pnn.wire import messages as wire
from tests.node.nodes import JOB, A, B, daemons, exchange, plan_of, post, stored, toy, until

pytestmark = pytest.mark.asyncio


class Bench:
    """Node `here`'s traces. The other's answers are the test's."""

    def __init__(self, folder: Path, here: NodeId = A) -> None:
        self.post, self.outside = post(here)
        self.storage = Storage(folder / "state")
        self.exchange = exchange(folder, self.post)
        self.asking = Asking(self.post)
        self.traces = Traces(self.post, self.storage, self.exchange, self.asking)
        self.spec, _ = toy()
        self.plan = plan_of(self.spec, [A, B])

    def recording(self, coordinator: NodeId = A, index: int = 0, generation: int = 1) -> Recording:
        found = Recording(JOB, generation, coordinator, index, self.spec, self.plan)
        found.sent(0, 3, 1.0)
        return found

    async def answer(self, verb: str, message: wire.Answered | wire.Traced) -> None:
        """Wait for the next question to B with this verb, and answer it."""
        await until(lambda: any(ask.verb == verb for ask in self.outside.of(wire.Ask, B)))
        number = next(ask.request for ask in self.outside.of(wire.Ask, B) if ask.verb == verb)
        self.outside.sent.clear()
        self.asking.receive(B, msgspec.structs.replace(message, request=number))


class Job:
    """As much of a job's record as collecting looks at."""

    def __init__(self, bench: Bench, generation: int = 1) -> None:
        self.job, self.plan, self.generation = JOB, bench.plan, generation


async def collected(bench: Bench, generation: int = 1) -> list[NodePart | Missing]:
    return [found async for found in bench.traces.collect(Job(bench, generation))]  # type: ignore[arg-type]


async def test_two_daemons_give_a_trace_while_a_job_runs_and_when_it_has_ended(tmp_path: Path) -> None:
    async with daemons(tmp_path, "a", "b") as (a, b):
        spec, blobs = toy(nodes=("a", "b"), epochs=500)
        job = await a.jobs.submit(stored(spec, blobs, a.storage.blobs))
        await until(lambda: a.jobs.get(job).plan is not None)
        running: list[NodePart | Missing] = []
        while not running or any(isinstance(part, Missing) or not part.computed for part in running):
            running = [found async for found in b.traces.collect(a.jobs.get(job))]
            assert a.jobs.get(job).state != "done", running
        await a.jobs.ask(job, "pause")
        await until(lambda: a.jobs.get(job).state == "paused")
        await until(lambda: not a.traces._live and not b.traces._live)
        for who in (a, b):
            parts = [found async for found in who.traces.collect(a.jobs.get(job))]
            for index, part in enumerate(parts):
                assert isinstance(part, NodePart), part
                assert (part.index, part.name) == (index, part.nodes[index])
                assert 0 <= part.clock_error_s < 0.5
                assert any(span.kind == Kind.UPDATE for span in unpack(part.computed)) or not index


async def test_a_part_that_ended_is_kept_and_one_that_runs_comes_first(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    first, second = bench.recording(), bench.recording(generation=2)
    bench.traces.begin(first)
    await bench.traces.end(first)
    [kept, _] = await quickly(bench)
    assert isinstance(kept, NodePart)
    assert kept.clock_error_s == 0.0
    assert [span.kind for span in unpack(kept.moved)] == [Kind.SEND]
    bench.traces.begin(second)
    [old, _] = await quickly(bench)
    assert old == Missing("a", "it recorded start 2 of the job, not start 1")
    [new, _] = await quickly(bench, generation=2)
    assert isinstance(new, NodePart)
    await bench.traces.close()


async def test_a_start_that_ends_late_leaves_the_trace_of_the_next_one_alone(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    first, second = bench.recording(), bench.recording(generation=2)
    bench.traces.begin(first)
    bench.traces.begin(second)
    await bench.traces.end(first)
    await bench.traces.end(second)
    await bench.traces.end(first)
    [kept, _] = await quickly(bench, generation=2)
    assert isinstance(kept, NodePart)
    await bench.traces.close()


async def quickly(bench: Bench, generation: int = 1) -> list[NodePart | Missing]:
    """With the other node away."""
    bench.outside.peers.discard(B)
    return await collected(bench, generation)


async def test_who_has_nothing_or_is_away_or_refuses_is_named(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    assert await quickly(bench) == [
        Missing("a", "it has recorded nothing of the job, or no longer keeps it"),
        Missing("b", "it is not connected"),
    ]
    bench.outside.peers.add(B)
    for message, reason in (
        (wire.Answered(0, "", "this p2pnn cannot trace a job for a peer; update it"), "update it"),
        (wire.Answered(0, "done"), "answered something else"),
        (wire.Traced(0, 1, b"\xc1"), "is not a readable trace"),
        (wire.Traced(0, 1, msgspec.msgpack.encode("0" * 64)), "is on none of b: start"),
        (wire.Traced(0, 1, msgspec.msgpack.encode(bench.recording().part())), "of other nodes than the job's"),
    ):
        collecting = asyncio.ensure_future(collected(bench))
        await bench.answer("trace", message)
        if "none of" in reason:
            await until(lambda: bench.outside.of(wire.BlobRequest, B))
            bench.exchange.missing(B, wire.BlobMissing(bench.outside.of(wire.BlobRequest, B)[0].request, "0" * 64))
        [_, missing] = await collecting
        assert isinstance(missing, Missing)
        assert reason in missing.reason
    collecting = asyncio.ensure_future(collected(bench))
    await bench.answer("trace", wire.Traced(0, 1, msgspec.msgpack.encode(bench.recording(index=1).part())))
    assert isinstance((await collecting)[1], NodePart)
    await bench.traces.close()


async def test_a_part_larger_than_any_is_not_fetched(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    collecting = asyncio.ensure_future(collected(bench))
    await bench.answer("trace", wire.Traced(0, 1, msgspec.msgpack.encode("1" * 64)))
    await until(lambda: bench.outside.of(wire.BlobRequest, B))
    asked = bench.outside.of(wire.BlobRequest, B)[0]
    piece = wire.BlobPiece(asked.request, asked.blob, 0, trace.PART_BYTES_MAX + 1)
    assert bench.exchange.body_for(B, piece, 1 << 20) is not None
    bench.exchange.received(B, piece)
    [_, missing] = await collecting
    assert isinstance(missing, Missing)
    assert "at most 4,194,304 are taken" in missing.reason
    await bench.exchange.close()


async def test_a_large_part_is_answered_as_a_parcel_that_goes_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    recording = bench.recording()
    for number in range(2000):
        recording.sent(0, number, 1.0)
    bench.traces.begin(recording)
    bench.asking.receive(B, wire.Ask(7, JOB, "trace"))
    await until(lambda: bench.outside.of(wire.Traced, B))
    [answer] = bench.outside.of(wire.Traced, B)
    assert answer.request == 7
    assert parcels.is_name(answer.part)
    assert len(list(bench.exchange.blobs.list())) == 1
    data = await parcels.unpack(answer.part, bench.exchange, [])
    assert len(View(trace.decode(data, "it")).moving) == 2001
    await bench.traces.close()
    assert list(bench.exchange.blobs.list()) == []
    bench.asking.receive(B, wire.Ask(8, JobId("other-1"), "trace"))
    await until(lambda: bench.outside.of(wire.Answered, B))
    assert "has recorded nothing" in bench.outside.of(wire.Answered, B)[0].error


async def test_no_more_than_some_parts_wait_to_be_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PARCELS_MAX", 2)
    monkeypatch.setattr(module, "FETCH_TIMEOUT_S", 0.0)
    bench = Bench(tmp_path)
    recording = bench.recording()
    bench.traces.begin(recording)
    bench.asking.receive(B, wire.Ask(0, JOB, "trace"))  # small: it waits for nobody
    await until(lambda: bench.outside.of(wire.Traced, B))
    for number in range(2000):
        recording.sent(0, number, 1.0)
    for number in range(1, 4):
        bench.asking.receive(B, wire.Ask(number, JOB, "trace"))
    await until(lambda: len(bench.outside.sent) == 4)
    [refused] = bench.outside.of(wire.Answered, B)
    assert (refused.request, refused.error.split(";")[0]) == (3, "it gives enough traces to others already")
    await until(lambda: not list(bench.exchange.blobs.list()))
    bench.asking.receive(B, wire.Ask(4, JOB, "trace"))
    await until(lambda: len(bench.outside.sent) == 5)
    assert len(bench.outside.of(wire.Traced, B)) == 4
    await bench.traces.close()


async def test_the_coordinators_clock_is_asked_for_and_the_quickest_trip_counts(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    recording = bench.recording(coordinator=B)
    bench.traces.begin(recording)
    for _ in range(8):
        await bench.answer("clock", wire.Traced(0, 5_000_000_000_000))
    await until(lambda: recording.offset.error_s >= 0)
    part = recording.part()
    assert part.clock_offset_s + part.taken_s == pytest.approx(5000.0, abs=5.0)
    assert 0 < part.clock_error_s < 5.0
    await bench.traces.close()
    await bench.traces.end(recording)  # asks nobody any more
    assert bench.outside.of(wire.Ask) == []
    assert bench.storage.load_trace(JOB) is not None


async def test_a_full_disk_loses_the_trace_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(tmp_path)

    def full(job: JobId, data: bytes) -> None:
        raise UsageError("the disk is full")

    monkeypatch.setattr(bench.storage, "save_trace", full)
    recording = bench.recording()
    bench.traces.begin(recording)
    await bench.traces.end(recording)
    assert "trace not stored job=toy-1 reason=the disk is full" in caplog.text
    with pytest.raises(NotFoundError):
        await bench.traces._own(JOB)
