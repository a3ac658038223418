"""What the API shows of records that may be young, old, or made by a peer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from p2pnn.api import views
from p2pnn.cluster.events import MemberSnapshot, MemberState
from p2pnn.errors import NotFoundError
from p2pnn.job import work
from p2pnn.job.assignment import Assignment, encode
from p2pnn.job.checkpoint import Manifest, Part
from p2pnn.job.records import JobRecord, SplitResult
from p2pnn.types import Address, BlobId, JobId
from tests.node.nodes import JOB, A, B, C, daemons, plan_of, plan_of_data, stored, toy, toy_of_data, until


def record(**changes: Any) -> JobRecord:
    found = JobRecord(JOB, "toy", "train", BlobId("5" * 64), "queued", A, "a", 1)
    return msgspec.structs.replace(found, **changes)


def manifest(step: int) -> Manifest:
    return Manifest(JOB, BlobId("5" * 64), step, step // 10, (Part(BlobId("6" * 64), 70, bytes(32)),))


def test_a_young_job_has_empty_places() -> None:
    found = views.details(record())
    assert (found["nodes"], found["loss"], found["metrics"], found["result"]) == ([], None, {}, None)
    assert (found["plan"], found["checkpoints"]) == (None, [])
    with pytest.raises(NotFoundError, match="is queued and has no results yet"):
        views.results(record())
    with pytest.raises(NotFoundError, match="wrote a text for who asked for it; nothing of that is kept"):
        views.results(record(kind="sample", state="done"))


def test_a_job_says_which_nodes_it_goes_on_without() -> None:
    spec, _ = toy_of_data()
    plan = plan_of_data(spec, [A, B, C], workers=(0, 1, 2), homes=(0,))
    running = record(state="running", plan=plan, generation=7)
    held = Assignment((), (2, 1))
    entry = msgspec.structs.replace(work.entry(running, 7), assignment=encode(held))
    member = MemberSnapshot(C, "c", Address("127.0.0.1", 1), MemberState.DEAD, "its port refuses", 5.0)
    found = views.details(running, entry, [member])["gone"]
    assert [(one["name"], one["state"], one["since_s"], one["reason"]) for one in found] == [
        ("c", "dead", 5.0, "its port refuses"),
        ("b", "unknown", None, ""),
    ]
    assert views.details(running, work.entry(running, 7))["gone"] == []
    assert views.details(msgspec.structs.replace(running, generation=8), entry)["gone"] == [], "of another start"


def test_a_done_job_shows_its_last_epoch_and_its_result() -> None:
    spec, _ = toy()
    done = record(
        state="done",
        plan=plan_of(spec, [A]),
        checkpoints=(manifest(10), manifest(20)),
        best=manifest(10),
        takes_best=True,
        bits="aa-bb-cc",
        history=(
            {"epoch": 1, "loss": 2.0},
            {"epoch": 2, "step": 20, "loss": 1.0, "accuracy": 0.5, "samples_per_s": 9.0},
        ),
        results=(SplitResult("test", 12, 0.9, {"accuracy": 0.6}),),
    )
    found = views.details(done)
    assert (found["loss"], found["metrics"], found["nodes"], found["best_epoch"]) == (1.0, {"accuracy": 0.5}, ["a"], 1)
    assert found["checkpoints"][1] == {"step": 20, "epoch": 2, "complete": True, "bytes": 70}
    assert list(found["result"]["evaluation"]) == [
        {"split": "test", "rows": 12, "loss": 0.9, "metrics": {"accuracy": 0.6}, "counts": {}}
    ]  # fmt: skip
    results = views.results(done)
    assert results["best"]
    assert results["manifest"]["step"] == 10
    last = views.results(msgspec.structs.replace(done, takes_best=False))
    assert not last["best"]
    assert last["manifest"]["step"] == 20


@pytest.mark.asyncio
async def test_data_sets_of_records_that_name_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with daemons(tmp_path, "a") as (a,):
        spec, blobs = toy()
        good = stored(spec, blobs, a.storage.blobs)
        chunk = next(iter(blobs))
        for number, blob in enumerate((good, chunk, BlobId("0" * 64), BlobId("../x"))):
            a.jobs.records[JOB + str(number)] = record(job=JOB + str(number), spec=blob, state="done")  # type: ignore[index]
        (row,) = views.datasets(a)
        assert (row["name"], row["jobs"], row["blobs"]) == ("made", [JOB + "0"], len(blobs))
        assert row["bytes"] == row["total_bytes"] == sum(map(len, blobs.values()))
        assert spec.train is not None
        columns = spec.train.dataset.columns[:1]
        part = msgspec.structs.replace(spec.train, dataset=msgspec.structs.replace(spec.train.dataset, columns=columns))
        narrow = stored(
            msgspec.structs.replace(spec, kind="predict", train=None, validation=None, test=part), {}, a.storage.blobs
        )
        a.jobs.records[JobId("p-1")] = record(job="p-1", spec=narrow, state="running")
        (row,) = views.datasets(a)
        assert (row["jobs"], row["active"], row["blobs"]) == ([JOB + "0", "p-1"], 1, len(blobs))
        monkeypatch.setattr(views, "SPEC_BYTES_MAX", 10)
        assert views.datasets(a) == []


@pytest.mark.asyncio
async def test_a_peer_is_shown_with_its_trip_and_its_job(tmp_path: Path) -> None:
    async with daemons(tmp_path, "a", "b") as (a, b):
        spec, _ = toy()
        plan = plan_of(spec, [A])
        share = msgspec.structs.replace(plan.nodes[0], node=b.node)
        a.jobs.records[JOB] = record(state="running", plan=msgspec.structs.replace(plan, nodes=(share,)))
        await until(lambda: views.peers(a)[1]["software"])  # what it says of itself follows its link
        first, second = views.peers(a)
        assert (first["name"], first["state"]) == ("a", "self")
        assert (second["name"], second["state"], second["job"]) == ("b", "alive", JOB)
        assert second["address"] == str(b.address)
        assert (second["software"], second["load"], second["by"]) == (views.SOFTWARE, 0, [])
        found = await views.node(a)
        assert found["rss_bytes"] > 0
        assert found["address"] == str(a.address)


@pytest.mark.asyncio
async def test_the_cluster_shows_jobs_that_are_parked(tmp_path: Path) -> None:
    async with daemons(tmp_path, "a") as (a,):
        await until(lambda: bool(views.cluster(a)["coordinator"]))
        a.jobs.records[JOB] = record(state="parked", reason="parked: no room; node b is away")
        a.jobs.records[JobId("other")] = record(job=JobId("other"), state="running")
        assert views.cluster(a)["jobs"] == [{"job": JOB, "reason": "parked: no room; node b is away"}]
