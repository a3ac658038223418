"""Killing, stopping and cutting off nodes in the middle of a run, which goes on by itself."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.mesh import Mesh, blobs_of, make_job, mesh, wait_until
from tests.integration.test_failures import long_job, small
from tests.support.marks import long


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The result of the long job on one node that nothing happens to."""
    with mesh(tmp_path_factory.mktemp("unbroken"), 1) as m:
        job = m.submit("a", *long_job(checkpoint_steps=0))
        yield m.await_state("a", job, "done")


def await_step(m: Mesh, node: str, job: str, step: int) -> None:
    """Wait until the run is beyond a step, as its followers see it."""
    for event in m[node].stream(f"jobs/{job}/events?after=0"):
        if event["kind"] in ("progress", "epoch") and event["step"] >= step:
            return
    pytest.fail("the job ended before")


def told(m: Mesh, node: str, job: str, kind: str = "recovered") -> list[dict[str, Any]]:
    return [event for event in m[node].stream(f"jobs/{job}/events?after=0") if event["kind"] == kind]


@pytest.mark.parametrize("victim", [long("b", id="a-node-of-the-plan"), pytest.param("a", id="the-coordinator-too")])
def test_a_killed_node_costs_a_few_steps_and_no_bit(tmp_path: Path, victim: str, unbroken: dict[str, Any]) -> None:
    with mesh(tmp_path, 3) as m:
        job = m.submit("a", *long_job(node_count=3, checkpoint_steps=0))
        await_step(m, "a", job, 60)
        m.nodes[victim].kill()
        eye = "c"
        done = m.await_state(eye, job, "done")
        assert done["result"]["bits"] == unbroken["result"]["bits"]
        assert {share["name"] for share in done["plan"]["nodes"]} == {"a", "b", "c"} - {victim}
        (event,) = told(m, eye, job)
        assert event["step"] >= 40
        assert event["redone"] <= 8
        assert f"node {victim}" in event["text"]
        assert f"from step {event['step']} over" in event["text"]
        epochs = {e["epoch"]: e for e in told(m, eye, job, "epoch")}
        assert [epochs[n]["validation_loss"] for n in sorted(epochs)] == [
            entry["validation_loss"] for entry in unbroken["history"]
        ]


def test_a_killed_compute_process_is_started_again_and_a_third_time_ends_the_job(
    tmp_path: Path, unbroken: dict[str, Any]
) -> None:
    with mesh(tmp_path, 2) as m:
        job = m.submit("a", *long_job(checkpoint_steps=0))
        await_step(m, "a", job, 30)
        os.kill(m["b"].get("node")["executor_pid"], signal.SIGKILL)
        done = m.await_state("a", job, "done")
        assert done["result"]["bits"] == unbroken["result"]["bits"]
        assert {share["name"] for share in done["plan"]["nodes"]} == {"a", "b"}, "the node is well"
        (event,) = told(m, "a", job)
        assert "node b: its compute process was killed by signal 9" in event["text"]

        job = m.submit("a", *long_job(checkpoint_steps=0, epochs=400, seed=5))
        killed: set[int] = set()
        for _ in range(3):
            wait_until(lambda: m.job("a", job)["state"] == "running", "it runs")
            wait_until(lambda: (m["b"].get("node")["executor_pid"] or 0) not in killed | {0}, "there is a process")
            pid = m["b"].get("node")["executor_pid"]
            killed.add(pid)
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: m.job("a", job)["state"] != "running", "it is noticed")
        failed = m.await_state("a", job, "failed")
        assert "killed by signal 9" in failed["reason"]
        assert "it was that for the 3. time" in failed["reason"]


def test_a_node_that_hangs_and_comes_back_disturbs_nothing_and_is_used_again(tmp_path: Path) -> None:
    with mesh(tmp_path, 3) as m:
        job = m.submit("a", *long_job(node_count=3, checkpoint_steps=0, epochs=40))
        await_step(m, "a", job, 30)
        old, start = m["c"].get("node")["executor_pid"], m.job("a", job)["generation"]
        m.nodes["c"].process.send_signal(signal.SIGSTOP)
        try:
            # Recovering is over within some milliseconds, and may be so between two looks.
            wait_until(lambda: m.job("a", job)["generation"] > start, "it is missed, and the others begin anew", 30)
            wait_until(lambda: m.job("a", job)["state"] == "running", "the others go on", 30)
        finally:
            m.nodes["c"].process.send_signal(signal.SIGCONT)
        wait_until(lambda: m.alive("a") == {"a", "b", "c"}, "it is back", 30)
        wait_until(lambda: not Path(f"/proc/{old}").exists() or _is_zombie(old), "its old process is ended", 15)
        assert m.job("a", job)["state"] == "running"
        m["a"].post(f"jobs/{job}/cancel")
        again = m.submit("a", *make_job(small(), blobs_of(), nodes=("c",)))
        m.await_state("a", again, "done")


def test_a_job_that_fits_nowhere_waits_and_goes_on_when_a_node_comes(tmp_path: Path, unbroken: dict[str, Any]) -> None:
    with mesh(tmp_path, 2) as m:
        job = m.submit("a", *long_job(checkpoint_steps=0, memory_bytes_max=_two_need_it(m)))
        await_step(m, "a", job, 30)
        m.nodes["b"].kill()
        parked = m.await_state("a", job, "parked")
        assert "node b is away" in parked["reason"]
        m.start("b", join="a")
        done = m.await_state("a", job, "done")
        assert done["result"]["bits"] == unbroken["result"]["bits"]


def _two_need_it(m: Mesh) -> int:
    """A limit of memory that two nodes keep and one does not."""
    job = m.submit("a", *long_job(checkpoint_steps=0, epochs=1))
    shares = m.await_state("a", job, "done")["plan"]["nodes"]
    return int(max(share["memory_bytes"] for share in shares) * 1.05)


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] == "Z"
    except OSError:
        return True


def test_who_joins_and_who_coordinates_disturbs_no_training_elsewhere(tmp_path: Path, unbroken: dict[str, Any]) -> None:
    with mesh(tmp_path, 3) as m:
        job = m.submit("c", *long_job(nodes=("b", "c"), checkpoint_steps=0))
        await_step(m, "c", job, 20)
        m.start("d", join="b")
        await_step(m, "c", job, 60)
        before = {name: m[name].get("node")["executor_pid"] for name in "bc"}
        m.nodes["a"].kill()  # it founded the cluster, so it coordinates
        m.await_peers("b", "c", "d")
        if m.job("c", job)["state"] == "running":
            assert {name: m[name].get("node")["executor_pid"] for name in "bc"} == before
        done = m.await_state("c", job, "done")
        assert done["result"]["bits"] == unbroken["result"]["bits"]
        states = [event["state"] for event in told(m, "c", job, "state")]
        assert "recovering" not in states
        assert states.count("preparing") <= 1
