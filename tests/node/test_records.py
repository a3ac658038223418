"""What a node believes of jobs, and how it tells others."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from p2pnn.executor import parts
from p2pnn.job import records as codec
from p2pnn.job.checkpoint import Manifest, Part
from p2pnn.job.records import JobRecord
from p2pnn.node import leftovers as leftovers_module
from p2pnn.node import parcels
from p2pnn.node import records as module
from p2pnn.node.records import Records
from p2pnn.node.storage import Storage
from p2pnn.types import BlobId, NodeId
from p2pnn.wire import messages as wire
from tests.node.nodes import JOB, A, B, C, exchange, post, until

pytestmark = pytest.mark.asyncio


class Bench:
    """Node A's records; members are A and B."""

    def __init__(self, folder: Path) -> None:
        self.post, self.outside = post(A)
        self.storage = Storage(folder / "state")
        self.exchange = exchange(folder / "state", self.post)
        self.members = {A: "a", B: "b"}
        self.runs = False
        self.learnt: list[JobRecord] = []
        self.records = Records(
            self.post, self.storage, self.exchange, lambda: self.members, lambda record: self.runs, self.learnt.append
        )

    def hear(self, record: JobRecord, node: NodeId = B) -> None:
        data = codec.encode(record)
        self.records.receive(node, wire.Record(record.job, record.generation, record.revision, data))

    @property
    def known(self) -> JobRecord:
        return self.records.all[JOB]

    async def close(self) -> None:
        await self.records.close()
        self.storage.close()


def record(**changes: Any) -> JobRecord:
    found = JobRecord(JOB, "toy", "train", BlobId("5" * 64), "running", B, "b", 1, 3)
    return msgspec.structs.replace(found, **changes)


def manifest(step: int, blob: BlobId) -> Manifest:
    return Manifest(JOB, BlobId("5" * 64), step, 0, (Part(blob, 1, bytes(32)),))


LONG = tuple({"epoch": float(n), "loss": 0.5, "validation_loss": 0.7} for n in range(2000))
"""A history that is too large for a message."""


