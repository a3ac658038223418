"""What is a leftover, and what is not."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import numpy as np

from p2pnn.data import chunks
from p2pnn.data.blobs import BlobStore
from p2pnn.executor import parts
from p2pnn.job import records, script
from p2pnn.job.checkpoint import Manifest, Part
from p2pnn.job.records import JobRecord
from p2pnn.node.leftovers import YOUNG_S, leftovers
from p2pnn.types import BlobId
from tests.node.nodes import JOB, A, B, plan_of, stored, toy


def part(blobs: BlobStore, value: float) -> Part:
    return parts.write(blobs, [("w", (3,), lambda: np.full(3, value, np.float32))])


def test_parts_and_parcels_that_no_record_names_are_leftovers_and_nothing_else(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path)
    kept, best, initial, lost = (part(blobs, value) for value in range(4))
    spec, data = toy(initial=(initial.blob,))
    spec_blob = stored(spec, data, blobs)
    stored(*toy(seed=5), blobs)  # put, but not submitted yet
    blobs.put(chunks.write(np.zeros((2, 3), np.float32)))
    blobs.put(b"")
    manifest = Manifest(JOB, spec_blob, 1, 0, (kept,))
    history = tuple({"epoch": float(n), "loss": 0.5} for n in range(2000))
    record = JobRecord(JOB, "toy", "train", spec_blob, "done", A, "a", 1, checkpoints=(manifest,), history=history)
    record = msgspec.structs.replace(record, best=Manifest(JOB, spec_blob, 1, 0, (best,)))
    blobs.put(records.encode(record))
    before = {blob for blob, _ in blobs.list()} - {lost.blob}
    parcels = {
        blobs.put(records.encode(msgspec.structs.replace(record, revision=5))),
        blobs.put(msgspec.msgpack.encode(manifest)),
        blobs.put(msgspec.msgpack.encode(plan_of(spec, [A, B]))),
        blobs.put(msgspec.msgpack.encode(script.Done(1, bytes(30_000)))),
    }
    later = time.time() + YOUNG_S + 60
    assert not set(leftovers(blobs, [record], time.time())), "a record that names them may be on its way"
    found = set(leftovers(blobs, [record], later))
    assert found == {lost.blob, *parcels}
    assert not found & before
    gone = msgspec.structs.replace(record, spec=BlobId("0" * 64), checkpoints=(), best=None, history=())
    assert {kept.blob, best.blob, initial.blob} <= set(leftovers(blobs, [gone], later))
