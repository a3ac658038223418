"""The messages of one start of a job."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from p2pnn.data.blobs import BlobStore
from p2pnn.errors import CheckpointError
from p2pnn.job.checkpoint import Manifest, Part
from p2pnn.job.records import queued
from p2pnn.job.supervisor import Supervisor
from p2pnn.node import parcels, starts
from p2pnn.node.blobs import BlobExchange
from p2pnn.node.links import Post
from p2pnn.types import BlobId
from p2pnn.wire import messages as wire
from tests.node.nodes import JOB, NAMES, A, B, C, Recorder, plan_of, toy


def test_prepare_names_its_node_and_where_blobs_are_and_large_parts_go_as_parcels(tmp_path: Path) -> None:
    spec, _ = toy()
    plan = msgspec.structs.replace(plan_of(spec, [A, B]), reasons=("x" * 100_000,))
    manifest = Manifest(JOB, BlobId("5" * 64), 6, 1, (Part(BlobId("6" * 64), 4, bytes(32)),))
    record = queued(JOB, BlobId("5" * 64), spec, C, "c", 0.0)
    record = msgspec.structs.replace(record, plan=plan, checkpoints=(manifest,))
    message = starts.prepare(record, 1, C, BlobStore(tmp_path), 7)
    assert (message.nodes, message.index, message.sources, message.term) == ((A, B), 1, (C, A, B), 7)
    assert parcels.is_name(message.plan)
    assert msgspec.msgpack.decode(message.checkpoint, type=Manifest) == manifest


def test_what_the_nodes_say_reaches_the_supervisor() -> None:
    spec, _ = toy()
    supervisor = Supervisor(queued(JOB, BlobId("5" * 64), spec, A, "a", 0.0), spec, dict(NAMES), 0.0)
    supervisor.planned(plan_of(spec, [A, B]), 0.0)
    supervisor.decided(1, 0.0)
    starts.tell(supervisor, A, wire.Waiting(JOB, 1, "other-1", 2), 0.1)
    for node in (A, B):
        starts.tell(supervisor, node, wire.Granted(JOB, 1), 0.2)
    assert supervisor.record.state == "preparing"
    starts.tell(supervisor, A, wire.Preparing(JOB, 1, 1, 2), 0.3)
    starts.tell(supervisor, A, wire.Prepared(JOB, 1, 9), 0.4)
    assert supervisor.record.state == "preparing"
    starts.tell(supervisor, B, wire.JobFailed(JOB, 1, "no memory"), 0.5)
    assert (supervisor.record.state, supervisor.record.reason) == ("failed", "node b: no memory")


@pytest.mark.asyncio
async def test_a_resume_starts_from_the_newest_checkpoint_of_which_every_part_can_be_reached(tmp_path: Path) -> None:
    spec, _ = toy()
    store = BlobStore(tmp_path)
    here = [store.put(bytes([number])) for number in range(2)]
    parts = [Part(blob, 1, bytes(32)) for blob in (*here, BlobId("6" * 64))]
    whole, broken = (
        Manifest(JOB, BlobId("5" * 64), step, 1, found) for step, found in ((3, tuple(parts[:2])), (6, tuple(parts)))
    )
    exchange = BlobExchange(store, Post(A, "a", Recorder(), lambda node, message: None), lambda: {A: "a"})
    record = queued(JOB, BlobId("5" * 64), spec, A, "a", 0.0)

    async def found(*checkpoints: Manifest) -> tuple[Manifest, ...]:
        return await starts.whole_checkpoints(msgspec.structs.replace(record, checkpoints=checkpoints), exchange)

    assert await found(whole, broken) == (whole,)
    assert await found(broken, whole) == (broken, whole)
    assert await found() == ()
    with pytest.raises(CheckpointError, match=r"of none of its 1 checkpoints can all parts be reached"):
        await found(broken)
