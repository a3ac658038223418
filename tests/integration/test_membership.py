"""Real daemons that are stopped, go on, are killed and say goodbye: what the others show, and in what time."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.mesh import Mesh, make_job, mesh, wait_until
from tests.integration.test_failures import blobs_of, small

DEAD_WITHIN_S = 8.0
"""What the preset `loopback` promises for a process that hangs; the tests' polling and a busy machine come on top."""


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with mesh(tmp_path_factory.mktemp("three"), 3) as m:
        yield m


def peer(m: Mesh, at: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(p for p in m[at].get("peers")["peers"] if p["name"] == name)
    return found


def gone(m: Mesh, *names: str) -> int:
    """How often these nodes have called somebody gone."""
    return sum(m.nodes[name].log.count("member gone") for name in names)


def test_a_stopped_node_is_suspect_then_dead_its_job_goes_on_and_it_is_alive_again_when_it_goes_on(three: Mesh) -> None:
    m = three
    job = m.submit("a", *make_job(small(), blobs_of(rows=1200), epochs=500, nodes=("a", "b")))
    wait_until(lambda: m.job("a", job)["step"] > 0, "it trains")
    generation = m.job("a", job)["generation"]
    begin, seen = time.monotonic(), list[dict[str, Any]]()
    m.nodes["b"].process.send_signal(signal.SIGSTOP)

    def dead() -> bool:
        seen.append(peer(m, "a", "b"))
        return bool(seen[-1]["state"] == "dead")

    wait_until(dead, "a calls b dead", DEAD_WITHIN_S)
    suspect = [row for row in seen if row["state"] == "suspect"]
    assert suspect, "it was never a suspect"
    assert set(suspect[-1]["by"]) <= {"a", "c"}
    assert suspect[-1]["by"]
    assert "answers no probe" in suspect[-1]["reason"]
    wait_until(lambda: m.job("a", job)["generation"] > generation, "the job is planned again without b")
    wait_until(lambda: peer(m, "c", "b")["state"] == "dead", "c calls it dead as well", DEAD_WITHIN_S)
    assert time.monotonic() - begin < 2 * DEAD_WITHIN_S
    m.nodes["b"].process.send_signal(signal.SIGCONT)
    m.await_peers("a", "b", "c")
    assert gone(m, "b") == 0, "it stood still itself, and calls nobody dead for that"
    m["a"].post(f"jobs/{job}/cancel")
    m.await_state("a", job, "cancelled")
    again = m.submit("a", *make_job(small(), blobs_of(), nodes=("a", "b")))
    m.await_state("a", again, "done")


def test_a_short_stop_costs_nothing_but_a_suspicion(three: Mesh) -> None:
    m = three
    before = gone(m, *"abc")
    m.nodes["b"].process.send_signal(signal.SIGSTOP)
    wait_until(lambda: peer(m, "a", "b")["state"] == "suspect", "a suspects b")
    m.nodes["b"].process.send_signal(signal.SIGCONT)
    m.await_peers("a", "b", "c")
    assert gone(m, *"abc") == before


def test_a_killed_node_is_dead_at_once_one_that_stops_has_left_and_both_are_alive_when_they_start_again(
    three: Mesh,
) -> None:
    m = three
    begin = time.monotonic()
    m.nodes["c"].kill()
    wait_until(lambda: peer(m, "a", "c")["state"] == "dead", "c is dead", 5)
    assert time.monotonic() - begin < 5
    assert "refuses connections" in peer(m, "a", "c")["reason"]
    m.nodes["b"].kill(signal.SIGTERM)
    wait_until(lambda: peer(m, "a", "b")["state"] == "left", "b has left", 5)
    for name in "bc":
        m.start(name, join="a")
    m.await_peers("a", "b", "c")
    rows = [row for row in m["a"].get("peers")["peers"] if row["name"] != "a"]
    assert sorted((row["name"], row["state"]) for row in rows) == [("b", "alive"), ("c", "alive")]


def test_why_a_configured_peer_is_not_joined_is_shown(tmp_path: Path) -> None:
    with mesh(tmp_path, 1) as m:
        m.start("z", more=("--cluster", "elsewhere"))

        def row() -> dict[str, Any]:
            found: dict[str, Any] = next(p for p in m["z"].get("peers")["peers"] if p["state"] != "self")
            return found

        wait_until(lambda: row()["state"] == "unreachable", "z knows that it is not joined")
        assert "wrong cluster" in row()["reason"]
        assert row()["address"] == m.nodes["a"].address
