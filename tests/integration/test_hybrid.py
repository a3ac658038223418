"""Workers that are cut over several real daemons: what they promise, and what becomes of them when something is lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from p2pnn import nn
from p2pnn.cli import trace as tracing
from p2pnn.job.spec import DataParallel, Optimizer
from p2pnn.job.trace import View
from p2pnn.model.graph import Parameter
from p2pnn.model.initial import initial
from tests.integration.mesh import Mesh, blobs_of, make_job, mesh, wait_until
from tests.integration.test_data_parallel import (
    ADAM,
    EPOCHS,
    Job,
    alone,
    done,
    events,
    gone,
    normalized,
    pids,
    plain,
    progressed,
    step,
)
from tests.integration.test_draining import drain
from tests.integration.test_failover import is_clean, running
from tests.integration.test_moving import told, warnings
from tests.support.marks import long

ALL = "abcd"


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with mesh(tmp_path_factory.mktemp("mesh"), 4) as found:
        yield found


@pytest.fixture(scope="module")
def undisturbed(four: Mesh) -> str:
    """The bits of one node's run of EPOCHS."""
    return str(done(four, alone(plain(), epochs=EPOCHS))["result"]["bits"])


def job(model: nn.Model, how: str, *, workers: int = 2, segments: int = 2, shards: int = 2, **settings: Any) -> Job:
    fields: dict[str, Any] = {"batch_size": 32, "micro_batches": 4, "optimizer": ADAM} | settings
    data = DataParallel(how, workers=workers, shards=shards, segments=segments)
    return make_job(model, blobs_of(), **fields, parallel="hybrid", data=data)


@pytest.mark.parametrize(("workers", "segments", "shards"), [(2, 2, 2), long(1, 2, 3), long(1, 2, 2)])
def test_sync_has_the_bits_of_one_node(four: Mesh, workers: int, segments: int, shards: int) -> None:
    one = done(four, alone(plain()))
    number = four.submit("b", *job(plain(), "sync", workers=workers, segments=segments, shards=shards))
    last = progressed(four, "b", number)
    found = four.await_state("b", number, "done")
    plan = found["plan"]
    assert [len(replica["nodes"]) for replica in plan["replicas"]] == [segments] * workers
    assert len(plan["shards"]) == shards
    assert found["result"]["bits"] == one["result"]["bits"]
    mine, its = (each["result"]["evaluation"][0] for each in (found, one))
    assert (mine["rows"], mine["metrics"]) == (its["rows"], its["metrics"])
    assert mine["loss"] == pytest.approx(its["loss"], rel=1e-6)
    assert [entry["step"] for entry in found["history"]] == [entry["step"] for entry in one["history"]]
    assert last["step"] == last["steps"]
    assert last["staleness"] == {"0": workers * shards * last["steps"]}
    names = ["+".join(plan["nodes"][n]["name"] for n in replica["nodes"]) for replica in plan["replicas"]]
    assert last["slowest"] in (names if workers > 1 else [""])
    parameters = sum(plan["nodes"][n]["parameters"] for n in plan["replicas"][0]["nodes"])
    assert last["pushed_bytes"] == workers * 4 * parameters, "each gradient once, by the node that has its layer"


@pytest.mark.parametrize("how", ["async", long("ssp:1"), long("local:2")])
def test_every_kind_learns(four: Mesh, how: str) -> None:
    found = done(four, job(normalized(), how, epochs=6))
    assert found["result"]["evaluation"][0]["metrics"]["accuracy"] > 0.9
    assert found["history"][-1]["validation_loss"] < found["history"][0]["validation_loss"]


def test_each_node_of_a_replica_gives_a_trace_of_its_layers(four: Mesh) -> None:
    number = four.submit("a", *job(plain(), "sync"))
    four.await_state("a", number, "done")
    wait_until(lambda: not any(pids(four, ALL).values()), "all are done with it")
    found = tracing.fetch(four["a"], number)
    assert found.missing == {}
    for part in found.parts:
        view = View(part)
        assert {view.label(span).split()[0] for span in view.computing} >= {"forward", "backward"}


def test_a_run_that_is_paused_goes_on_without_being_cut(four: Mesh, undisturbed: str) -> None:
    number = four.submit("a", *job(plain(), "sync", epochs=EPOCHS, checkpoint_steps=7))
    wait_until(lambda: step(four, "a", number) > 10, "it trains")
    running = pids(four, ALL)
    four["b"].post(f"jobs/{number}/pause")
    paused = four.await_state("a", number, "paused")
    assert 10 < paused["step"] < 10 * EPOCHS
    wait_until(lambda: gone(running), "no process is left")
    four["c"].post(f"jobs/{number}/resume")
    assert four.await_state("a", number, "done")["result"]["bits"] == undisturbed


