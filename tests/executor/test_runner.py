"""Bit for bit: real executors on 2 and 3 nodes end with exactly the numbers of one, whatever the partition."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from p2pnn.data import chunks
from p2pnn.data.batches import epoch_order, scale
from p2pnn.data.blobs import BlobStore
from p2pnn.engine.base import Context
from p2pnn.engine.numpy.engine import NumpyEngine
from p2pnn.executor.parts import Parts
from p2pnn.job import script
from p2pnn.job.spec import JobSpec, Optimizer
from p2pnn.model.flow import Flow
from p2pnn.model.graph import Graph
from p2pnn.model.initial import initial
from p2pnn.train.rates import rate
from tests.executor import models
from tests.executor.mesh import Mesh, by_name, contiguous, digests, interleaved, manifest, scattered, spec_for

Result = tuple[dict[str, str], dict[str, str], Any]

CLIPPED = Optimizer("momentum", rate=0.05, weight_decay=1e-3, clip_norm=0.5)
PLAIN = Optimizer("sgd", rate=0.1, clip_norm=0.3, schedule="constant")
ADAM = Optimizer("adam", rate=0.01, warmup_steps=2)
ADAMW = Optimizer("adamw", rate=0.01, weight_decay=0.1, clip_norm=1.0)

BRANCHES = {"*relu*": 1, "*tanh*": 2, "drop*": 2, "concat*": 1}


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> BlobStore:
    return BlobStore(tmp_path_factory.mktemp("mesh") / "blobs")


def run(spec: JobSpec, blobs: BlobStore, assignment: list[int], nodes: int, frames: int) -> Result:
    """Seven steps over an epoch's end, evaluations between; digests at step 3 and 7, and what evaluations summed."""
    with Mesh(spec, assignment, blobs, nodes=nodes, frames=frames) as mesh:
        mesh.prepare()
        mesh.train(3)
        early = mesh.checkpoint()
        sums = [total(mesh.evaluate("validation"))]
        mesh.train(7)
        sums.append(total(mesh.evaluate("test")))
        late = mesh.checkpoint()
        assert mesh.finish() == [0] * nodes
        assert nodes == 1 or mesh.sends > 0
        return digests(early, blobs), digests(late, blobs), sums


def total(evaluations: list[script.Evaluation]) -> Any:
    metrics = {name: pair for e in evaluations for name, pair in e.metrics.items()}
    return math.fsum(e.loss_sum for e in evaluations), sum(e.rows for e in evaluations), metrics


CASES: list[tuple[str, Callable[[], Graph], Optimizer, list[tuple[Callable[[Graph], list[int]], int, int]]]] = [
    ("dense", models.dense, PLAIN, [(lambda g: contiguous(g, 2), 2, 2), (lambda g: interleaved(g, 3), 3, 1)]),
    (
        "convolutional",
        models.convolutional,
        CLIPPED,
        [(lambda g: contiguous(g, 3), 3, 4), (lambda g: interleaved(g, 2), 2, 3)],
    ),
    ("attentive", models.attentive, ADAM, [(lambda g: contiguous(g, 2), 2, 3), (lambda g: interleaved(g, 3), 3, 2)]),
    ("residual", models.residual, ADAM, [(lambda g: contiguous(g, 2), 2, 3), (lambda g: scattered(g, 3), 3, 2)]),
    (
        "diamond",
        models.diamond,
        ADAMW,
        [
            (lambda g: contiguous(g, 3), 3, 2),
            (lambda g: interleaved(g, 2), 2, 1),
            (lambda g: by_name(g, 3, BRANCHES), 3, 3),
        ],
    ),
]


@pytest.mark.parametrize(("name", "build", "optimizer", "cuts"), CASES, ids=[case[0] for case in CASES])
def test_any_partition_gives_the_bits_of_one_node(
    name: str, build: Callable[[], Graph], optimizer: Optimizer, cuts: list[Any], blobs: BlobStore
) -> None:
    graph = models.scaled(build())
    spec = spec_for(graph, blobs, optimizer=optimizer)
    early, late, sums = run(spec, blobs, [0] * len(graph.ops), 1, 2)
    names = {p.name for p in (*graph.parameters, *graph.state)}
    assert names <= late.keys()
    trained = [p.name for p in graph.parameters if early[p.name] != late[p.name]]
    assert trained == [p.name for p in graph.parameters]
    assert sums[0][1] == 10
    for choose, nodes, frames in cuts:
        assignment = choose(graph)
        assert set(assignment) == set(range(nodes))
        again = run(spec, blobs, assignment, nodes, frames)
        assert again[0] == early, assignment
        assert again[1] == late, assignment
        assert again[2][0][1:] == sums[0][1:]
        np.testing.assert_allclose([s[0] for s in again[2]], [s[0] for s in sums], rtol=1e-12)


