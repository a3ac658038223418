"""Data-parallel runs on real daemons whose shards have replicas: what is lost with a node costs no update and no new start.

That each push counts once is seen in the parameters: `tests.support.counting`.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from p2pnn.cli.http import Daemon
from p2pnn.job.spec import DataParallel
from tests.integration.mesh import Mesh, make_job, mesh, wait_until
from tests.integration.test_data_parallel import ADAM, blobs_of, pids, plain
from tests.support.counting import Job, arrays_of, broken, counting, counts


def replicated(how: str = "async", **settings: Any) -> Job:
    """Long enough that something can be lost amid it. workers, shards: of the plan."""
    fields: dict[str, Any] = {"batch_size": 32, "micro_batches": 4, "optimizer": ADAM, "epochs": 24} | settings
    data = {name: fields.pop(name) for name in ("workers", "shards") if name in fields}
    data = {"workers": 3, "shards": 2} | data
    return make_job(plain(), blobs_of(), parallel="data", data=DataParallel(how, replicas=2, **data), **fields)


def ended(m: Mesh, of: Job, number: str, name: str) -> tuple[dict[str, NDArray[np.int64]], int]:
    """How often each row was pushed, by table, and how many batches the run says were trained again; once it is done."""
    record = m.await_state(name, number, "done", timeout_s=120)
    manifest = m[name].get(f"jobs/{number}/results")["manifest"]
    again = sum(entry.get("trained_again", 0) for entry in record["history"])
    return counts(of, arrays_of(manifest, [m.nodes[name].folder])), int(again)


def running(m: Mesh, name: str, number: str, steps: int = 20) -> dict[str, Any]:
    """Wait until it trains; the job."""
    wait_until(lambda: m.job(name, number)["step"] >= steps, "it trains", 60)
    return m.job(name, number)


def holders(job: dict[str, Any], shard: int) -> list[str]:
    """The names of the nodes that hold a shard by the plan, the primary first."""
    return [job["plan"]["nodes"][index]["name"] for index in job["plan"]["shards"][shard]["nodes"]]


def others(m: Mesh, lost: str) -> str:
    return next(name for name in m.nodes if name != lost)


def is_clean(m: Mesh) -> bool:
    """Whether no daemon, and none of its processes, had a fault."""
    return not any("Traceback" in node.log or "a fault in this program" in node.log for node in m.nodes.values())


class Watch:
    """Follows a job from a node, in a thread, since what is told of progress is kept nowhere."""

    def __init__(self, m: Mesh, name: str, number: str) -> None:
        self.told: list[dict[str, Any]] = []
        self._thread = threading.Thread(target=self._follow, args=(m[name], number), daemon=True)
        self._thread.start()

    def _follow(self, daemon: Daemon, number: str) -> None:
        for event in daemon.stream(f"jobs/{number}/events?after=0"):
            self.told.append(event)

    def kinds(self, kind: str) -> list[dict[str, Any]]:
        """All events of one kind; the job has ended."""
        self._thread.join(30)
        assert not self._thread.is_alive()
        return [event for event in self.told if event["kind"] == kind]

    def resumed_s(self, at: float) -> float:
        """Seconds from a moment until the run was a step further; not a number where it ended before it told of one."""
        told = [(event["time"], event["step"]) for event in self.kinds("progress")]
        before = max((step for when, step in told if when <= at), default=0)
        return float(min((when for when, step in told if when > at and step > before), default=math.nan) - at)


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Mesh]:
    with mesh(tmp_path, 3) as found:
        yield found


@pytest.mark.parametrize("what", ["primary", pytest.param("backup", marks=pytest.mark.long), "coordinator"])
def test_training_goes_on_without_a_new_start_when_a_node_is_killed(three: Mesh, what: str) -> None:
    number = three.submit("b", *replicated())
    job = running(three, "b", number)
    primary, backup = holders(job, 0)
    coordinator = three["b"].get("cluster")["coordinator"]
    names = {node["node"]: node["name"] for node in job["plan"]["nodes"]}
    lost = {"primary": primary, "backup": backup, "coordinator": names[coordinator]}[what]
    start, seen = job["generation"], others(three, lost)
    watch = Watch(three, seen, number)
    wait_until(lambda: bool(watch.told), "it is followed")
    at = time.time()
    three.nodes[lost].kill()
    wait_until(lambda: three.job(seen, number)["step"] > job["step"] + 20, "it trains on", 40)
    done = three.await_state(seen, number, "done", timeout_s=90)
    print(f"{what} {lost} lost: a step further after {watch.resumed_s(at):.2f} s")
    [told] = [event["text"] for event in watch.kinds("warning") if event["text"].startswith(f"node {lost} is lost")]
    assert "goes on at" in told or "has no backup now" in told
    assert done["result"]["evaluation"][0]["metrics"]["accuracy"] > 0.9
    assert len(done["history"]) == 24
    moves = [event["text"] for event in watch.kinds("recovered")]
    assert all("; 0 steps redone" in move for move in moves), "a loss costs none"
    assert done["generation"] == start or moves, "only a move begins another start"
    assert is_clean(three)


def test_each_push_counts_once_though_servers_are_killed(tmp_path: Path) -> None:
    """Two nodes train; two others hold the parameters."""
    with mesh(tmp_path, 4) as m:
        of = counting(3, workers=2, shards=1)
        number = m.submit("a", *of)
        job = running(m, "a", number, 1)
        computing = {
            job["plan"]["nodes"][index]["name"] for replica in job["plan"]["replicas"] for index in replica["nodes"]
        }
        lost = holders(job, 0)[0]
        assert lost not in computing
        seen = sorted(computing)[0]
        m.nodes[lost].kill()
        wait_until(lambda: in_sync(m, seen, number)[:1] not in ([], [lost]), "another one is the primary, amid the run")
        found, again = ended(m, of, number, seen)
        assert broken(found, 3, 0) == []
        assert again == 0
        assert is_clean(m)


def test_a_backup_that_hangs_with_its_daemon_keeps_no_write_waiting(tmp_path: Path) -> None:
    """Amid pushes that no socket holds: what is on its way to it lies in slots that workers need. It hangs until the end."""
    with mesh(tmp_path, 4) as m:
        of = counting(3, classes=2048, workers=2, shards=1)
        number = m.submit("a", *of)
        watch = Watch(m, "a", number)
        job = running(m, "a", number, 1)
        primary, backup = holders(job, 0)
        names = {node["node"]: node["name"] for node in job["plan"]["nodes"]}
        assert backup != names[m["a"].get("cluster")["coordinator"]], "whoever decides lives"
        hanging = [pids(m, backup)[backup]["serve"], m.nodes[backup].process.pid]
        at = time.time()
        for pid in hanging:
            os.kill(pid, signal.SIGSTOP)
        try:
            wait_until(lambda: in_sync(m, "a", number) == [primary], "it is waited for no more", 20)
            m.await_state("a", number, "done", timeout_s=90)
        finally:
            for pid in hanging:
                os.kill(pid, signal.SIGCONT)
        print(f"backup {backup} hangs: a step further after {watch.resumed_s(at):.2f} s")
        found, again = ended(m, of, number, "a")
        assert (again, broken(found, 3, again)) == (0, [])
        assert is_clean(m)


def test_no_push_counts_twice_nor_is_lost_with_a_worker(tmp_path: Path) -> None:
    """A worker dies that holds shards as well: what it had trained and not told is trained again, and that is told."""
    with mesh(tmp_path, 3) as m:
        of = counting(3, workers=3, shards=1)
        number = m.submit("a", *of)
        job = running(m, "a", number, 1)
        lost = holders(job, 0)[0]
        seen = others(m, lost)
        m.nodes[lost].kill()
        wait_until(lambda: in_sync(m, seen, number)[:1] not in ([], [lost]), "another one is the primary, amid the run")
        found, again = ended(m, of, number, seen)
        assert broken(found, 3, again) == []
        assert is_clean(m)


@pytest.mark.parametrize("how", ["async", "ssp:2"])
def test_without_replicas_training_goes_on_when_a_worker_is_killed_that_holds_no_shard(
    tmp_path: Path, how: str
) -> None:
    """Nobody begins anew, and what it had trained and not told is trained again."""
    with mesh(tmp_path, 3) as m:
        of = counting(3, consistency=how, replicas=1, workers=3, shards=1)
        number = m.submit("a", *of)
        job = running(m, "a", number, 1)
        [home] = holders(job, 0)
        lost = others(m, home)
        assert job["gone"] == []
        m.nodes[lost].kill()
        wait_until(lambda: bool(m.job(home, number)["gone"]), "the job goes on without it, and says so")
        [gone] = m.job(home, number)["gone"]
        assert gone["name"] == lost
        assert gone["state"] in ("suspect", "dead")
        assert gone["reason"]
        found, again = ended(m, of, number, home)
        assert m.job(home, number)["generation"] == job["generation"], "nobody began anew"
        assert broken(found, 3, again) == []
        assert is_clean(m)


def test_a_backup_that_stands_still_is_waited_for_no_more_and_comes_back(three: Mesh) -> None:
    """Its process stands still, its daemon does not: it is a learner until it has what it missed."""
    number = three.submit("a", *replicated(epochs=30, shards=1))
    job = running(three, "a", number)
    primary, backup = holders(job, 0)
    pid = pids(three)[backup]["serve"]
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: learners(three, primary, number) == [backup], "it is waited for no more", 20)
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: backup in in_sync(three, primary, number), "it is a backup again", 30)
    done = three.await_state("a", number, "done", timeout_s=90)
    assert done["generation"] == job["generation"], "nobody began anew"
    assert is_clean(three)


def learners(m: Mesh, name: str, number: str) -> list[str]:
    """Of shard 0."""
    return [learner for shard in m.job(name, number)["shards"][:1] for learner in shard["learners"]]


def in_sync(m: Mesh, name: str, number: str) -> list[str]:
    """Of shard 0, the primary first."""
    return [node for shard in m.job(name, number)["shards"][:1] for node in (shard["primary"], *shard["backups"])]
