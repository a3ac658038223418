"""Versions: sets that share as few buffers as will do, and whole runs that equal a plain replay bit for bit."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from p2pnn.data.blobs import BlobStore
from p2pnn.engine.base import Context
from p2pnn.engine.numpy.engine import NumpyEngine
from p2pnn.executor.parts import Parts
from p2pnn.executor.versions import Versions, sets_needed
from p2pnn.job.checkpoint import Part
from p2pnn.job.spec import JobSpec, Optimizer
from p2pnn.model.flow import Flow
from p2pnn.model.graph import Graph
from p2pnn.model.initial import initial
from tests.executor import models
from tests.executor.mesh import Mesh, contiguous, digests, interleaved, manifest, scattered, spec_for
from tests.executor.replay import Replay
from tests.support.marks import long

PLAIN = Optimizer("sgd", rate=0.1, schedule="constant")
MOMENTUM = Optimizer("momentum", rate=0.02, weight_decay=1e-3)
CLIPPED = Optimizer("momentum", rate=0.05, weight_decay=1e-3, clip_norm=0.5)
ADAM = Optimizer("adam", rate=0.01, warmup_steps=2)


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> BlobStore:
    return BlobStore(tmp_path_factory.mktemp("versions") / "blobs")


def versions_of(delay: int) -> Versions:
    sets = [{name: np.zeros(1) for name in ("back", "only", "fixed")} for _ in range(sets_needed(delay))]
    return Versions(sets, delay, {"back", "only"}, {"back"})


def buffers(versions: Versions, name: str) -> int:
    return len({id(held[name]) for held in versions._sets})


@pytest.mark.parametrize("delay", range(6))
def test_there_are_as_few_buffers_as_will_do(delay: int) -> None:
    versions = versions_of(delay)
    assert buffers(versions, "fixed") == 1
    assert buffers(versions, "back") == delay + 1
    assert buffers(versions, "only") == min(2, delay + 1)
    assert versions.memory_bytes == 8 * (1 + 2 * (delay + 1))  # two, and at a cut what the drained steps will read


@pytest.mark.parametrize("delay", range(6))
def test_whatever_the_order_of_passes_each_reads_its_own_version(delay: int) -> None:
    """A node's passes in any order that the machine allows; the number in a buffer is its version's."""
    longest_aside = 0
    for seed in range(60):
        dice, versions = random.Random(seed), versions_of(delay)
        forwarded = step = 0
        while step < 40:
            cut = dice.random() < 0.1
            for _ in range(dice.randint(0, delay + 1)):
                if cut or forwarded > step + delay:
                    break
                check_forward(versions, forwarded, delay)
                forwarded += 1
            if forwarded <= step:
                continue
            held = versions._sets[versions.slot(step)]
            assert held["back"][0] == max(0, step - delay)
            old, new = versions.advance(forwarded)
            assert old["back"][0] == old["only"][0] == step
            for name in ("back", "only"):
                new[name][0] = step + 1
            step += 1
            longest_aside = max(longest_aside, len(versions._aside))
            if forwarded == step:  # all is drained, as for a checkpoint; now and then another process goes on
                wanted = list(range(max(0, step - delay), step))
                assert [(v, held["back"][0], held["only"][0]) for v, held in versions.older()] == [
                    (v, v, v) for v in wanted
                ]
                if dice.random() < 0.3:
                    kept = {v: {n: a.copy() for n, a in held.items()} for v, held in versions.older()}
                    versions = versions_of(delay)
                    versions.restart(step)
                    for name in ("back", "only"):
                        versions.newest[name][0] = step
                    for v, held in versions.older():
                        for name, array in held.items():
                            array[...] = kept[v][name]
    assert longest_aside == max(0, delay - 1)


def check_forward(versions: Versions, step: int, delay: int) -> None:
    lent = versions.lend(step)
    held = versions._sets[versions.slot(step)]
    assert held["back"][0] == held["only"][0] == max(0, step - delay)
    if lent:
        versions.lend(step)


def tensors_of(parts: tuple[Part, ...], spec: JobSpec, blobs: BlobStore) -> dict[str, Any]:
    source = Parts(blobs, [part.blob for part in parts])
    return {p.name: source.read(p.name, p.shape) for p in (*spec.graph.parameters, *spec.graph.state)}


@pytest.mark.parametrize("build", [models.dense, models.convolutional, models.residual, models.diamond])
def test_what_counts_as_not_read_back_may_be_anything_in_a_backward_pass(build: Callable[[], Graph]) -> None:
    """NaN in place of these parameters, between forward and backward, changes no gradient; of every other it does."""
    graph, engine, rows = build(), NumpyEngine(), 4
    flow = Flow(graph)
    dice = np.random.default_rng(1)

    def gradients(poisoned: set[str]) -> dict[Any, Any]:
        tensors = engine.allocate(graph, range(len(graph.ops)), training=True)
        for p in (*graph.parameters, *graph.state):
            (tensors.parameters | tensors.state)[p.name][...] = engine.import_parameter(graph, p.name, initial(p, 3))
        program = engine.compile(graph, sorted(flow.training), tensors, rows=rows, frames=1, mode="train")
        values = {v.name: np.zeros(engine.shape(v, rows), v.dtype) for v in (*graph.inputs, *graph.values)}
        for v in graph.inputs:
            values[v.name][...] = inputs[v.name]
        program.forward(0, Context(1, 0, 0, rows), values)
        for name in poisoned:
            tensors.parameters[name][...] = np.nan
        program.backward(0, Context(1, 0, 0, rows), {}, index=0)
        return {key: array.copy() for key, array in tensors.gradients.items()}

    inputs = {v.name: dice.integers(0, models.CLASSES, engine.shape(v, rows)) for v in graph.inputs}
    spared = {p.name for p in graph.parameters if not flow.read_back(p.name)}
    assert spared
    whole = gradients(set())
    for key, array in gradients(spared).items():
        np.testing.assert_array_equal(array, whole[key], str(key))
    for p in graph.parameters:
        if p.name not in spared and not p.name.endswith("bias"):
            assert any(np.isnan(array).any() for array in gradients({p.name}).values()), p.name


CASES: list[tuple[str, Callable[[], Graph], Optimizer, Callable[[Graph, int], list[int]], int, int, list[int]]] = [
    ("dense-2", models.dense, PLAIN, contiguous, 2, 2, [1, 0]),
    ("dense-2-interleaved", models.dense, CLIPPED, interleaved, 2, 4, [3, 3]),
    ("dense-3", models.dense, PLAIN, contiguous, 3, 3, [2, 1, 0]),
    ("convolutional-2", models.convolutional, MOMENTUM, contiguous, 2, 3, [2, 0]),
    ("convolutional-3", models.convolutional, PLAIN, contiguous, 3, 4, [3, 2, 0]),
    ("residual-2", models.residual, ADAM, contiguous, 2, 4, [3, 0]),
    ("residual-3-scattered", models.residual, CLIPPED, scattered, 3, 3, []),
    ("diamond-3", models.diamond, CLIPPED, contiguous, 3, 4, []),
    ("diamond-2-interleaved", models.diamond, ADAM, interleaved, 2, 2, []),
]
LONG = {"dense-2", "convolutional-3"}
"""Of the same optimizer and way of cutting as dense-3."""


@pytest.mark.parametrize(
    ("name", "build", "optimizer", "choose", "nodes", "in_flight", "wanted"),
    [(long if case[0] in LONG else pytest.param)(*case, id=case[0]) for case in CASES],
)
def test_a_mesh_equals_the_replay_wherever_it_is_cut(
    name: str,
    build: Callable[[], Graph],
    optimizer: Optimizer,
    choose: Callable[[Graph, int], list[int]],
    nodes: int,
    in_flight: int,
    wanted: list[int],
    blobs: BlobStore,
) -> None:
    """Whole; cut for evaluations and checkpoints at odd places; and gone on with by other processes."""
    graph = models.scaled(build())
    spec = spec_for(graph, blobs, optimizer=optimizer, epochs=3, micro_batches=1, schedule=f"async:{in_flight}")
    assignment = choose(graph, nodes)
    assert set(assignment) == set(range(nodes))
    with Mesh(spec, assignment, blobs, nodes=nodes) as mesh:
        late = mesh.delays
        assert max(late) == in_flight - 1
        assert not wanted or list(late) == wanted
        mesh.train(2, 5, 6, 11)
        whole = mesh.checkpoint()
        assert mesh.finish() == [0] * nodes
    replay = Replay(spec, assignment, late, blobs)
    replay.run(11)
    found = tensors_of(whole, spec, blobs)
    for tensor, array in replay.tensors().items():
        np.testing.assert_array_equal(found[tensor], array, tensor)
    other = Replay(spec, assignment, [0] * nodes, blobs)
    other.run(11)
    assert any((other.tensors()[tensor] != array).any() for tensor, array in found.items())
    with Mesh(spec, assignment, blobs, nodes=nodes) as mesh:
        mesh.train(1)
        early = mesh.checkpoint()
        mesh.train(3, 4)
        mesh.evaluate("validation")
        middle = mesh.checkpoint()
    with Mesh(spec, assignment, blobs, nodes=nodes, checkpoint=manifest(4, middle)) as mesh:
        mesh.train(5)
        mesh.evaluate("test")
        mesh.train(6)
        mesh.evaluate("test")
        mesh.train(9, 11)
        assert digests(mesh.checkpoint(), blobs) == digests(whole, blobs)
        mesh.train(15)
        assert not any(tensor.startswith("version/") for tensor in digests(mesh.checkpoint(), blobs))
    with Mesh(spec, assignment, blobs, nodes=nodes, checkpoint=manifest(1, early)) as mesh:
        mesh.train(11)
        assert digests(mesh.checkpoint(), blobs) == digests(whole, blobs)


@pytest.mark.parametrize("optimizer", [PLAIN, CLIPPED], ids=["sgd", "clipped"])
def test_one_mini_batch_in_flight_is_sync_with_one_micro_batch(optimizer: Optimizer, blobs: BlobStore) -> None:
    graph = models.diamond()
    found = []
    for schedule in ("sync", "async:1"):
        spec = spec_for(graph, blobs, optimizer=optimizer, micro_batches=1, schedule=schedule)
        for nodes in (1, 3):
            with Mesh(spec, contiguous(graph, nodes), blobs, nodes=nodes) as mesh:
                mesh.train(2, 7)
                found.append(digests(mesh.checkpoint(), blobs))
    assert all(other == found[0] for other in found)


def test_another_cut_goes_on_from_what_the_checkpoint_holds(blobs: BlobStore) -> None:
    graph = models.dense()
    spec = spec_for(graph, blobs, optimizer=ADAM, micro_batches=1, schedule="async:3")
    with Mesh(spec, contiguous(graph, 3), blobs, nodes=3) as mesh:
        mesh.train(4)
        parts = mesh.checkpoint()
        assert sum(name.startswith("version/2/") for name in digests(parts, blobs)) > 0
    for assignment, nodes in ((interleaved(graph, 2), 2), ([0] * len(graph.ops), 1)):
        with Mesh(spec, assignment, blobs, nodes=nodes, checkpoint=manifest(4, parts)) as mesh:
            mesh.train(7)
            tensors = tensors_of(mesh.checkpoint(), spec, blobs)
        assert all(np.isfinite(array).all() for array in tensors.values())


def test_a_plan_with_other_delays_is_refused(blobs: BlobStore, capfd: pytest.CaptureFixture[str]) -> None:
    graph = models.dense()
    spec = spec_for(graph, blobs, micro_batches=1, schedule="async:2")
    wrong = msgspec.structs.replace(spec, schedule="async:3")
    with Mesh(spec, contiguous(graph, 2), blobs, nodes=2, planned_for=wrong) as mesh, pytest.raises(AssertionError):
        mesh.prepare()
    assert "the plan's delays do not fit the schedule async:2" in next(iter(mesh.failed.values()))


def test_nothing_half_written_is_left(blobs: BlobStore) -> None:
    assert list((Path(blobs.root) / "temporary").iterdir()) == []
