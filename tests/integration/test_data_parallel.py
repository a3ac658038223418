"""Data-parallel runs on real daemons: what they promise, and what becomes of them when something is lost."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from p2pnn import nn
from p2pnn.cli import trace as tracing
from p2pnn.job.shares import summary
from p2pnn.job.spans import ALL_WORKERS, Kind, shard_and_worker
from p2pnn.job.spec import DataParallel, JobSpec, Optimizer
from p2pnn.job.trace import View
from p2pnn.types import BlobId
from tests.integration.mesh import Mesh, blobs_of, make_job, mesh, wait_until
from tests.integration.test_draining import drain
from tests.job.test_trace import rendered
from tests.support.marks import long

Job = tuple[JobSpec, dict[BlobId, bytes]]
ADAM = Optimizer(kind="adam", rate=1e-3, warmup_steps=3, weight_decay=1e-4)
EPOCHS = 12
"""Of runs that are disturbed, of ten steps each."""


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with mesh(tmp_path_factory.mktemp("mesh"), 3) as found:
        yield found


@pytest.fixture(scope="module")
def undisturbed(three: Mesh) -> str:
    """The bits of one node's run of EPOCHS."""
    return str(done(three, alone(plain(), epochs=EPOCHS))["result"]["bits"])


def normalized(width: int = 8) -> nn.Model:
    """Convolutions with batch statistics and dropout: what an update leaves behind besides parameters."""
    image = nn.Input("image", (1, 8, 8))
    label = nn.Input("label", (), dtype="int64")
    h = nn.relu(nn.BatchNorm(name="bn")(nn.Conv2d(width, 3, padding=1, name="conv")(image)))
    h = nn.relu(nn.Linear(32, name="hidden")(nn.Dropout(0.2, name="drop")(nn.flatten(nn.MaxPool2d(2)(h)))))
    logits = nn.Linear(4, name="head")(h)
    return nn.Model(
        outputs={"probability": nn.softmax(logits)},
        loss=nn.cross_entropy(logits, label),
        metrics={"accuracy": nn.accuracy(logits, label)},
    )


def plain() -> nn.Model:
    """No statistics of batches, so that nothing but gradients decides how it ends."""
    image = nn.Input("image", (1, 8, 8))
    label = nn.Input("label", (), dtype="int64")
    h = nn.relu(nn.Linear(48, name="one")(nn.flatten(image)))
    logits = nn.Linear(4, name="two")(h)
    return nn.Model(
        outputs={"probability": nn.softmax(logits)},
        loss=nn.cross_entropy(logits, label),
        metrics={"accuracy": nn.accuracy(logits, label)},
    )


def job(model: nn.Model, how: str = "", *, workers: int = 2, shards: int = 2, **settings: Any) -> Job:
    """Of one node, or data-parallel."""
    fields: dict[str, Any] = {"batch_size": 32, "micro_batches": 4, "optimizer": ADAM} | settings
    if how:
        data = {name: fields.pop(name) for name in ("push", "pull", "cut", "replicas") if name in fields}
        data = {"replicas": 1} | data  # runs that can lose a node and go on are in test_failover
        fields |= {"parallel": "data", "data": DataParallel(how, workers=workers, shards=shards, **data)}
    return make_job(model, blobs_of(), **fields)


def alone(model: nn.Model, **settings: Any) -> Job:
    return job(model, nodes=("a",), **settings)


def done(m: Mesh, of: Job, name: str = "a") -> dict[str, Any]:
    return m.await_state(name, m.submit(name, *of), "done")


def events(m: Mesh, name: str, number: str, kind: str) -> list[dict[str, Any]]:
    return [event for event in m[name].stream(f"jobs/{number}/events?after=0") if event["kind"] == kind]


def progressed(m: Mesh, name: str, number: str) -> dict[str, Any]:
    """Follow the job to its end; the last that it told of its progress, which is nowhere kept."""
    return events(m, name, number, "progress")[-1]


def pids(m: Mesh, names: str = "abc") -> dict[str, dict[str, int]]:
    return {name: m[name].get("node")["executor_pids"] for name in names}


def gone(found: dict[str, dict[str, int]]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for roles in found.values() for pid in roles.values())


def step(m: Mesh, name: str, number: str) -> int:
    """That of the newest checkpoint."""
    return int(m.job(name, number)["step"])


def test_sync_has_the_bits_of_one_node_however_workers_and_shards_are_dealt(three: Mesh) -> None:
    one = done(three, alone(plain()))
    for workers, shards, replicas in ((1, 1, 1), (2, 1, 1), (2, 3, 2)):
        found = done(three, job(plain(), "sync", workers=workers, shards=shards, replicas=replicas))
        plan = found["plan"]
        assert (len(plan["replicas"]), len(plan["shards"])) == (workers, shards)
        assert found["result"]["bits"] == one["result"]["bits"], f"{workers} workers, {shards} shards"
        mine, its = (each["result"]["evaluation"][0] for each in (found, one))
        assert mine["rows"] == its["rows"]
        assert mine["metrics"] == its["metrics"]
        assert mine["loss"] == pytest.approx(its["loss"], rel=1e-6)
        assert [entry["step"] for entry in found["history"]] == [entry["step"] for entry in one["history"]]