def test_a_run_goes_on_from_a_checkpoint_on_other_nodes_with_the_same_bits(blobs: BlobStore) -> None:
    graph = models.diamond()
    spec = spec_for(graph, blobs, optimizer=ADAMW)
    one = [0] * len(graph.ops)
    with Mesh(spec, one, blobs) as mesh:
        mesh.train(3)
        parts = mesh.checkpoint()
        mesh.train(6)
        whole = digests(mesh.checkpoint(), blobs)
    with Mesh(spec, interleaved(graph, 2), blobs, nodes=2, checkpoint=manifest(3, parts)) as mesh:
        mesh.train(6)
        assert digests(mesh.checkpoint(), blobs) == whole
        mesh.results(mesh.command(lambda number: script.Restore(number, tuple(part.blob for part in parts))))
        restored = digests(mesh.checkpoint(), blobs)
    names = [p.name for p in (*graph.parameters, *graph.state)]
    assert {n: restored[n] for n in names} == {n: digests(parts, blobs)[n] for n in names}
    slot = f"optimizer/mean/{graph.parameters[0].name}"
    assert restored[slot] == whole[slot]


def test_one_executor_does_what_a_plain_loop_does(blobs: BlobStore) -> None:
    """The whole graph as one program, fed and updated here, without machine, feed, arena or frames."""
    graph = models.scaled(models.diamond())
    spec = spec_for(graph, blobs, optimizer=CLIPPED)
    assert spec.train is not None
    engine, rows = NumpyEngine(), spec.rows_per_micro_batch
    ops = sorted(Flow(graph).training)
    tensors = engine.allocate(graph, range(len(graph.ops)), training=True, micro_batches=4)
    held = tensors.parameters | tensors.state
    for parameter in (*graph.parameters, *graph.state):
        held[parameter.name][...] = engine.import_parameter(graph, parameter.name, initial(parameter, spec.seed))
    program = engine.compile(graph, ops, tensors, rows=rows, frames=1, mode="train")
    values = {v.name: np.zeros(engine.shape(v, rows), v.dtype) for v in (*graph.inputs, *graph.values)}
    velocity = {p.name: np.zeros_like(held[p.name]) for p in graph.parameters}
    columns = {c.name: np.concatenate([chunks.open(blobs.path(k.blob)) for k in c.chunks])
               for c in spec.train.dataset.columns}  # fmt: skip
    for step in range(7):
        order = epoch_order(spec.train, spec.seed, step // 5)[step % 5 * 16 :][:16]
        for m in range(4):
            for value in graph.inputs:
                array = columns[spec.inputs[value.name]][order[m * rows :][:rows]]
                scaling = graph.scaling.get(value.name)
                array = scale(array, scaling) if scaling else array.astype(value.dtype)
                engine.import_value(value, array, values[value.name])
            program.forward(0, Context(spec.seed, step, m, rows, 0.25), values)
            program.backward(0, Context(spec.seed, step, m, rows, 0.25), {}, index=m)
        totals = engine.end_step(graph, tensors, micro_batches=4)
        norm = math.sqrt(sum(float(np.sum(g.astype(np.float64) ** 2)) for g in totals.values()))
        factor = min(1.0, CLIPPED.clip_norm / (norm + 1e-6))
        for parameter in graph.parameters:
            w, v, g = (array[parameter.name].reshape(-1) for array in (held, velocity, totals))
            engine.combine(factor, g, CLIPPED.momentum, v)
            if parameter.decay:
                engine.combine(1e-3, w, 1.0, v)
            engine.combine(-rate(CLIPPED, step, spec.steps), v, 1.0, w)
    with Mesh(spec, interleaved(graph, 2), blobs, nodes=2) as mesh:
        mesh.train(7)
        found = Parts(blobs, [part.blob for part in mesh.checkpoint()])
    for parameter in (*graph.parameters, *graph.state):
        expected = engine.export_parameter(graph, parameter.name, held[parameter.name])
        np.testing.assert_array_equal(found.read(parameter.name, parameter.shape), expected, parameter.name)


def test_the_store_holds_nothing_half_written(blobs: BlobStore) -> None:
    assert list((blobs.root / "temporary").iterdir()) == []
