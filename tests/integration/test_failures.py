"""What happens to a run that is broken off, paused or refused; what goes on by itself is in test_recovery."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from p2pnn import nn
from p2pnn.errors import P2pnnError
from p2pnn.job.spec import JobSpec, Optimizer
from p2pnn.types import BlobId
from tests.integration.mesh import Mesh, blobs_of, make_job, mesh, wait_until


def small() -> nn.Model:
    image = nn.Input("image", (1, 8, 8))
    label = nn.Input("label", (), dtype="int64")
    h = nn.relu(nn.Conv2d(8, 3, padding=1, name="conv1")(image))
    h = nn.relu(nn.Conv2d(8, 3, padding=1, name="conv2")(h))
    h = nn.relu(nn.Linear(32, name="fc")(nn.flatten(h)))
    logits = nn.Linear(4, name="head")(h)
    return nn.Model(
        outputs={"class": nn.argmax(logits)},
        loss=nn.cross_entropy(logits, label),
        metrics={"accuracy": nn.accuracy(logits, label)},
    )


def long_job(**settings: Any) -> tuple[JobSpec, dict[BlobId, bytes]]:
    """Some seconds of training, with a checkpoint every few steps."""
    defaults: dict[str, Any] = {"epochs": 5, "checkpoint_steps": 10, "optimizer": Optimizer(rate=1e-3, clip_norm=1.0)}
    return make_job(small(), blobs_of(rows=800), **(defaults | settings))


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A mesh for what leaves its daemons well."""
    with mesh(tmp_path_factory.mktemp("three"), 3) as m:
        yield m


@pytest.fixture(scope="module")
def unbroken_bits(three: Mesh) -> str:
    """The result of the long job on one node that nothing happens to."""
    job = three.submit("c", *long_job(checkpoint_steps=0, nodes=("c",)))
    return str(three.await_state("c", job, "done")["result"]["bits"])


def await_checkpoint(m: Mesh, node: str, job: str, count: int = 1) -> None:
    wait_until(lambda: len(m.job(node, job)["checkpoints"]) >= count, "there is a checkpoint")


def test_an_executor_never_outlives_its_daemon(tmp_path: Path) -> None:
    with mesh(tmp_path, 2, cold=True) as m:
        job = m.submit("a", *long_job())
        await_checkpoint(m, "a", job)
        pids = [m[name].get("node")["executor_pid"] for name in "ab"]
        for name in "ab":
            m.nodes[name].kill()
        wait_until(lambda: not any(_runs(pid) for pid in pids), "both executors are gone", 5)


def test_pause_resume_and_cancel(three: Mesh, unbroken_bits: str) -> None:
    m = three
    job = m.submit("a", *long_job(checkpoint_steps=0))
    wait_until(lambda: m.job("a", job)["step"] > 0, "it trains")
    m["a"].post(f"jobs/{job}/pause")
    paused = m.await_state("a", job, "paused")
    assert 0 < paused["step"] < paused["steps"]
    wait_until(lambda: m["b"].get("node")["job"] is None, "the nodes are free")
    m["b"].post(f"jobs/{job}/resume")  # from any peer
    done = m.await_state("b", job, "done")
    assert done["result"]["bits"] == unbroken_bits

    job = m.submit("a", *long_job(seed=9, nodes=("b",)))
    wait_until(lambda: m["b"].get("node")["executor_pid"] is not None, "it has begun")
    pid = m["b"].get("node")["executor_pid"]
    m["a"].post(f"jobs/{job}/cancel")
    assert m.job("a", job)["state"] == "cancelled"
    wait_until(lambda: not _runs(pid), "its executor is gone", 5)


def test_a_job_is_followed_and_cancelled_at_a_peer_that_does_not_coordinate_it(three: Mesh) -> None:
    m = three
    job = m.submit("a", *long_job(nodes=("a", "b"), seed=11))
    m.await_state("c", job, "running")
    assert m["c"].post(f"jobs/{job}/cancel")["state"] == "cancelled"
    assert m.job("a", job)["state"] == "cancelled"
    states = [e["state"] for e in m["c"].stream(f"jobs/{job}/events?after=0") if e["kind"] == "state"]
    assert states[-1] == "cancelled"
    wait_until(lambda: m["b"].get("node")["executor_pid"] is None, "node b is free")


def test_jobs_queue_visibly(three: Mesh) -> None:
    m = three
    first = m.submit("a", *long_job(nodes=("a", "b")))
    wait_until(lambda: m.job("a", first)["state"] == "running", "the first runs")
    second = m.submit("b", *make_job(small(), blobs_of(), nodes=("b",)))
    wait_until(lambda: any(second in m[n].get("node")["queue"] for n in "ab"), "the second waits")
    m["a"].post(f"jobs/{first}/cancel")
    m.await_state("b", second, "done")


def test_a_restarted_mesh_resumes_its_jobs_by_itself(tmp_path: Path, unbroken_bits: str) -> None:
    with mesh(tmp_path, 2) as m:
        job = m.submit("a", *long_job())
        await_checkpoint(m, "a", job)
        for name in "ab":
            m.nodes[name].kill()
        for name in "ab":
            m.start(name)
        m.await_peers("a", "b")
        done = m.await_state("a", job, "done")
        assert done["result"]["bits"] == unbroken_bits
        wait_until(lambda: m.job("b", job)["state"] == "done", "node b knows as well")


def test_a_disk_that_takes_no_checkpoint_is_shown_and_training_goes_on(three: Mesh) -> None:
    m = three
    job = m.submit("a", *long_job(nodes=("a", "b")))
    await_checkpoint(m, "a", job)
    temporary = m.folder / "b/blobs/temporary"
    temporary.rename(m.folder / "b/blobs/moved")  # what a broken disk looks like from above
    temporary.write_text("")
    events = m["a"].stream(f"jobs/{job}/events?after=0")
    error = next(e["error"] for e in events if e["kind"] == "checkpoint" and not e["complete"])
    assert "node b" in error
    temporary.unlink()
    (m.folder / "b/blobs/moved").rename(temporary)
    m.await_state("a", job, "done")


def test_bad_requests_are_refused_before_anything_starts(three: Mesh) -> None:
    m = three
    before = m["a"].get("jobs")
    for settings, sentence in (
        ({"batch_size": 10, "micro_batches": 3}, "not divisible by 3 micro-batches"),
        ({"node_count": 5}, "5 nodes"),
        ({"nodes": ("zelda",)}, "zelda"),
        ({"memory_bytes_max": 100_000}, "needs .* has 98 KiB"),
        ({"batch_size": 4096}, "do not fill one batch"),
    ):
        with pytest.raises(P2pnnError, match=sentence):
            m.submit("a", *make_job(small(), blobs_of(), **settings))
    assert m["a"].get("jobs") == before
    with pytest.raises(P2pnnError, match="no job"):
        m["a"].post("jobs/nothing-1/resume")


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
