"""What a part reads before it begins; what it says of what cannot be had is in test_place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from p2pnn.errors import P2pnnError, UsageError
from p2pnn.job.checkpoint import Manifest, Part
from p2pnn.node.needs import Needs
from p2pnn.types import BlobId, JobId
from p2pnn.wire import messages as wire
from tests.node.nodes import JOB, A, B, C, exchange, plan_of_data, post, stored, toy_of_data

pytestmark = pytest.mark.asyncio


class Bench:
    """B prepares a start of a job whose data is in its store; A coordinates."""

    def __init__(self, folder: Path) -> None:
        self.post, self.outside = post(B)
        self.exchange = exchange(folder, self.post)
        self.spec, self.blobs = toy_of_data()
        self.spec_blob = stored(self.spec, self.blobs, self.exchange.blobs)
        self.plan = plan_of_data(self.spec, [A, B, C], workers=(0, 1), homes=(2,))

    def needs(self, index: int = 1, **changes: Any) -> Needs:
        plan = msgspec.msgpack.encode(self.plan)
        fields: dict[str, Any] = {
            "spec": self.spec_blob, "plan": plan, "checkpoint": b"", "nodes": (A, B, C), "sources": (), **changes
        }  # fmt: skip
        return Needs(wire.Prepare(JOB, 1, index=index, **fields), A, self.exchange, self.post)


async def test_spec_plan_and_checkpoint_are_as_executors_get_them(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    part = bench.exchange.blobs.put(b"weights")
    manifest = Manifest(JobId(JOB), bench.spec_blob, 4, 0, (Part(part, 7, bytes(32)),))
    packed = msgspec.msgpack.encode(manifest)
    needs = bench.needs(checkpoint=packed)
    assert await needs.read() == (bench.spec, bench.plan)
    assert needs.spec_path == str(bench.exchange.blobs.path(bench.spec_blob))
    assert (needs.packed, needs.checkpoint) == (msgspec.msgpack.encode(bench.plan), packed)
    await needs.fetch()


@pytest.mark.parametrize("index", [1, 2])
async def test_what_nobody_has_is_missed_only_by_who_reads_it(tmp_path: Path, index: int) -> None:
    bench = Bench(tmp_path)
    for blob in bench.blobs:
        bench.exchange.blobs.remove(blob)
    needs = bench.needs(index)
    await needs.read()
    if index == 2:  # it serves shards, and reads no data
        await needs.fetch()
        return
    with pytest.raises(P2pnnError):
        await needs.fetch()


async def test_a_checkpoint_part_that_is_nowhere_is_missed_by_servers_too(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    manifest = Manifest(JobId(JOB), bench.spec_blob, 4, 0, (Part(BlobId("9" * 64), 7, bytes(32)),))
    needs = bench.needs(2, checkpoint=msgspec.msgpack.encode(manifest))
    await needs.read()
    with pytest.raises(P2pnnError):
        await needs.fetch()


async def test_bytes_that_are_no_plan_or_no_spec_are_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    with pytest.raises(msgspec.MsgspecError):
        await bench.needs(plan=b"\xc1").read()
    with pytest.raises(UsageError):
        await bench.needs(spec=bench.exchange.blobs.put(b"\xc1")).read()
