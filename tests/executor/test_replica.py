"""Workers and servers as real processes, moved by a pump: what they make together, in every kind of consistency."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file

from p2pnn.data.blobs import BlobStore
from p2pnn.executor import commands
from p2pnn.job import script
from p2pnn.job.spec import JobSpec, Optimizer
from p2pnn.model.graph import Graph
from tests.executor import models
from tests.executor.mesh import Mesh, digests, manifest, spec_for
from tests.executor.pump import Pump, data_plan, parallel
from tests.support.marks import long

ADAM = Optimizer("adam", rate=0.02, warmup_steps=2)
SGD = Optimizer("sgd", rate=0.1)


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> BlobStore:
    return BlobStore(tmp_path_factory.mktemp("replica") / "blobs")


def trained(graph: Graph, parts: Any, blobs: BlobStore) -> dict[str, str]:
    """Digests of what is trained, without state: each worker has its own running means."""
    names = {p.name for p in graph.parameters}
    return {name: digest for name, digest in digests(parts, blobs).items() if name in names}


def alone(spec: JobSpec, blobs: BlobStore, steps: int) -> dict[str, str]:
    with Mesh(spec, [0] * len(spec.graph.ops), blobs) as mesh:
        mesh.train(steps)
        return trained(spec.graph, mesh.checkpoint(), blobs)


@pytest.mark.parametrize(
    ("build", "optimizer"),
    [
        pytest.param(models.dense, ADAM, id="dense-adam"),
        long(models.dense, SGD, id="dense-sgd"),
        long(models.convolutional, ADAM, id="convolutional-adam"),
        pytest.param(models.convolutional, SGD, id="convolutional-sgd"),
    ],
)
def test_sync_has_the_bits_of_one_process(build: Any, optimizer: Optimizer, blobs: BlobStore) -> None:
    graph = models.scaled(build())
    spec = spec_for(graph, blobs, optimizer=optimizer)
    wanted = alone(spec, blobs, 7)
    with Pump(parallel(spec), data_plan(spec, 2, 2), blobs) as pump:
        pump.train(7)
        assert trained(graph, pump.checkpoint(), blobs) == wanted
        assert set(pump.finish()) == {0}


def test_sync_over_more_shards_than_nodes_and_shuffled_messages(blobs: BlobStore) -> None:
    """Three workers, of whom two have a shard, too; four micro-batches per worker would be no power of two less."""
    graph = models.scaled(models.residual())
    spec = spec_for(graph, blobs, optimizer=ADAM, batch_size=24, micro_batches=6)
    wanted = alone(spec, blobs, 5)
    plan = data_plan(spec, 3, 4, servers=2, together=True)
    with Pump(parallel(spec, cut="greedy"), plan, blobs, dice=random.Random(1)) as pump:
        before = pump.evaluate("test")
        pump.train(2, 5)
        assert trained(graph, pump.checkpoint(), blobs) == wanted
        after = pump.evaluate("test")
        assert set(pump.finish()) == {0}
    assert before.rows == after.rows == 10
    assert {report.version for report in pump.served.values()} == {5}


CHANCE = float(np.log(models.CLASSES))
"""The loss of who knows nothing."""


def training_loss(pump: Pump, first: int = 0) -> float:
    """The mean over all rows that were trained, as reported when this step was done or later."""
    sums = [p.losses for (role, _), told in pump.progress.items() if role == "compute" for p in told if p.step > first]
    return sum(loss for loss, _ in sums) / sum(rows for _, rows in sums)


LEARNS: list[tuple[str, dict[str, Any]]] = [
    ("async", {}),
    ("async", {"n_push": 2, "n_fetch": 3, "local_rate": 0.01}),
    ("async", {"push": "int8", "pull": "int8"}),
    ("async", {"push": "bf16", "pull": "bf16", "scale_by_staleness": True, "warm_start": 3}),
    ("ssp:1", {}),
    ("local:8", {}),
    ("sync", {"backup": 1}),
    ("sync", {"push": "int8", "pull": "int8"}),
]


def learning(consistency: str, settings: dict[str, Any]) -> Any:
    """int8 is tried with `sync` and `async` with bfloat16, so both together only in long runs."""
    mark = long if (consistency, settings.get("push")) == ("async", "int8") else pytest.param
    return mark(consistency, settings, id=f"{consistency}-{'-'.join(settings)}")


@pytest.mark.parametrize(("consistency", "settings"), [learning(*one) for one in LEARNS])
def test_every_kind_learns(consistency: str, settings: dict[str, Any], blobs: BlobStore) -> None:
    graph = models.scaled(models.dense())
    spec = spec_for(graph, blobs, epochs=24, optimizer=Optimizer("adam", rate=0.02))
    workers = 2
    with Pump(
        parallel(spec, consistency, **settings), data_plan(spec, workers, 2), blobs, dice=random.Random(2)
    ) as pump:
        before = pump.evaluate("test")
        pump.train(5, 21)
        pump.evaluate("validation")
        pump.train(80)
        pump.train(120)
        after = pump.evaluate("test")
        parts = pump.checkpoint()
        assert set(pump.finish()) == {0}
    assert after.rows == 10
    assert training_loss(pump, 80) < 0.75 * CHANCE
    assert after.loss_sum < before.loss_sum
    assert after.metrics["accuracy"][1] == 10
    steps = [progress[-1].step for (role, _), progress in pump.progress.items() if role == "compute"]
    assert steps == [120, 120]
    rows = sum(p.losses[1] for (role, _), progress in pump.progress.items() if role == "compute" for p in progress)
    assert rows == 120 * 16 if "backup" not in settings else 0 < rows <= 120 * 16
    names = {p.name for p in (*graph.parameters, *graph.state)}
    assert names <= digests(parts, blobs).keys()
    taken = [report.taken for report in pump.served.values()]
    assert all(min(counts.values()) > 0 for counts in taken), taken


def test_backup_workers_do_no_more_steps_than_there_are(blobs: BlobStore) -> None:
    """The first of two gradients makes the step; who comes late goes on where the others are."""
    spec = spec_for(models.dense(), blobs, epochs=8)
    with Pump(parallel(spec, backup=1), data_plan(spec, 2, 2), blobs, dice=random.Random(3)) as pump:
        pump.train(40)
        pump.checkpoint()
        assert set(pump.finish()) == {0}
    assert all(40 <= report.version <= 42 for report in pump.served.values())
    assert pump.answers["LATE"] > 0


def test_a_run_goes_on_with_other_numbers_of_workers_and_shards_and_without_any(blobs: BlobStore) -> None:
    """From one process to 2 workers and 3 shards, to 4 workers and 1 shard, and back, with the bits of one that went through."""
    graph = models.scaled(models.dense())
    spec = spec_for(graph, blobs, optimizer=ADAM)
    wanted = alone(spec, blobs, 9)
    with Mesh(spec, [0] * len(graph.ops), blobs) as mesh:
        mesh.train(2)
        parts = mesh.checkpoint()
    data = parallel(spec)
    for step, workers, shards in ((2, 2, 3), (4, 4, 1)):
        with Pump(data, data_plan(data, workers, shards), blobs, checkpoint=manifest(step, parts)) as pump:
            pump.train(step + 2)
            parts = pump.checkpoint()
            assert set(pump.finish()) == {0}
        assert {f"optimizer/{slot}/{p.name}" for slot in ("mean", "square") for p in graph.parameters} <= {
            name if name.count("/") < 4 else name.rpartition("/")[0] for name in digests(parts, blobs)
        }
    with Mesh(spec, [0] * len(graph.ops), blobs, checkpoint=manifest(6, parts)) as mesh:
        mesh.train(9)
        assert trained(graph, mesh.checkpoint(), blobs) == wanted


@pytest.mark.parametrize(("consistency", "version"), [("async", 120), ("local:5", 4 + 4)])
def test_other_kinds_go_on_from_a_checkpoint_too(consistency: str, version: int, blobs: BlobStore) -> None:
    graph = models.scaled(models.dense())
    spec = parallel(spec_for(graph, blobs, epochs=24, optimizer=Optimizer("adam", rate=0.02)), consistency)
    with Pump(spec, data_plan(spec, 2, 2), blobs) as pump:
        pump.train(60)
        first = pump.evaluate("test")
        parts = pump.checkpoint()
    with Pump(spec, data_plan(spec, 3, 1), blobs, checkpoint=manifest(60, parts)) as pump:
        again = pump.evaluate("test")
        pump.train(120)
        pump.checkpoint()
        assert set(pump.finish()) == {0}
    assert again.loss_sum == pytest.approx(first.loss_sum, rel=1e-5)
    assert training_loss(pump) < 0.75 * CHANCE
    assert pump.served[0].version == version


@pytest.mark.parametrize("build", [models.dense, models.residual], ids=["dense", "normalized"])
def test_the_best_epoch_is_restored_and_evaluated_as_it_was(build: Any, blobs: BlobStore) -> None:
    graph = models.scaled(build())
    spec = parallel(spec_for(graph, blobs, optimizer=ADAM), "async")
    with Pump(spec, data_plan(spec, 2, 2), blobs) as pump:
        pump.train(4)
        kept, parts = pump.evaluate("test"), pump.checkpoint()
        pump.train(8)
        assert pump.evaluate("test").loss_sum != kept.loss_sum
        pump.results(pump.command(lambda number: script.Restore(number, tuple(part.blob for part in parts))))
        assert pump.evaluate("test") == kept
        pump.train(9)
        assert pump.evaluate("test").loss_sum != kept.loss_sum
        assert set(pump.finish()) == {0}


def not_a_number(worker: int, first: int) -> Any:
    """Spoils what a worker pushes from its push number `first` on."""

    def spoil(number: int, message: commands.PushPart, place: memoryview) -> None:
        if number == worker and message.sequence >= first:
            place[:4] = np.array([np.nan], np.float32).tobytes()

    return spoil


@pytest.mark.parametrize("consistency", ["sync", "async", long("ssp:0"), "local:2"])
def test_a_worker_whose_gradients_are_no_numbers_is_refused_counted_and_set_aside(
    consistency: str, blobs: BlobStore
) -> None:
    """The others train on, and all of them evaluate. Long enough that each worker is leased some batches."""
    graph = models.scaled(models.dense())
    spec = parallel(spec_for(graph, blobs, epochs=40, optimizer=ADAM, batch_size=12, micro_batches=3), consistency)
    with Pump(spec, data_plan(spec, 3, 2), blobs) as pump:
        pump.spoil = not_a_number(1, first=3)
        pump.train(120)
        assert pump.evaluate("test").rows == 10
        pump.train(126)
        after, parts = pump.evaluate("test"), pump.checkpoint()
        assert set(pump.finish()) == {0}
    assert after.rows == 10
    assert np.isfinite(after.loss_sum)
    assert all(np.isfinite(array).all() for part in parts for array in load_file(blobs.path(part.blob)).values())
    for report in pump.served.values():
        assert report.set_aside == (1,)
        assert (1, "NOT_FINITE", 3) in report.refused
        assert report.taken[0] > report.taken[1]


def infinite(message: commands.PushPart, place: memoryview) -> None:
    place[:4] = np.array([np.inf], np.float32).tobytes()


def huge(message: commands.PushPart, place: memoryview) -> None:
    np.frombuffer(place, np.float32)[:] *= np.float32(1e6)


@pytest.mark.parametrize(
    ("why", "first", "change"), [("NOT_FINITE", 3, infinite), ("RUNAWAY", 30, huge), ("SHAPE", 3, None)]
)
def test_a_worker_that_sends_what_nobody_can_use_is_refused_counted_and_set_aside(
    why: str, first: int, change: Any, blobs: BlobStore
) -> None:
    """And the others train on without it."""
    spec = parallel(spec_for(models.scaled(models.dense()), blobs, epochs=40, optimizer=ADAM), "async")
    with Pump(spec, data_plan(spec, 3, 2), blobs) as pump:
        if change is not None:
            pump.spoil = lambda worker, message, place: (
                change(message, place) if worker == 1 and message.sequence >= first else None
            )
        else:
            tell = pump.tell_server

            def shorten(shard: int, message: Any) -> None:
                if isinstance(message, commands.PushArrived) and message.worker == 1 and message.sequence >= first:
                    for _ in range(3):  # an honest worker's port waits for an answer to the first
                        tell(shard, msgspec.structs.replace(message, misfit=4))
                else:
                    tell(shard, message)

            pump.tell_server = shorten  # type: ignore[method-assign]
        pump.train(150)
        after = pump.evaluate("test")
        pump.checkpoint()
        assert set(pump.finish()) == {0}
    assert np.isfinite(after.loss_sum)
    for report in pump.served.values():
        assert report.set_aside == (1,)
        assert {reason: often for who, reason, often in report.refused if who == 1}[why] >= 3
        assert min(report.taken[0], report.taken[2]) > report.taken[1]


def test_a_worker_that_one_shard_sets_aside_keeps_no_other_shard_waiting(blobs: BlobStore) -> None:
    graph = models.scaled(models.dense())
    spec = parallel(spec_for(graph, blobs, epochs=8, optimizer=ADAM, batch_size=12, micro_batches=3))
    spoil = not_a_number(1, first=2)
    with Pump(spec, data_plan(spec, 3, 2), blobs) as pump:
        pump.spoil = lambda worker, message, place: spoil(worker, message, place) if message.shard == 1 else None
        pump.train(20)
        assert pump.evaluate("test").rows == 10
        assert set(pump.finish()) == {0}
    assert [pump.served[shard].set_aside for shard in (0, 1)] == [(), (1,)]


def test_a_run_of_which_nothing_is_a_number_ends_with_a_sentence(
    blobs: BlobStore, capfd: pytest.CaptureFixture[str]
) -> None:
    graph = models.dense()
    spec = parallel(
        spec_for(graph, blobs, epochs=40, optimizer=Optimizer("sgd", rate=1e30, schedule="constant")), "async"
    )
    with (
        Pump(spec, data_plan(spec, 2, 1), blobs) as pump,
        pytest.raises(
            AssertionError, match=r"pushes to shard 0 were refused: its gradient has NaN .* lower the learning"
        ),
    ):
        pump.train(200)


def test_local_steps_keep_their_optimizer_and_a_single_process_goes_on_with_it(blobs: BlobStore) -> None:
    graph = models.scaled(models.dense())
    spec = spec_for(graph, blobs, epochs=8, optimizer=Optimizer("adam", rate=0.02))
    data = parallel(spec, "local:2")
    with Pump(data, data_plan(data, 2, 2), blobs) as pump:
        pump.train(8)
        parts = pump.checkpoint()
    slots = {f"optimizer/{slot}/{p.name}" for slot in ("mean", "square") for p in graph.parameters}
    found = digests(parts, blobs)
    assert slots <= found.keys()
    with Pump(data, data_plan(data, 1, 1), blobs, checkpoint=manifest(8, parts)) as pump:
        again = digests(pump.checkpoint(), blobs)
        assert {name: again[name] for name in slots} == {name: found[name] for name in slots}
    with Mesh(spec, [0] * len(graph.ops), blobs, checkpoint=manifest(8, parts)) as mesh:
        again = digests(mesh.checkpoint(), blobs)
        assert {name: again[name] for name in slots} == {name: found[name] for name in slots}
        mesh.train(12)


def test_a_warm_start_that_is_longer_than_what_is_granted_keeps_nobody_waiting(blobs: BlobStore) -> None:
    """Worker 0 trains alone for six updates, over several commands and a checkpoint, although one command grants it one step."""
    spec = parallel(spec_for(models.dense(), blobs, epochs=8), "async", warm_start=6)
    with Pump(spec, data_plan(spec, 3, 2), blobs) as pump:
        assert pump.checkpoint()
        for until in range(1, 13):
            pump.train(until)
        pump.checkpoint()
        assert pump.evaluate("test").rows == 10
        pump.train(30)
        pump.checkpoint()
        assert set(pump.finish()) == {0}
    for shard in (0, 1):
        taken = pump.served[shard].taken
        assert sum(taken.values()) == 30
        assert taken[0] >= 6
