"""Data-parallel runs on real daemons that lost a node, or that another joins: they move when they could be stronger."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.mesh import Mesh, mesh, wait_until
from tests.integration.test_data_parallel import job, pids, plain, step


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


@pytest.mark.parametrize(
    "victim", ["b", pytest.param("c", marks=pytest.mark.long), pytest.param("a", marks=pytest.mark.long)]
)
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
        wait_until(lambda: step(m, seen, number) >= begun + 20, "it goes on")  # before it moves, HEAL_S later
        assert pids(m, "".join(others)) == running, "nothing was started again"
        assert any(text.startswith(f"node {victim} is lost (") for text in warnings(m, seen, number))
        m.start(victim)
        wait_until(lambda: pids(m, victim)[victim] != {}, "the run has moved onto it", 60.0)
        begun = step(m, seen, number)
        wait_until(lambda: step(m, seen, number) > begun + 100, "it goes on there")
        m[seen].post(f"jobs/{number}/cancel")
        m.await_state(seen, number, "cancelled")


def test_a_member_that_joins_is_used_by_a_run_that_asks_for_all_there_are(tmp_path: Path) -> None:
    """It gives the shards a backup at least, and costs no step."""
    with mesh(tmp_path, 1) as m:
        number = m.submit(
            "a", *job(plain(), "async", workers=0, shards=0, replicas=0, epochs=4000, checkpoint_steps=20)
        )
        wait_until(lambda: step(m, "a", number) > 40, "it trains")
        m.start("b")
        wait_until(lambda: pids(m, "b")["b"] != {}, "the run has moved onto it", 60.0)
        begun = step(m, "a", number)
        wait_until(lambda: step(m, "a", number) > begun + 100, "it goes on there")
        moved = [event for event in told(m, "a", number) if event["kind"] == "recovered"]
        assert [event["redone"] for event in moved] == [0]
        assert str(moved[0]["text"]).startswith("the job moves onto b as well: ")
        m["a"].post(f"jobs/{number}/cancel")
        m.await_state("a", number, "cancelled")
