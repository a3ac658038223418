"""Job records: round trip, newer formats, damage."""

from __future__ import annotations

import msgspec
import pytest

from p2pnn.errors import CheckpointError, UsageError
from p2pnn.job import records
from p2pnn.job.checkpoint import Manifest, Part, add_bits, fingerprint, tensor_bits
from p2pnn.job.plan import Plan
from p2pnn.job.records import JobRecord
from p2pnn.job.spec import DataParallel, Pin
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


def test_the_later_start_counts_and_of_one_start_the_higher_revision() -> None:
    known = record()
    assert not known.replaces(known)
    assert msgspec.structs.replace(known, revision=1).replaces(known)
    later = msgspec.structs.replace(known, generation=3, revision=0)
    assert later.replaces(msgspec.structs.replace(known, revision=9))


def test_what_an_old_coordinator_still_tells_counts_less_than_the_record_of_the_next() -> None:
    known = msgspec.structs.replace(record(), state="running", revision=7)
    mine = records.taken_over(known, NodeId("b"), "b", 3)
    assert (mine.generation, mine.coordinator, mine.coordinator_name) == (2, "b", "b")
    assert mine.replaces(msgspec.structs.replace(known, revision=1000))
    again = records.taken_over(mine, NodeId("c"), "c", 4)
    assert again.replaces(msgspec.structs.replace(mine, revision=mine.revision + 1000))
    same_term = records.taken_over(msgspec.structs.replace(mine, revision=mine.revision + 5), NodeId("c"), "c", 3)
    assert same_term.revision == mine.revision + 6, "a revision never goes back"
    assert [records.term_of(found) for found in (known, mine, same_term, again)] == [0, 3, 3, 4]


def test_a_start_that_is_begun_anew_or_resumed_counts_its_starts_and_has_no_generation_of_its_own_yet() -> None:
    known = msgspec.structs.replace(record(), starts=1, history=({"epoch": 1.0}, {"epoch": 2.0}), bits="")
    for begin, state in ((records.resumed, "paused"), (records.begun_anew, "running")):
        left = begin(msgspec.structs.replace(known, state=state), NodeId("b"), "b")
        assert (left.state, left.starts, left.coordinator, left.step, left.epoch) == ("queued", 2, "b", 4, 1)
        assert left.history == ({"epoch": 1.0},), "what came after the checkpoint is done again"
        assert left.generation == known.generation, "until the cluster has decided the next"
    with pytest.raises(UsageError, match="running cannot resume"):
        records.resumed(msgspec.structs.replace(known, state="running"), NodeId("b"), "b")


def test_only_what_has_not_ended_ends() -> None:
    ended = records.ended(msgspec.structs.replace(record(), state="running"), "fail", "why")
    assert (ended.state, ended.reason, ended.revision) == ("failed", "why", 1)
    with pytest.raises(UsageError, match="failed cannot"):
        records.ended(ended, "fail", "again")


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


def test_a_data_parallel_job_goes_on_with_as_many_workers_as_there_are_nodes() -> None:
    here = {NodeId(c * 32): c for c in "ab"}

    def wanted(consistency: str, workers: int, micro_batches: int = 6, **more: int) -> tuple[DataParallel | None, int]:
        data = DataParallel(consistency, workers=workers, shards=4, **more)
        asked = make_spec(batch_size=12, micro_batches=micro_batches, parallel="data", data=data)
        found, remarks = records.attainable(asked, here, anew=False)
        return found.data, len(remarks)

    for workers in (0, 1, 2):
        assert wanted("sync", workers) == (DataParallel("sync", workers=workers, shards=4), 0)
    assert wanted("async", 3) == (DataParallel("async", workers=2, shards=4), 1)
    assert wanted("sync", 3) == (DataParallel("sync", workers=2, shards=4), 1)
    assert wanted("sync", 3, micro_batches=3) == (DataParallel("sync", workers=1, shards=4), 1)
    assert wanted("sync", 3, backup=2) == (DataParallel("sync", workers=2, shards=4, backup=1), 2)


def test_a_job_of_workers_that_are_cut_goes_on_with_what_the_nodes_suffice_for() -> None:
    def wanted(nodes: int, workers: int, segments: int, replicas: int = 0) -> tuple[str, int, int, list[str]]:
        here = {NodeId(c * 32): c for c in "abcd"[:nodes]}
        data = DataParallel("async", workers=workers, segments=segments, replicas=replicas)
        found, remarks = records.attainable(make_spec(parallel="hybrid", data=data), here, anew=False)
        assert found.data is not None
        return found.parallel, found.data.workers, found.data.segments, remarks

    assert wanted(4, 2, 2) == ("hybrid", 2, 2, [])
    assert wanted(4, 0, 0) == ("hybrid", 0, 0, [])
    assert wanted(3, 2, 2)[:3] == ("hybrid", 1, 2)
    assert wanted(3, 2, 2)[3] == ["the job asks for 2 workers of 2 nodes each, but 3 nodes are here; it goes on with 1"]
    assert wanted(2, 1, 3)[:3] == ("hybrid", 1, 0)
    assert (
        "workers of 3 nodes each, but 2 nodes are here; it goes on with fewer nodes for each" in wanted(2, 1, 3)[3][0]
    )
    assert wanted(1, 2, 2)[:3] == ("data", 1, 1)
    assert wanted(3, 2, 2, replicas=2)[:3] == ("hybrid", 1, 2)
    assert "asks for two nodes for each shard" in wanted(1, 2, 2, replicas=2)[3][1]
    assert wanted(1, 2, 2)[3][0].endswith("but 1 node is here; it goes on with the whole model on it")
