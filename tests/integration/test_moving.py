"""Data-parallel runs whose shards have backups, on real daemons: they lose nodes and go on, and move when they could be stronger."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.integration.mesh import Mesh, mesh, wait_until
from tests.integration.test_data_parallel import events, job, pids, plain, step


def warnings(m: Mesh, name: str, number: str) -> list[str]:
    """Those so far, of a job that goes on."""
    return [event["text"] for event in told(m, name, number) if event["kind"] == "warning"]


def told(m: Mesh, name: str, number: str) -> list[dict[str, object]]:
    """Follow the job up to its newest checkpoint's event."""
    found = []
    for event in m[name].stream(f"jobs/{number}/events?after=0"):
        found.append(event)
        if event["kind"] == "checkpoint" and event["step"] >= step(m, name, number):
            break
    return found


@pytest.mark.parametrize("victim", ["b", "c", "a"])
def test_a_run_that_loses_a_node_goes_on_and_moves_onto_it_when_it_is_back(tmp_path: Path, victim: str) -> None:
    """a coordinates; all compute, and each holds a shard and the backup of another."""
    seen = "b" if victim == "a" else "a"
    others = [name for name in "abc" if name != victim]
    with mesh(tmp_path, 3) as m:
        number = m.submit(
            seen, *job(plain(), "async", workers=3, shards=3, replicas=2, epochs=4000, checkpoint_steps=20)
        )
        wait_until(lambda: step(m, seen, number) > 40, "it trains")
        assert all(len(shard["nodes"]) == 2 for shard in m.job(seen, number)["plan"]["shards"])
        running = pids(m, "".join(others))
        m.nodes[victim].kill()
        begun = step(m, seen, number)
        wait_until(lambda: step(m, seen, number) > begun + 100, "it goes on")
        assert pids(m, "".join(others)) == running, "nothing was started again"
        assert any(text.startswith(f"node {victim} is lost (") for text in warnings(m, seen, number))
        m.start(victim)
        wait_until(lambda: pids(m, victim)[victim] != {}, "the run has moved onto it", 60.0)
        begun = step(m, seen, number)
        wait_until(lambda: step(m, seen, number) > begun + 100, "it goes on there")
        m[seen].post(f"jobs/{number}/cancel")
        m.await_state(seen, number, "cancelled")


def test_a_server_process_that_is_killed_ends_no_run(tmp_path: Path) -> None:
    with mesh(tmp_path, 3) as m:
        number = m.submit("a", *job(plain(), "async", workers=3, shards=3, replicas=2, epochs=40, checkpoint_steps=20))
        wait_until(lambda: step(m, "a", number) > 40, "it trains")
        os.kill(pids(m)["b"]["serve"], signal.SIGKILL)
        found = m.await_state("a", number, "done")
        assert len(found["history"]) == 40
        assert found["result"]["evaluation"][0]["metrics"]["accuracy"] > 0.9
        assert any(
            "node b is lost (its compute process was killed" in e["text"] for e in events(m, "a", number, "warning")
        )