@pytest.mark.parametrize("how", ["async", long("ssp:1"), "local:2", long("sync")])
def test_every_kind_learns(three: Mesh, how: str) -> None:
    found = done(three, job(normalized(), how, epochs=6))
    assert found["result"]["evaluation"][0]["metrics"]["accuracy"] > 0.9
    assert len(found["history"]) == 6
    assert found["history"][-1]["validation_loss"] < found["history"][0]["validation_loss"]


@pytest.mark.parametrize(
    "compressed", [long({"push": "int8"}), {"push": "bf16", "pull": "int8"}, long({"push": "top:0.25"})]
)
def test_compressed_gradients_and_parameters_learn_and_cost_fewer_bytes(
    three: Mesh, compressed: dict[str, str]
) -> None:
    number = three.submit("a", *job(plain(), "async", epochs=8, cut="greedy", **compressed))
    last = progressed(three, "a", number)
    found = three.await_state("a", number, "done")
    assert found["result"]["evaluation"][0]["metrics"]["accuracy"] > 0.9
    whole = 4 * sum(share["parameters"] for share in found["plan"]["nodes"][:1])
    assert 0 < last["pushed_bytes"] < 0.6 * whole


def test_progress_says_how_stale_pushes_were_what_they_cost_and_who_is_slowest(three: Mesh) -> None:
    number = three.submit("b", *job(plain(), "sync", epochs=20))
    last = progressed(three, "b", number)
    found = three.await_state("b", number, "done")
    assert last["step"] == last["steps"] == 200
    assert last["staleness"] == {"0": 2 * 2 * 200}, "of two workers, to two shards, in each step"
    assert last["pushed_bytes"] == 2 * 4 * found["plan"]["nodes"][0]["parameters"]
    assert last["fetched_bytes"] >= last["pushed_bytes"], "also for what is evaluated and saved"
    assert last["pushed_bytes_total"] == 200 * last["pushed_bytes"]
    assert (last["refused"], last["set_aside"]) == ({}, [])
    assert last["slowest"] in ("a", "b")


@pytest.mark.parametrize("how", ["sync", long("async")])
def test_a_run_that_is_paused_goes_on_with_other_shards_on_other_nodes(three: Mesh, undisturbed: str, how: str) -> None:
    number = three.submit("a", *job(plain(), how, shards=3, epochs=EPOCHS, checkpoint_steps=7))
    wait_until(lambda: step(three, "a", number) > 10, "it trains")
    running = pids(three)
    three["b"].post(f"jobs/{number}/pause")
    paused = three.await_state("a", number, "paused")
    assert 10 < paused["step"] < 10 * EPOCHS
    wait_until(lambda: gone(running), "no process is left")
    assert not any(pids(three).values())
    three["c"].post(f"jobs/{number}/resume")
    found = three.await_state("a", number, "done")
    assert len(found["history"]) == EPOCHS
    assert found["result"]["evaluation"][0]["metrics"]["accuracy"] > 0.9
    if how == "sync":
        assert found["result"]["bits"] == undisturbed


@pytest.mark.parametrize("role", ["compute", "serve"])
def test_a_compute_process_that_is_killed_costs_what_came_since_the_newest_checkpoint(
    three: Mesh, undisturbed: str, role: str
) -> None:
    number = three.submit("a", *job(plain(), "sync", epochs=EPOCHS, checkpoint_steps=3))
    wait_until(lambda: step(three, "a", number) > 10, "it trains")
    victim = next(roles[role] for roles in pids(three).values() if role in roles)
    os.kill(victim, signal.SIGKILL)
    found = three.await_state("a", number, "done")
    [told] = events(three, "a", number, "recovered")
    assert "was killed by signal 9" in told["text"]
    assert told["step"] > 10, "not from the beginning"
    assert found["result"]["bits"] == undisturbed


def test_a_run_that_stops_early_evaluates_its_best_epoch(three: Mesh) -> None:
    found = done(three, job(normalized(), "sync", epochs=60, patience=2, monitor="accuracy"))
    assert found["result"]["stopped_early"]
    assert len(found["history"]) < 60
    assert max(entry["validation_accuracy"] for entry in found["history"]) > 0.9
    assert found["result"]["evaluation"][0]["metrics"]["accuracy"] > 0.9


def test_a_run_that_is_cancelled_leaves_no_process(three: Mesh) -> None:
    number = three.submit("a", *job(plain(), "async", epochs=4000))
    wait_until(lambda: step(three, "a", number) > 0, "it trains")
    running = pids(three)
    assert sum(len(roles) for roles in running.values()) >= 3
    three["c"].post(f"jobs/{number}/cancel")
    three.await_state("a", number, "cancelled")
    wait_until(lambda: gone(running), "no process is left")
    assert not any(pids(three).values())


