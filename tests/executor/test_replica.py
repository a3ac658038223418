"""Workers and servers as real processes, moved by a pump: what they make together, in every kind of consistency."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from p2pnn.data.blobs import BlobStore
from p2pnn.executor import commands
from p2pnn.job.spec import JobSpec, Optimizer
from p2pnn.model.graph import Graph
from tests.executor import models
from tests.executor.mesh import Mesh, digests, manifest, spec_for
from tests.executor.pump import Pump, data_plan, parallel

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


@pytest.mark.parametrize("optimizer", [ADAM, SGD], ids=["adam", "sgd"])
@pytest.mark.parametrize("build", [models.dense, models.convolutional], ids=["dense", "convolutional"])
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


LEARNS: list[tuple[str, dict[str, Any]]] = [
    ("async", {}),
    ("async", {"n_push": 2, "n_fetch": 3, "local_rate": 0.01}),
    ("async", {"push": "int8", "pull": "int8"}),
    ("async", {"push": "bf16", "pull": "bf16", "scale_by_staleness": True, "warm_start": 3}),
    ("ssp:1", {}),
    ("local:3", {}),
    ("sync", {"backup": 1}),
    ("sync", {"push": "int8", "pull": "int8"}),
]


@pytest.mark.parametrize(("consistency", "settings"), LEARNS, ids=[f"{c}-{'-'.join(s)}" for c, s in LEARNS])
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
        pump.train(120)
        after = pump.evaluate("test")
        parts = pump.checkpoint()
        assert set(pump.finish()) == {0}
    assert after.rows == 10
    print(before.loss_sum, after.loss_sum, pump.answers, pump.dropped, pump.served)
    assert after.loss_sum < 0.7 * before.loss_sum, (before, after)
    assert after.metrics["accuracy"][1] == 10
    steps = [progress[-1].step for (role, _), progress in pump.progress.items() if role == "compute"]
    assert steps == [120, 120]
    rows = sum(p.losses[1] for (role, _), progress in pump.progress.items() if role == "compute" for p in progress)
    assert rows == 120 * 16
    names = {p.name for p in (*graph.parameters, *graph.state)}
    assert names <= digests(parts, blobs).keys()
    taken = [report.taken for report in pump.served.values()]
    assert all(min(counts.values()) > 0 for counts in taken), taken
