"""A job's trace from real daemons: every tensor that left came, waits are named, and no end of a job loses it."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from p2pnn.cli import trace as tracing
from p2pnn.job.shares import summary
from p2pnn.job.spans import WAITS, Kind
from p2pnn.job.trace import Trace, View, chrome
from tests.integration.mesh import Mesh, blobs_of, make_job, mesh, wait_until
from tests.integration.test_bits import tangled
from tests.job.test_trace import rendered


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with mesh(tmp_path_factory.mktemp("mesh"), 2) as found:
        yield found


def submit(found: Mesh, **settings: Any) -> str:
    fields: dict[str, Any] = {"nodes": ("a", "b"), "batch_size": 32} | settings
    return found.submit("a", *make_job(tangled(), blobs_of(), **fields))


def fetch(found: Mesh, name: str, job: str) -> Trace:
    return tracing.fetch(found[name], job)


@pytest.mark.parametrize("schedule", ["sync", "async:2"])
def test_a_finished_job_is_seen_whole_from_any_node(two: Mesh, schedule: str) -> None:
    more = {"schedule": schedule, "micro_batches": 1} if schedule != "sync" else {"micro_batches": 4}
    job = submit(two, **more)
    two.await_state("a", job, "done")
    wait_until(lambda: two["b"].get("node")["job"] is None, "b is done with it too")
    first, second = fetch(two, "a", job), fetch(two, "b", job)
    assert {part.name for part in first.parts} == {part.name for part in second.parts} == {"a", "b"}
    assert first.missing == second.missing == {}
    views = [View(part) for part in second.parts]
    ends = {kind: Counter((s.what, s.micro_batch) for v in views for s in v.moving if s.kind == kind)
            for kind in (Kind.SEND, Kind.RECEIVE)}  # fmt: skip
    assert ends[Kind.SEND] == ends[Kind.RECEIVE]
    assert set(ends[Kind.SEND].values()) == {1}
    for view in views:
        assert view.part.clock_error_s < 0.1
        assert any(view.label(span).startswith("for ") and " from " in view.label(span) for span in view.waiting)
        assert {span.kind for span in view.waiting} <= WAITS
        labels = {view.label(span) for span in view.computing}
        assert "update" in labels
        assert any(label.startswith("backward ") for label in labels)
    sent = {(s.what, s.micro_batch): s for v in views for s in v.moving if s.kind == Kind.SEND}
    slack = 2 * max(view.part.clock_error_s for view in views) + 0.001
    for view in views:
        for span in view.moving:
            if span.kind == Kind.RECEIVE:
                assert span.start >= sent[span.what, span.micro_batch].start - slack
    rendered(second)
    shares = summary(second)
    assert [share.name for share in shares] == ["a", "b"]
    assert all(0 < share.computing < 1 and share.computing + share.waiting <= 1.0001 for share in shares)


def test_a_job_that_runs_one_that_is_paused_and_one_whose_executor_was_killed(two: Mesh) -> None:
    job = submit(two, epochs=400)
    wait_until(lambda: two.job("a", job)["epoch"] > 0, "it trains")
    assert all(part.computed for part in fetch(two, "b", job).parts)
    two["a"].post(f"jobs/{job}/pause")
    two.await_state("a", job, "paused")
    wait_until(lambda: two["b"].get("node")["job"] is None, "b is done with it too")
    paused = fetch(two, "a", job)
    assert len(paused.parts) == 2
    two["a"].post(f"jobs/{job}/resume")
    wait_until(lambda: two.job("a", job)["state"] == "running", "it runs again")
    for _ in range(3):  # twice it goes on by itself
        before = two.job("a", job)["epoch"]
        wait_until(lambda before=before: two.job("a", job)["epoch"] > before, "it trains again")
        pid = two["b"].get("node")["executor_pid"]
        os.kill(pid, signal.SIGKILL)
        wait_until(
            lambda pid=pid: (
                two.job("a", job)["state"] == "failed"
                or (two.job("a", job)["state"] == "running" and two["b"].get("node")["executor_pid"] not in (None, pid))
            ),
            "it trains again, or has failed",
        )
    two.await_state("a", job, "failed")
    wait_until(lambda: two["b"].get("node")["job"] is None, "b is done with it too")
    failed = fetch(two, "a", job)
    assert failed.generation > paused.generation
    assert all(View(part).computing for part in failed.parts)
    two.nodes["b"].kill()
    wait_until(lambda: two.alive("a") == {"a"}, "b is gone")
    alone = fetch(two, "a", job)
    assert [part.name for part in alone.parts] == ["a"]
    assert "not connected" in alone.missing["b"]
    assert b"no trace: it is not connected" in chrome(alone)