def test_each_node_gives_a_trace_also_one_that_only_serves(three: Mesh) -> None:
    number = three.submit("a", *job(plain(), "sync"))
    three.await_state("a", number, "done")
    wait_until(lambda: not any(pids(three).values()), "all are done with it")
    found = tracing.fetch(three["a"], number)
    assert found.missing == {}
    views = {part.name: View(part) for part in found.parts}
    labels = {name: {view.label(span).split()[0] for span in view.computing} for name, view in views.items()}
    assert labels["a"] >= {"forward", "backward"} <= labels["b"]
    assert labels["c"] == set()
    [server] = [view for view in views.values() if view.part.homes[0] == view.part.index]
    done = {(span.kind, *shard_and_worker(span.what)) for span in server.serving}
    assert {(Kind.JUDGE, 0, 0), (Kind.JUDGE, 0, 1), (Kind.APPLY, 0, ALL_WORKERS)} <= done
    rounds = [span.step for span in server.serving if span.kind == Kind.APPLY and shard_and_worker(span.what)[0] == 0]
    assert rounds == list(range(20)), "an update per step, in order"
    came = Counter(shard_and_worker(span.what) for span in server.moving if span.kind == Kind.RECEIVE_PUSH)
    assert came[0, 0] == came[0, 1] >= 20
    for name in "ab":
        kinds = {span.kind for span in views[name].moving}
        assert kinds >= {Kind.SEND_PUSH, Kind.RECEIVE_VALUES}
        waits = {views[name].label(span) for span in views[name].waiting}
        assert f"for shard 0 of the parameters, on {server.name}" in waits
    rendered(found)
    shares = {share.name: share for share in summary(found)}
    assert shares[server.name].serving
    assert not shares["c"].computes


@pytest.mark.parametrize(
    ("victim", "how"),
    [("a", "sync"), long("b", "sync"), long("c", "sync"), ("c", "async")],
)
def test_a_run_that_loses_a_node_goes_on_by_itself_from_the_newest_checkpoint(
    tmp_path: Path, undisturbed: str, victim: str, how: str
) -> None:
    """a coordinates and has a part in the run as well."""
    seen = "b" if victim == "a" else "a"
    with mesh(tmp_path, 3) as m:
        number = m.submit(seen, *job(plain(), how, epochs=EPOCHS, checkpoint_steps=5))
        wait_until(lambda: step(m, seen, number) > 10, "it trains")
        assert m.job(seen, number)["coordinator_name"] == "a"
        assert pids(m)[victim], "it has a part in the run"
        m.nodes[victim].kill()
        found = m.await_state(seen, number, "done")
        [told] = events(m, seen, number, "recovered")
        assert f"node {victim}" in told["text"]
        assert told["step"] > 10, "not from the beginning"
        assert {share["name"] for share in found["plan"]["nodes"]} == set("abc") - {victim}
        assert len(found["history"]) == EPOCHS
        assert found["result"]["evaluation"][0]["metrics"]["accuracy"] > 0.9
        if how == "sync":
            assert found["result"]["bits"] == undisturbed


@pytest.mark.parametrize("how", ["sync", long("async")])
def test_a_run_outlives_the_coordinator_that_has_no_part_in_it(tmp_path: Path, undisturbed: str, how: str) -> None:
    with mesh(tmp_path, 3) as m:
        number = m.submit("b", *job(plain(), how, nodes=("b", "c"), epochs=EPOCHS))
        wait_until(lambda: step(m, "b", number) > 10, "it trains")
        assert m.job("b", number)["coordinator_name"] == "a"
        running = pids(m, "bc")
        m.nodes["a"].kill()
        begun = step(m, "b", number)
        wait_until(lambda: step(m, "b", number) > begun + 20, "it goes on")
        assert pids(m, "bc") == running, "nothing was started again"
        assert progressed(m, "b", number)["staleness"]
        found = m.await_state("c", number, "done")
        assert [entry["epoch"] for entry in found["history"]] == list(range(1, EPOCHS + 1))
        assert not events(m, "b", number, "recovered")
        if how == "sync":
            assert found["result"]["bits"] == undisturbed


@pytest.mark.parametrize("leaving", ["b", long("c")])
def test_a_node_that_is_drained_hands_its_role_over_and_costs_no_step(
    tmp_path: Path, undisturbed: str, leaving: str
) -> None:
    with mesh(tmp_path, 3) as m:
        number = m.submit("a", *job(plain(), "sync", epochs=EPOCHS))
        wait_until(lambda: step(m, "a", number) > 10, "it trains")
        assert drain(m, leaving)[-1] == {"drained": True}
        assert m.nodes[leaving].process.wait(15) == 0
        found = m.await_state("a", number, "done")
        [told] = events(m, "a", number, "recovered")
        assert told["redone"] == 0
        assert f"node {leaving} is draining: went on from step" in told["text"]
        assert told["text"].endswith("; 0 steps redone"), "not one more, of which nobody told"
        assert leaving not in {share["name"] for share in found["plan"]["nodes"]}
        assert found["result"]["bits"] == undisturbed
