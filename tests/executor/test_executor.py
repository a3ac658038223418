"""Model replicas that are cut over processes, in a data-parallel run: what they make together, in every kind of consistency."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from p2pnn.data.blobs import BlobStore
from p2pnn.job import script
from p2pnn.job.spec import Optimizer
from p2pnn.model.graph import Graph
from p2pnn.plan.cost import Workload
from p2pnn.plan.exchange import exchange, segment_bytes, server_bytes
from p2pnn.ps.layout import shardings_of
from tests.executor import models
from tests.executor.mesh import Mesh, contiguous, digests, manifest, scattered, spec_for
from tests.executor.pump import Pump, data_plan, hybrid, hybrid_plan, parallel
from tests.executor.test_replica import ADAM, CHANCE, alone, not_a_number, trained, training_loss
from tests.support.marks import long


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> BlobStore:
    return BlobStore(tmp_path_factory.mktemp("hybrid") / "blobs")


def by_layers(graph: Graph, nodes: int) -> list[int]:
    """Each node has one layer with parameters, the last one all that are left."""
    trained = {p.name for p in graph.parameters}
    layers = [index for index, op in enumerate(graph.ops) if trained & set(op.inputs)]
    return [min(nodes, max(1, sum(layer <= index for layer in layers))) - 1 for index in range(len(graph.ops))]


@pytest.mark.parametrize(("together", "cut"), [(False, contiguous), (True, scattered)])
def test_sync_has_the_bits_of_one_process(together: bool, cut: Any, blobs: BlobStore) -> None:
    """Two replicas of two nodes each, three shards, in any order of messages."""
    graph = models.scaled(models.convolutional())
    spec = spec_for(graph, blobs, optimizer=ADAM)
    wanted = alone(spec, blobs, 7)
    plan = hybrid_plan(spec, cut(graph, 2), 2, 3, together=together)
    with Pump(hybrid(spec), plan, blobs, dice=random.Random(4)) as pump:
        before = pump.evaluate("test")
        pump.train(2, 5)
        assert pump.evaluate("validation").rows == 10
        pump.train(7)
        parts = pump.checkpoint()
        after = pump.evaluate("test")
        assert set(pump.finish()) == {0}
    assert trained(graph, parts, blobs) == wanted
    assert before.rows == after.rows == 10
    assert [report.version for _, report in sorted(pump.served.items())] == [7, 7, 7]
    assert {name for name, _ in digests(parts, blobs).items() if name.startswith("optimizer/")}


@pytest.mark.parametrize("lost", [4, long(5), long(6)])
def test_sync_has_the_bits_of_one_process_though_a_node_that_only_serves_is_lost(lost: int, blobs: BlobStore) -> None:
    """Three nodes are each the primary of one shard and the backup of another; each takes the slots that both need."""
    graph = models.scaled(models.dense())
    spec = spec_for(graph, blobs, optimizer=ADAM)
    wanted = alone(spec, blobs, 9)
    plan = hybrid_plan(spec, contiguous(graph, 2), 2, 3, copies=2)
    there = exchange(hybrid(spec), *shardings_of(hybrid(spec), plan))
    with Pump(hybrid(spec), plan, blobs, dice=random.Random(3)) as pump:
        pump.prepare()
        assert pump.prepared["serve", lost] <= server_bytes(hybrid(spec), there, plan.served_by(lost), 2, 2)
        pump.results(pump.command(lambda number: script.Train(number, 4)))
        number = pump.command(lambda number: script.Train(number, 9))
        pump.route(lambda: any(sum(report.taken.values()) >= 2 for report in pump.served.values()))
        pump.kill(lost)
        pump.results(number)
        parts = pump.checkpoint()
        assert pump.evaluate("test").rows == 10
        assert set(pump.finish()) == {0}
    assert trained(graph, parts, blobs) == wanted


def test_a_node_speaks_to_the_shards_of_its_own_layers_alone(blobs: BlobStore) -> None:
    """And holds no other layers, nor places for what it would exchange about them."""
    graph = models.scaled(models.dense())
    spec = hybrid(spec_for(graph, blobs))
    plan = hybrid_plan(spec, by_layers(graph, 3), 2, 4)
    with Pump(spec, plan, blobs) as pump:
        pump.train(2)
        held = [set(pump.landing[node].landings) for node in range(3)]
        assert set.union(*held) == {0, 1, 2, 3}
        assert sum(map(len, held)) == 4
        spaces = [pump.landing[node].sharding.space for node in range(3)]
        names = [entry.name for space in spaces for entry in space.entries]
        assert sorted(names) == sorted(p.name for p in graph.parameters)
        whole = data_plan(spec, 1, 4)
        pump.finish()
        prepared = pump.prepared
    with Pump(parallel(spec), whole, blobs) as pump:
        pump.prepare()
        assert max(prepared["compute", node] for node in range(3)) < pump.prepared["compute", 0]


@pytest.mark.parametrize(
    ("consistency", "settings"),
    [("async", {}), ("sync", {"push": "int8", "pull": "bf16"}), ("local:2", {"push": "top:0.5"})],
)
def test_nodes_take_no_more_memory_than_the_plan_says(
    consistency: str, settings: dict[str, Any], blobs: BlobStore
) -> None:
    graph = models.scaled(models.dense())
    spec = hybrid(spec_for(graph, blobs, optimizer=ADAM), consistency, **settings)
    plan = hybrid_plan(spec, contiguous(graph, 2), 2, 3)
    there = exchange(spec, *shardings_of(spec, plan))
    with Pump(spec, plan, blobs) as pump:
        pump.prepare()
        for (role, node), taken in pump.prepared.items():
            if role == "compute":
                segment = plan.position(node)
                bound = segment_bytes(Workload(spec), spec, there, plan.assignment, segment, plan.frames)
            else:
                bound = server_bytes(spec, there, plan.served_by(node), 2)
            assert 0.3 * bound < taken <= bound, (role, node)


LEARNS: list[Any] = [
    ("async", {}),
    long("async", {"n_push": 2, "n_fetch": 3, "local_rate": 0.01}),
    long("async", {"push": "bf16", "pull": "int8", "warm_start": 3}),
    long("ssp:1", {}),
    ("ssp:0", {}),
    ("local:8", {}),
    long("sync", {"push": "int8", "pull": "int8"}),
]


@pytest.mark.parametrize(("consistency", "settings"), LEARNS)
def test_every_kind_learns(consistency: str, settings: dict[str, Any], blobs: BlobStore) -> None:
    graph = models.scaled(models.dense())
    spec = spec_for(graph, blobs, epochs=24, optimizer=Optimizer("adam", rate=0.02))
    plan = hybrid_plan(spec, contiguous(graph, 2), 2, 2)
    with Pump(hybrid(spec, consistency, **settings), plan, blobs, dice=random.Random(5)) as pump:
        before = pump.evaluate("test")
        pump.train(5, 21)
        pump.evaluate("validation")
        pump.train(80)
        pump.train(120)
        after, parts = pump.evaluate("test"), pump.checkpoint()
        assert set(pump.finish()) == {0}
    assert training_loss(pump, 80) < 0.75 * CHANCE
    assert after.loss_sum < before.loss_sum
    assert after.rows == 10
    rows = sum(p.losses[1] for (role, _), told in pump.progress.items() if role == "compute" for p in told)
    assert rows == 120 * 16, "each batch once, by one replica, whose last node counts it"
    assert {p.name for p in (*graph.parameters, *graph.state)} <= digests(parts, blobs).keys()


def test_replicas_clip_by_the_norm_of_all_their_nodes(blobs: BlobStore) -> None:
    """With one replica, whose updates come in the order of its steps, that has the bits of one node as a worker."""
    graph = models.scaled(models.dense())
    spec = spec_for(graph, blobs, optimizer=Optimizer("sgd", rate=0.1, clip_norm=0.05))
    found = []
    for job, plan in (
        (parallel(spec, "ssp:0"), data_plan(spec, 1, 2)),
        (hybrid(spec, "ssp:0"), hybrid_plan(spec, contiguous(graph, 2), 1, 2)),
    ):
        with Pump(job, plan, blobs) as pump:
            pump.train(6)
            found.append(arrays(pump.checkpoint(), blobs))
            assert set(pump.finish()) == {0}
    for one, other in zip(*found, strict=True):
        assert one[0] == other[0]
        np.testing.assert_allclose(one[1], other[1], rtol=1e-5, atol=1e-7)


def arrays(parts: Any, blobs: BlobStore) -> list[tuple[str, Any]]:
    return sorted(
        ((name, array) for part in parts for name, array in load_file(blobs.path(part.blob)).items()),
        key=lambda row: row[0],
    )


def test_a_run_goes_on_from_one_process_to_hybrid_and_back_with_its_bits(blobs: BlobStore) -> None:
    graph = models.scaled(models.dense())
    spec = spec_for(graph, blobs, optimizer=ADAM)
    wanted = alone(spec, blobs, 9)
    with Mesh(spec, [0] * len(graph.ops), blobs) as mesh:
        mesh.train(2)
        parts = mesh.checkpoint()
    job = hybrid(spec)
    for step, nodes, workers, shards in ((2, 2, 2, 4), (4, 3, 4, 3)):
        plan = hybrid_plan(job, by_layers(graph, nodes), workers, shards, together=True)
        with Pump(job, plan, blobs, checkpoint=manifest(step, parts)) as pump:
            pump.train(step + 2)
            parts = pump.checkpoint()
            assert set(pump.finish()) == {0}
    with Mesh(spec, contiguous(graph, 2), blobs, nodes=2, checkpoint=manifest(6, parts)) as mesh:
        mesh.train(9)
        assert trained(graph, mesh.checkpoint(), blobs) == wanted


def test_local_steps_keep_their_optimizer_over_another_cut(blobs: BlobStore) -> None:
    graph = models.scaled(models.dense())
    spec = hybrid(spec_for(graph, blobs, epochs=8, optimizer=Optimizer("adam", rate=0.02)), "local:2")
    with Pump(spec, hybrid_plan(spec, contiguous(graph, 2), 2, 2), blobs) as pump:
        pump.train(8)
        parts = pump.checkpoint()
    slots = {f"optimizer/{slot}/{p.name}" for slot in ("mean", "square") for p in graph.parameters}
    found = digests(parts, blobs)
    assert slots <= found.keys()
    with Pump(spec, hybrid_plan(spec, by_layers(graph, 3), 1, 3), blobs, checkpoint=manifest(8, parts)) as pump:
        again = digests(pump.checkpoint(), blobs)
    assert {name: again[name] for name in slots} == {name: found[name] for name in slots}


def test_the_best_epoch_is_restored_and_evaluated_as_it_was(blobs: BlobStore) -> None:
    graph = models.scaled(models.dense())
    spec = hybrid(spec_for(graph, blobs, optimizer=ADAM), "async")
    with Pump(spec, hybrid_plan(spec, contiguous(graph, 2), 2, 2), blobs) as pump:
        pump.train(4)
        kept, parts = pump.evaluate("test"), pump.checkpoint()
        pump.train(8)
        assert pump.evaluate("test").loss_sum != kept.loss_sum
        pump.results(pump.command(lambda number: script.Restore(number, tuple(part.blob for part in parts))))
        assert pump.evaluate("test") == kept
        assert set(pump.finish()) == {0}


@pytest.mark.parametrize("consistency", ["sync", long("async"), long("local:2")])
def test_a_node_that_a_shard_sets_aside_takes_its_replica_along_and_keeps_nobody_waiting(
    consistency: str, blobs: BlobStore
) -> None:
    graph = models.scaled(models.dense())
    settings = {"epochs": 8, "optimizer": ADAM, "batch_size": 12, "micro_batches": 3}
    spec = hybrid(spec_for(graph, blobs, **settings), consistency)
    spoil = not_a_number(1, first=3)
    with Pump(spec, hybrid_plan(spec, contiguous(graph, 2), 3, 2), blobs) as pump:
        pump.spoil = lambda worker, message, place: spoil(worker, message, place) if message.shard == 1 else None
        pump.train(36)
        assert pump.evaluate("test").rows == 10
        pump.train(42)
        after, parts = pump.evaluate("test"), pump.checkpoint()
        assert set(pump.finish()) == {0}
    assert after.rows == 10
    assert np.isfinite(after.loss_sum)
    assert parts
    assert [pump.served[shard].set_aside for shard in (0, 1)] == [(), (1,)]
    assert pump.served[1].taken[1] <= pump.served[0].taken[1] < 12, "its other node soon pushes nothing, too"