@pytest.mark.parametrize("victim", ["b", long("a"), long("d")])
def test_a_run_in_sync_that_loses_a_node_goes_on_from_the_newest_checkpoint_over_who_is_left(
    tmp_path: Path, undisturbed: str, victim: str
) -> None:
    """Three nodes are left, for one replica of two: so many workers there are, and no more, without a wish."""
    seen = "c"
    with mesh(tmp_path, 4) as m:
        number = m.submit(seen, *job(plain(), "sync", workers=0, shards=0, epochs=EPOCHS, checkpoint_steps=5))
        wait_until(lambda: step(m, seen, number) > 10, "it trains")
        assert len(m.job(seen, number)["plan"]["replicas"]) == 2
        assert pids(m, ALL)[victim], "it has a part in the run"
        m.nodes[victim].kill()
        found = m.await_state(seen, number, "done")
        [told] = events(m, seen, number, "recovered")
        assert f"node {victim}" in told["text"]
        assert told["step"] > 10, "not from the beginning"
        assert [len(replica["nodes"]) for replica in found["plan"]["replicas"]] == [2]
        assert {share["name"] for share in found["plan"]["nodes"]} <= set(ALL) - {victim}
        assert len(found["history"]) == EPOCHS
        assert found["result"]["evaluation"][0]["metrics"]["accuracy"] > 0.9
        assert found["result"]["bits"] == undisturbed


def holding(job: dict[str, Any], index: int) -> list[int]:
    """The shards that a node of the plan holds, as their primary or as a backup."""
    return [shard for shard, home in enumerate(job["plan"]["shards"]) if index in home["nodes"]]


@pytest.mark.parametrize(("how", "position"), [("async", 1), long("async", 0), long("ssp:1", 1), long("async", -1)])
def test_a_worker_that_loses_a_node_is_rebuilt_while_the_others_go_on(tmp_path: Path, how: str, position: int) -> None:
    """Of five nodes one serves alone; four are left, for two workers of two nodes again. The other worker does not stop, and the
    node that is left of the broken one holds its shards on, until the job moves. position: of the lost node in its worker; −1 for
    the node that coordinates."""
    with mesh(tmp_path, 5) as m:
        number = m.submit("a", *job(plain(), how, shards=3, epochs=4000, checkpoint_steps=20))
        wait_until(lambda: step(m, "a", number) > 40, "it trains")
        found = m.job("a", number)
        plan, names = found["plan"], [share["name"] for share in found["plan"]["nodes"]]
        assert [len(home["nodes"]) for home in plan["shards"]] == [2, 2, 2], "without a wish"
        computing = [(w, n) for w, replica in enumerate(plan["replicas"]) for n in replica["nodes"]]
        worker, victim = next(
            (w, n)
            for w, n in computing
            if (names[n] == "a" if position < 0 else n == plan["replicas"][w]["nodes"][position] and names[n] != "a")
        )
        lost = names[victim]
        seen = next(name for name in ALL if name != lost)
        left = [name for name in names if name != lost]
        before = pids(m, "".join(left))
        m.nodes[lost].kill()
        begun = step(m, seen, number)
        wait_until(lambda: step(m, seen, number) >= begun + 40, "it goes on")  # before it moves, HEAL_S later
        assert pids(m, "".join(left)) == before, "nothing was started again"
        [text] = [text for text in warnings(m, seen, number) if text.startswith(f"node {lost} is lost (")]
        [other] = [names[n] for n in plan["replicas"][worker]["nodes"] if n != victim]
        assert text.endswith(
            f"worker {worker}'s batches go to the others; {other}, of the same worker, computes no more"
        )
        wait_until(lambda: m.job(seen, number)["generation"] > found["generation"], "it moves", 60.0)
        wait_until(lambda: m.job(seen, number)["state"] == "running", "it goes on there", 60.0)
        begun = step(m, seen, number)
        wait_until(lambda: step(m, seen, number) > begun + 40, "it trains there")
        again = m.job(seen, number)["plan"]
        assert [len(replica["nodes"]) for replica in again["replicas"]] == [2, 2]
        assert {share["name"] for share in again["nodes"]} == set(left)
        moved = [event for event in told(m, seen, number) if event["kind"] == "recovered"]
        assert [event["redone"] for event in moved] == [0], "no step was lost"
        m[seen].post(f"jobs/{number}/cancel")
        m.await_state(seen, number, "cancelled")
        assert is_clean(m)


ROWS, FEATURES = 200, 8


def counting(epochs: int) -> Job:
    """Two tables, each on one node of every worker, with one row per row of data; batches are one row, and a push halves its
    row of both, exactly."""
    row, target = nn.Input("row", (), dtype="int64"), nn.Input("target", (2 * FEATURES,))
    tables = [nn.Embedding(ROWS, FEATURES, name=name)(row) for name in ("left", "right")]
    held = nn.concat(tables)
    model = nn.Model(outputs={"held": held}, loss=nn.mean_squared_error(held, target))
    columns = {"row": np.arange(ROWS, dtype=np.int64), "target": np.zeros((ROWS, 2 * FEATURES), np.float32)}
    return make_job(
        model,
        columns,
        epochs=epochs,
        batch_size=1,
        micro_batches=1,
        optimizer=Optimizer("sgd", rate=FEATURES / 2, schedule="constant"),
        parallel="hybrid",
        data=DataParallel("async", workers=2, segments=2, shards=2, replicas=2),
    )


