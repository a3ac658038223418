"""Job records: round trip, newer formats, damage."""

from __future__ import annotations

import msgspec
import pytest

from p2pnn.errors import CheckpointError
from p2pnn.job import records
from p2pnn.job.checkpoint import Manifest, Part, add_bits, fingerprint, tensor_bits
from p2pnn.job.plan import Plan
from p2pnn.job.records import JobRecord
from p2pnn.job.spec import Pin
from p2pnn.types import BlobId, JobId, NodeId
from tests.job.test_supervisor import make_spec


def record() -> JobRecord:
    parts = (Part(BlobId("p"), 3, bytes(32)),)
    manifest = Manifest(JobId("j"), BlobId("s"), 4, 1, parts)
    return JobRecord(
        JobId("j"), "n", "train", BlobId("s"), "paused", NodeId("a"), "a", 2, checkpoints=(manifest,), best=manifest
    )


def test_a_record_survives_the_journey() -> None:
    assert records.decode(records.encode(record()), "here") == record()
    assert record().part_blobs() == {"p"}


def test_of_two_starts_of_one_generation_that_of_the_smaller_coordinator_counts() -> None:
    of_a, of_b = record(), msgspec.structs.replace(record(), coordinator=NodeId("b"), revision=9)
    assert of_a.replaces(of_b)
    assert not of_b.replaces(of_a)
    assert not of_a.replaces(of_a)
    assert msgspec.structs.replace(of_a, revision=1).replaces(of_a)
    assert msgspec.structs.replace(of_b, generation=3, revision=0).replaces(of_a)


def test_a_newer_record_is_refused_by_name() -> None:
    newer = msgspec.msgpack.encode(msgspec.to_builtins(record()) | {"format": 9})
    with pytest.raises(CheckpointError, match=r"the file x has format 9.*reads up to 1"):
        records.decode(newer, "the file x")


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x91" * 100_000, msgspec.msgpack.encode({"job": 1}), b"\x81\xa1x"])
def test_damage_is_one_sentence(data: bytes) -> None:
    with pytest.raises(CheckpointError, match="the file x is not a readable job record"):
        records.decode(data, "the file x")


def test_the_fingerprint_does_not_depend_on_how_tensors_are_spread() -> None:
    w, b = tensor_bits("w", b"aa"), tensor_bits("b", b"bb")
    one = (Part(BlobId("1"), 1, add_bits([w, b])),)
    two = (Part(BlobId("1"), 1, add_bits([b])), Part(BlobId("2"), 1, add_bits([w])))
    assert fingerprint(one) == fingerprint(two) == fingerprint(two[::-1])
    assert fingerprint(one) != fingerprint(two[:1])
    assert tensor_bits("w", b"bb") != tensor_bits("b", b"bb")
    assert tensor_bits("w", b"") != tensor_bits("w\0", b"")


def test_a_job_of_sync_is_planned_anew() -> None:
    assert records.same_plan(Plan((), (), 1, 1.0, 1.0), record().checkpoints, make_spec(), ()) is None


def test_a_job_that_is_resumed_asks_for_no_more_than_is_here() -> None:
    here = {NodeId("1"): "a", NodeId("2"): "b"}
    asked = msgspec.structs.replace(
        make_spec(), node_count=3, nodes=("a", "c"), pins=(Pin("fc*", "c"), Pin("head", "2")), cut=(0, 1, 2)
    )
    wanted, remarks = records.attainable(asked, here, anew=False)
    assert (wanted.node_count, wanted.nodes, wanted.pins, wanted.cut) == (2, ("a",), (Pin("head", "2"),), ())
    assert remarks == [
        "the job asks for node c, which is not here; it goes on without",
        "the job asks for 3 nodes; it goes on over the 2 that are here",
    ]
    _, more = records.attainable(asked, here, anew=True)
    assert more[-1] == "the job's cut is over 3 nodes, but 2 are here; it is cut anew"
    fitting = msgspec.structs.replace(make_spec(), cut=(0, 1, 1))
    assert records.attainable(fitting, here, anew=True) == (fitting, [])
    assert records.attainable(fitting, here, anew=False)[0].cut == ()
