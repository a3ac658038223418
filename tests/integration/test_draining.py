"""Draining real nodes in the middle of a run: nothing is lost, not a step and not a byte."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from p2pnn.errors import P2pnnError
from tests.integration.mesh import Mesh, blobs_of, make_job, mesh, wait_until
from tests.integration.test_failures import long_job, small
from tests.integration.test_identity import connected, rest_of
from tests.integration.test_recovery import await_step, told
from tests.support.marks import long


def drain(m: Mesh, name: str, **body: Any) -> list[dict[str, Any]]:
    """What is told, to the end; a refusal as its last line, be it told at once or later."""
    lines: list[dict[str, Any]] = []
    try:
        lines += m[name].stream("node/drain", body=body)
    except P2pnnError as error:
        lines.append({"error": str(error)})
    return lines


@pytest.mark.parametrize("leaving", [long("b", id="a-node-of-the-plan"), pytest.param("a", id="the-coordinator-too")])
def test_a_drained_node_leaves_a_run_that_goes_on_without_a_step_redone(tmp_path: Path, leaving: str) -> None:
    with mesh(tmp_path, 3) as m:
        quiet = m.submit("c", *long_job(checkpoint_steps=0, nodes=("c",)))
        bits = m.await_state("c", quiet, "done")["result"]["bits"]
        job = m.submit("a", *long_job(checkpoint_steps=0, node_count=3))
        await_step(m, "a", job, 30)
        lines = drain(m, leaving)
        assert lines[-1] == {"drained": True}
        assert any(job in line.get("waits_for", "") for line in lines)
        assert m.nodes[leaving].process.wait(15) == 0
        shutil.rmtree(tmp_path / leaving)
        done = m.await_state("c", job, "done")
        assert done["result"]["bits"] == bits
        assert leaving not in {share["name"] for share in done["plan"]["nodes"]}
        (event,) = told(m, "c", job)
        assert event["redone"] == 0
        assert f"node {leaving} is draining: went on from step" in event["text"]
        assert m.job("c", quiet)["state"] == "done"


def test_a_node_that_drains_is_shown_so_and_not_planned_on_and_what_it_alone_holds_is_copied(tmp_path: Path) -> None:
    with mesh(tmp_path, 2) as m:
        job = m.submit("b", *make_job(small(), blobs_of(), nodes=("b",)))
        m.await_state("b", job, "done")
        assert drain(m, "b")[-1] == {"drained": True}
        assert m.nodes["b"].process.wait(15) == 0
        shutil.rmtree(tmp_path / "b")
        wait_until(lambda: m.alive("a") == {"a"}, "it has left")
        results = m["a"].get(f"jobs/{job}/results")
        assert results["manifest"]["parts"]
        for part in results["manifest"]["parts"]:
            assert len(m["a"].raw(f"blobs/{part['blob']}")) == part["size"]


def test_the_only_node_does_not_leave_its_job_unless_forced(tmp_path: Path) -> None:
    with mesh(tmp_path, 1) as m:
        job = m.submit("a", *long_job(epochs=200))
        m.await_state("a", job, "running")
        assert f"node a is alone, so nobody can take over job {job}" in drain(m, "a")[-1]["error"]
        assert m.job("a", job)["state"] == "running"
        assert drain(m, "a", force=True)[-1] == {"drained": True}
        assert m.nodes["a"].process.wait(15) == 0


@pytest.mark.parametrize("leaving", [pytest.param("a", id="the-coordinator"), long("c", id="another")])
def test_a_node_that_leaves_is_listed_by_nobody_its_links_are_refused_and_its_run_goes_on(
    tmp_path: Path, leaving: str
) -> None:
    with mesh(tmp_path, 3, secured=True) as m:
        wait_until(lambda: len(m["a"].get("cluster")["members"]) == 3, "all are members")
        stay = sorted({"a", "b", "c"} - {leaving})
        job = m.submit("b", *long_job(checkpoint_steps=0, node_count=3))
        await_step(m, "b", job, 30)
        assert drain(m, leaving, leave=True)[-1] == {"drained": True, "left": True}
        assert m.nodes[leaving].process.wait(15) == 0
        for name in stay:
            wait_until(lambda name=name: m.members(name) == set(stay), f"{name} lists it no more")
            with connected(m, leaving, name) as sock:
                assert b"was removed from the cluster" in rest_of(sock)
        done = m.await_state("b", job, "done")
        assert leaving not in {share["name"] for share in done["plan"]["nodes"]}
        (event,) = told(m, "b", job)
        assert event["redone"] == 0
        m.start(leaving, join="b")  # what it was is kept, and it knows soon that it is no member
        wait_until(lambda: m[leaving].get("node")["secured"]["removed"], "it knows that it was removed")
        assert drain(m, leaving, leave=True)[-1] == {"drained": True, "left": True}
        assert m.nodes[leaving].process.wait(15) == 0


def test_a_node_does_not_leave_where_the_cluster_cannot_decide_nor_a_plain_one_ever(tmp_path: Path) -> None:
    (tmp_path / "secured").mkdir()
    with mesh(tmp_path / "secured", 2, secured=True) as m:
        wait_until(lambda: len(m["b"].get("cluster")["members"]) == 2, "both are members")
        m.nodes["a"].kill()
        *_, last = drain(m, "b", leave=True)
        assert "the cluster decided nothing" in last["error"]
        assert last["error"].endswith("; with --force it stops nevertheless, and stays a member that is away")
        assert m.nodes["b"].process.poll() is None
        assert m.members("b") == {"a", "b"}
    (tmp_path / "plain").mkdir()
    with mesh(tmp_path / "plain", 1) as m:
        *_, last = drain(m, "a", leave=True)
        assert "this is a plain node" in last["error"]
        assert m.nodes["a"].process.poll() is None


def test_a_job_that_fits_on_nobody_else_keeps_its_node(tmp_path: Path) -> None:
    with mesh(tmp_path, 2) as m:
        first = m.submit("a", *long_job(checkpoint_steps=0, epochs=1, node_count=2))
        shares = m.await_state("a", first, "done")["plan"]["nodes"]
        limit = int(max(share["memory_bytes"] for share in shares) * 1.05)
        job = m.submit("a", *long_job(checkpoint_steps=0, epochs=200, memory_bytes_max=limit))
        m.await_state("a", job, "running")
        *_, last = drain(m, "b")
        assert f"job {job} cannot run without it" in last["error"]
        assert last["error"].endswith("; with --force it is drained nevertheless")
        assert m.job("a", job)["state"] == "running"
        assert m.nodes["b"].process.poll() is None


def test_a_service_that_is_told_to_stop_drains_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    with mesh(tmp_path, 3) as m:
        job = m.submit("a", *long_job(checkpoint_steps=0, node_count=3))
        await_step(m, "a", job, 30)
        m.nodes["c"].process.send_signal(signal.SIGTERM)
        assert m.nodes["c"].process.wait(30) == 0
        m.await_state("a", job, "done")
        (event,) = told(m, "a", job)
        assert event["redone"] == 0
