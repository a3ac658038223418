"""Killing the coordinator of real daemons."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from tests.integration.mesh import Mesh, mesh, wait_until
from tests.integration.test_failures import long_job


def agreement(m: Mesh, *names: str) -> dict[str, Any] | None:
    """What all of these nodes say of the cluster; None where they differ, or nobody leads three voters."""
    seen: list[dict[str, Any]] = [m[name].get("cluster") for name in names]
    first = seen[0]
    if any((one["coordinator"], one["term"], one["version"]) != _state(first) for one in seen):
        return None
    voters = sum(member["voter"] for member in first["members"])
    return first if first["coordinator"] and voters == 3 else None


def _state(found: dict[str, Any]) -> tuple[str, int, str]:
    return found["coordinator"], found["term"], found["version"]


def test_a_killed_coordinator_is_replaced_and_follows_when_it_is_back(tmp_path: Path) -> None:
    with mesh(tmp_path, 3) as m:
        seen: list[dict[str, Any]] = []

        def agreed(*names: str, but: str = "") -> bool:
            found = agreement(m, *names)
            if found is not None and found["coordinator"] != but:
                seen.append(found)
            return found is not None and found["coordinator"] != but

        wait_until(lambda: agreed("a", "b", "c"), "three voters have one coordinator")
        before = seen[-1]
        victim = next(one["name"] for one in before["members"] if one["node"] == before["coordinator"])
        left = sorted({"a", "b", "c"} - {victim})
        m.nodes[victim].kill()
        wait_until(lambda: agreed(*left, but=before["coordinator"]), "there is another coordinator", 10.0)
        after = seen[-1]
        assert after["term"] > before["term"]
        assert after["cluster"] == before["cluster"]
        m.start(victim, join=left[0])
        wait_until(lambda: agreed("a", "b", "c"), "the old coordinator follows", 15.0)
        assert seen[-1]["term"] >= after["term"]


def followed(m: Mesh, name: str, job: str, found: list[dict[str, Any]]) -> threading.Thread:
    """Follow the job at a node from now on, on one stream."""

    def follow() -> None:
        found.extend(m[name].stream(f"jobs/{job}/events?after=0"))

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    return thread


def await_epoch(m: Mesh, name: str, job: str, epoch: int) -> None:
    wait_until(lambda: m.job(name, job)["epoch"] >= epoch, f"epoch {epoch} is done", 60.0)


def history(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [{key: value for key, value in entry.items() if key != "samples_per_s"} for entry in found["history"]]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The run of `job` on one node that nothing happens to."""
    with mesh(tmp_path_factory.mktemp("undisturbed"), 1) as m:
        job = m.submit("a", *long_job(checkpoint_steps=0))
        return m.await_state("a", job, "done")


def test_a_killed_coordinator_without_a_part_of_the_job_disturbs_nothing(
    tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    with mesh(tmp_path, 3) as m:
        wait_until(lambda: agreement(m, "a", "b", "c") is not None, "three voters have one coordinator")
        job = m.submit("b", *long_job(checkpoint_steps=0, nodes=("b", "c")))  # b does not coordinate
        assert m.job("b", job)["state"] in ("queued", "preparing", "running")
        events: list[dict[str, Any]] = []
        following = followed(m, "b", job, events)
        await_epoch(m, "b", job, 1)
        pids = [m[name].get("node")["executor_pid"] for name in "bc"]
        before = m.job("b", job)
        m.nodes["a"].kill()
        done = m.await_state("b", job, "done")
        assert done["result"]["bits"] == undisturbed["result"]["bits"]
        assert history(done) == history(undisturbed)
        assert before["generation"] == done["generation"], "no node was started again"
        assert done["coordinator_name"] in "bc"
        following.join(30.0)
        assert not following.is_alive()
        assert [event["epoch"] for event in events if event["kind"] == "epoch"] == [1, 2, 3, 4, 5]
        assert [event["state"] for event in events if event["kind"] == "state"][-1] == "done"
        assert not [event for event in events if event["kind"] in ("warning", "recovered")], events
        assert all(pids)
        wait_until(lambda: m.job("c", job)["state"] == "done", "the other node knows as well")


def test_jobs_are_submitted_paused_and_resumed_at_nodes_that_do_not_coordinate(
    tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    with mesh(tmp_path, 3) as m:
        wait_until(lambda: agreement(m, "a", "b", "c") is not None, "three voters have one coordinator")
        job = m.submit("c", *long_job(checkpoint_steps=0, nodes=("b",)))
        await_epoch(m, "c", job, 1)
        assert m["b"].post(f"jobs/{job}/pause")["state"] in ("pausing", "paused")
        m.await_state("c", job, "paused")
        m.nodes["a"].kill()
        wait_until(lambda: agreement(m, "b", "c") is not None, "there is another coordinator", 15.0)
        m["c"].post(f"jobs/{job}/resume")
        wait_until(lambda: m.job("b", job)["state"] != "paused", "b has heard of it")
        done = m.await_state("b", job, "done")
        assert done["result"]["bits"] == undisturbed["result"]["bits"]
        losses = [[entry["validation_loss"] for entry in found["history"]] for found in (done, undisturbed)]
        assert losses[0] == losses[1]