async def test_the_higher_version_counts_and_survives_a_restart(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.hear(record())
    bench.hear(record(revision=2, state="paused"))
    assert bench.known.state == "running"
    bench.hear(record(revision=4, state="paused"))
    bench.hear(record(generation=2, revision=0, state="done"))
    bench.hear(record(revision=99))
    assert (bench.known.state, bench.known.generation) == ("done", 2)
    await bench.close()
    again = Bench(tmp_path)
    assert again.known.state == "done"
    await again.close()


async def test_a_job_that_runs_here_is_not_learnt(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.hear(record())
    assert bench.learnt == [bench.known]
    bench.runs = True
    bench.hear(record(revision=9))
    bench.hear(record(generation=2, revision=0))
    assert (bench.known.version, len(bench.learnt)) == ((1, 3), 1)
    await bench.close()


async def test_records_that_are_not_what_they_claim_are_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path)
    for data in (b"\xc1", b"\x91" * 5000, msgspec.msgpack.encode({"job": 5}), b""):
        bench.records.receive(B, wire.Record(JOB, 1, 1, data))
    assert "not a readable job record" in caplog.text
    bench.records.receive(B, wire.Record("other-1", 1, 1, codec.encode(record())))
    assert "it names another job" in caplog.text
    newer = msgspec.msgpack.encode(msgspec.to_builtins(record()) | {"format": 99})
    bench.records.receive(B, wire.Record(JOB, 1, 1, newer))
    assert "format 99" in caplog.text
    bench.records.receive(B, wire.Record(JOB, 1, 1, msgspec.msgpack.encode("0" * 64)))
    bench.outside.peers.clear()
    await until(lambda: "record not fetched" in caplog.text)
    assert bench.records.all == {}
    monkeypatch.setattr(module, "JOBS_MAX", 1)
    bench.hear(record())
    bench.hear(record(job="more-1"))
    bench.hear(record(revision=9))
    assert [(r.job, r.revision) for r in bench.records.all.values()] == [(JOB, 9)]
    await bench.close()


async def test_parts_that_no_record_names_any_more_are_removed(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    old, new = (bench.exchange.blobs.put(text) for text in (b"old", b"new"))
    bench.hear(record(checkpoints=(manifest(1, old),)))
    bench.hear(record(revision=4, checkpoints=(manifest(1, old), manifest(2, new))))
    assert bench.exchange.blobs.has(old)
    bench.hear(record(revision=5, checkpoints=(manifest(2, new),)))
    await bench.records.flush()
    assert not bench.exchange.blobs.has(old)
    assert bench.exchange.blobs.has(new)
    await bench.close()


async def test_a_change_is_told_to_every_other_member_and_a_large_one_as_a_parcel(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.members[C] = "c"
    bench.records.remember(record(coordinator=A, state="queued"))
    assert [n for n, m in bench.outside.sent] == [B, C]
    large = record(coordinator=A, revision=4, checkpoints=(manifest(1, BlobId("7" * 64)),), history=LONG)
    bench.records.remember(large)
    await bench.records.flush()
    told = bench.outside.of(wire.Record, B)[-1]
    assert parcels.is_name(told.record)
    blob = BlobId(msgspec.msgpack.decode(told.record))
    assert codec.decode(bench.exchange.blobs.read(blob, 0, bench.exchange.blobs.size(blob)), "x") == bench.known
    bench.records.remember(record(coordinator=A, revision=5))
    await bench.records.flush()
    assert not bench.exchange.blobs.has(blob)  # nobody needs it any more
    await bench.close()


async def test_a_parcel_is_fetched_and_learnt(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    large = record(checkpoints=(manifest(1, BlobId("7" * 64)),), history=LONG)
    name = parcels.pack(codec.encode(large), bench.exchange.blobs)  # as if it had been fetched
    bench.records.receive(B, wire.Record(JOB, 1, 3, name))
    await until(lambda: JOB in bench.records.all)
    assert bench.known == large
    stale = parcels.pack(codec.encode(msgspec.structs.replace(large, revision=1)), bench.exchange.blobs)
    bench.records.receive(C, wire.Record(JOB, 1, 3, name))  # the very record that is known
    bench.records.receive(C, wire.Record(JOB, 0, 9, stale))
    bench.records.receive(B, wire.Record(JOB, 1, 2, stale))
    assert bench.records._learning == 0
    bench.records.receive(B, wire.Record(JOB, 2, 0, codec.encode(record(generation=1))))
    assert bench.known == large
    await bench.close()


async def test_a_new_peer_is_told_of_all_jobs_no_faster_than_its_link_takes_them(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    for number in range(5):
        bench.hear(record(job=f"toy-{number}"))
    bench.outside.waiting = module.QUEUED_MAX
    bench.records.receive(B, wire.RecordRequest())
    bench.records.receive(B, wire.RecordRequest())  # one answer at a time
    await until(lambda: bench.records._telling == {B})
    assert bench.outside.sent == []
    bench.outside.waiting = 0
    await until(lambda: not bench.records._telling)
    assert [m.job for m in bench.outside.of(wire.Record)] == [f"toy-{n}" for n in range(5)]
    await bench.close()


async def test_a_disk_that_fails_loses_no_record_in_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from p2pnn.errors import StorageError

    def full(*_: object) -> None:
        raise StorageError("the disk is full")

    bench = Bench(tmp_path)
    monkeypatch.setattr(bench.storage, "save_record", full)
    monkeypatch.setattr(bench.storage.blobs, "put", full)
    large = record(coordinator=A, checkpoints=(manifest(1, BlobId("7" * 64)),), history=LONG)
    bench.records.remember(large)
    assert bench.known.checkpoints == large.checkpoints
    await bench.records.flush()
    assert "record not stored" in caplog.text
    told = codec.decode(bench.outside.of(wire.Record)[0].record, "x")
    assert told.state == "running"
    assert (told.history, told.checkpoints) == ((), large.checkpoints)
    bench.outside.sent.clear()
    many = tuple(manifest(n, BlobId("7" * 64)) for n in range(1000))
    bench.records.remember(msgspec.structs.replace(large, checkpoints=many))
    await bench.records.flush()
    assert "record not sent" in caplog.text
    assert bench.outside.sent == []
    await bench.close()


async def test_what_a_checkpoint_left_is_removed_once_no_job_is_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftovers_module, "YOUNG_S", -1.0)
    bench = Bench(tmp_path)
    store = bench.exchange.blobs
    arrays = [np.full((), value, np.float32) for value in range(3)]
    left, other, given = (parts.write(store, [("w", (), array.copy)]).blob for array in arrays)
    bench.exchange.given.add(given)
    bench.hear(record(checkpoints=(manifest(1, other),)))
    bench.hear(record(job="toy-2", state="failed"))
    await until(lambda: not bench.records._sweeping)
    assert store.has(left)  # toy-1 may be about to name it
    bench.hear(record(revision=4, state="paused", checkpoints=(manifest(1, other),)))
    await until(lambda: not store.has(left))
    await until(lambda: not bench.records._sweeping)
    assert store.has(other)
    assert store.has(given)
    await bench.close()


async def test_the_disk_is_written_by_a_thread_and_only_the_newest_of_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path)
    entered, go = threading.Event(), threading.Event()
    saved: list[int] = []

    def slow(changed: JobRecord) -> None:
        entered.set()
        go.wait(10)
        saved.append(changed.revision)

    monkeypatch.setattr(bench.storage, "save_record", slow)
    old, new = (bench.exchange.blobs.put(text) for text in (b"old", b"new"))
    bench.records.remember(record(revision=1, checkpoints=(manifest(1, old),)))
    await asyncio.to_thread(entered.wait, 10)
    for revision in range(2, 9):
        bench.records.remember(record(revision=revision, checkpoints=(manifest(2, new),)))
    assert [m.revision for m in bench.outside.of(wire.Record)] == list(range(1, 9))
    assert bench.exchange.blobs.has(old)  # the record on the disk names it
    go.set()
    await bench.close()
    assert saved == [1, 8]
    assert not bench.exchange.blobs.has(old)
    assert bench.exchange.blobs.has(new)


async def test_what_a_record_gave_up_stays_until_that_record_is_safe(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from p2pnn.errors import StorageError

    def full(changed: JobRecord) -> None:
        if changed.job == JOB:
            raise StorageError("the disk is full")

    bench = Bench(tmp_path)
    old, new = (bench.exchange.blobs.put(text) for text in (b"old", b"new"))
    bench.hear(record(checkpoints=(manifest(1, old),)))
    await bench.records.flush()
    with monkeypatch.context() as patch:
        patch.setattr(bench.storage, "save_record", full)
        bench.hear(record(revision=4, checkpoints=(manifest(2, new),)))
        bench.hear(record(job="toy-2"))
        await bench.records.flush()
    assert "record not stored" in caplog.text
    assert bench.exchange.blobs.has(old), "the record on the disk names it"
    bench.hear(record(job="toy-2", revision=4))
    await bench.records.flush()
    assert bench.exchange.blobs.has(old)
    bench.hear(record(revision=5, checkpoints=(manifest(2, new),)))
    await bench.records.flush()
    assert not bench.exchange.blobs.has(old)
    await bench.close()


async def test_a_part_with_a_name_that_no_blob_has_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(tmp_path)
    old, bad = bench.exchange.blobs.put(b"old"), BlobId("../nothing")
    bench.hear(record(checkpoints=(manifest(1, bad), manifest(2, old))))
    bench.records.commit(record(revision=4, checkpoints=()))
    bench.records.commit(record(job="toy-2"))
    await bench.records.flush()
    assert "old checkpoint not removed" in caplog.text
    assert not bench.exchange.blobs.has(old)
    assert set(bench.storage.load_records()) == {JOB, "toy-2"}
    await bench.close()