def pushes(m: Mesh, of: Job, number: str, table: Parameter) -> list[int]:
    """By row: how many pushes of it its value tells of. Raises AssertionError for a value that none makes."""
    found = np.empty(0)
    for part in m["a"].get(f"jobs/{number}/results")["manifest"]["parts"]:
        path = next(path for node in m.nodes.values() for path in node.folder.rglob(part["blob"]))
        found = load_file(path).get(table.name, found)
    first, counts = initial(table, of[0].seed), []
    for row in range(ROWS):
        [count] = [n for n in range(60) if (found[row] == first[row] * np.float32(2.0**-n)).all()]
        counts.append(count)
    return counts


@pytest.mark.parametrize("position", [1, long(0)])
def test_every_batch_is_trained_though_a_worker_loses_a_node_and_that_is_told(tmp_path: Path, position: int) -> None:
    """It holds shards as well. Each table tells how often each batch was pushed: at least once an epoch, and of what the lease
    shard deals out more often only where that is told."""
    epochs = 4
    with mesh(tmp_path, 4) as m:
        of = counting(epochs)
        number = m.submit("a", *of)
        found = running(m, "a", number, 1)
        names = [share["name"] for share in found["plan"]["nodes"]]
        worker = next(r for r in found["plan"]["replicas"] if names[r["nodes"][position]] != "a")
        lost = worker["nodes"][position]
        assert holding(found, lost), "every node does"
        m.nodes[names[lost]].kill()
        done = m.await_state("a", number, "done", timeout_s=120)
        [text] = [t for t in warnings(m, "a", number) if t.startswith(f"node {names[lost]} is lost (")]
        assert "batches go to the others" in text
        moved = events(m, "a", number, "recovered")
        assert all(event["redone"] == 0 for event in moved), "no start was lost"
        assert of[0].train is not None
        rows = of[0].train.rows
        counts = [pushes(m, of, number, table) for table in of[0].graph.parameters]
        for found_counts in counts:
            assert min(sorted(found_counts)[ROWS - rows :]) >= epochs, "every batch of each epoch was trained"
        again = sum(entry.get("trained_again", 0) for entry in done["history"])
        dealing = next(n for n, table in enumerate(of[0].graph.parameters) if table.name.startswith("left"))
        assert sum(counts[dealing]) - epochs * rows == again, "as often as is told"
        assert again <= sum(counts[1 - dealing]) - epochs * rows <= again + 4
        assert is_clean(m)


def test_training_goes_on_when_a_node_is_lost_that_only_serves(tmp_path: Path, undisturbed: str) -> None:
    """One worker is cut over two nodes; two others hold the parameters, with backups. Then it moves, and there are some again."""
    with mesh(tmp_path, 4) as m:
        of = job(plain(), "sync", workers=1, epochs=EPOCHS)
        number = m.submit("a", *of)
        wait_until(lambda: step(m, "a", number) > 10, "it trains")
        plan = m.job("a", number)["plan"]
        assert [len(home["nodes"]) for home in plan["shards"]] == [2, 2], "without a wish"
        names = [share["name"] for share in plan["nodes"]]
        computing = [names[n] for n in plan["replicas"][0]["nodes"]]
        lost = names[plan["shards"][0]["nodes"][0]]
        assert lost not in computing
        seen = computing[0]
        m.nodes[lost].kill()
        found = m.await_state(seen, number, "done", timeout_s=90)
        [told] = [e["text"] for e in events(m, seen, number, "warning") if e["text"].startswith(f"node {lost} is lost")]
        assert "shard 0 goes on at" in told
        assert all("; 0 steps redone" in event["text"] for event in events(m, seen, number, "recovered"))
        assert found["result"]["bits"] == undisturbed
        assert len(found["history"]) == EPOCHS


@pytest.mark.long
def test_a_node_that_is_drained_costs_no_step(tmp_path: Path, undisturbed: str) -> None:
    with mesh(tmp_path, 4) as m:
        number = m.submit("a", *job(plain(), "sync", epochs=EPOCHS))
        wait_until(lambda: step(m, "a", number) > 10, "it trains")
        assert drain(m, "b")[-1] == {"drained": True}
        found = m.await_state("a", number, "done")
        [told] = events(m, "a", number, "recovered")
        assert told["redone"] == 0
        assert len(found["plan"]["replicas"]) == 1, "of the two that were asked for"
        assert "b" not in {share["name"] for share in found["plan"]["nodes"]}
        assert found["result"]["bits"] == undisturbed


@pytest.mark.long
def test_a_worker_of_which_one_node_is_left_holds_the_whole_model_there(tmp_path: Path, undisturbed: str) -> None:
    with mesh(tmp_path, 2) as m:
        number = m.submit("a", *job(plain(), "sync", workers=1, shards=0, epochs=EPOCHS, checkpoint_steps=5))
        wait_until(lambda: step(m, "a", number) > 10, "it trains")
        drain(m, "b")
        found = m.await_state("a", number, "done")
        assert [share["name"] for share in found["plan"]["nodes"]] == ["a"]
        assert found["plan"]["replicas"] == [{"nodes": [0]}]
        assert found["result"]["bits"] == undisturbed
