"""What a node owns: filled from the seed, from parts, updated and saved. Whole runs are in test_runner."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from p2pnn.data.blobs import BlobStore
from p2pnn.engine.numpy.engine import NumpyEngine
from p2pnn.errors import JobFailedError
from p2pnn.executor.weights import Weights
from p2pnn.job.spec import JobSpec, Optimizer
from p2pnn.model.initial import initial
from p2pnn.ps.space import Space
from p2pnn.train.schedule import Routes
from tests.executor import models
from tests.executor.mesh import interleaved, spec_for
from tests.executor.pump import parallel

ENGINE = NumpyEngine()


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path)


def weights_for(spec: JobSpec, node: int, nodes: int) -> Weights:
    return Weights(spec, Routes(spec.graph, interleaved(spec.graph, nodes), node, nodes), ENGINE)


def test_each_tensor_lies_on_one_node_and_starts_from_the_seed(blobs: BlobStore) -> None:
    spec = spec_for(models.residual(), blobs)
    names: list[str] = []
    for node in range(3):
        weights = weights_for(spec, node, 3)
        weights.load(blobs, None)
        for name, array in (weights.tensors.parameters | weights.tensors.state).items():
            names.append(name)
            parameter = next(p for p in (*spec.graph.parameters, *spec.graph.state) if p.name == name)
            found = ENGINE.export_parameter(spec.graph, name, array)
            np.testing.assert_array_equal(found, initial(parameter, spec.seed))
    assert sorted(names) == sorted(p.name for p in (*spec.graph.parameters, *spec.graph.state))


def test_memory_counts_parameters_gradients_and_slots(blobs: BlobStore) -> None:
    """Four micro-batches are summed in two places (`model.sums`)."""
    graph = models.dense()
    size = 4 * sum(p.size for p in graph.parameters)
    one = [weights_for(spec_for(graph, blobs, optimizer=Optimizer(kind)), 0, 1) for kind in ("sgd", "momentum", "adam")]
    assert [w.memory_bytes for w in one] == [3 * size, 4 * size, 5 * size]
    assert weights_for(spec_for(graph, blobs, kind="evaluate"), 0, 1).memory_bytes == size


def test_squares_follow_what_the_node_owns(blobs: BlobStore) -> None:
    spec = spec_for(models.dense(), blobs)
    weights = weights_for(spec, 0, 1)
    for index, gradient in enumerate(weights.tensors.gradients.values()):
        gradient[...] = index + 1
    squares = weights.squares()
    assert len(squares) == len(spec.graph.parameters)
    assert sorted(s / p.size for s, p in zip(squares, spec.graph.parameters, strict=True)) == [
        (index + 1) ** 2 for index in range(len(squares))
    ]


def test_clipping_limits_the_step_and_nan_ends_the_run(blobs: BlobStore) -> None:
    optimizer = Optimizer("sgd", rate=1.0, schedule="constant", clip_norm=0.5)
    weights = weights_for(spec_for(models.dense(), blobs, optimizer=optimizer), 0, 1)
    for gradient in weights.tensors.gradients.values():
        gradient[...] = 3.0
    weights.update(0, {0: weights.squares()})
    moved = sum(float(np.sum(np.square(a, dtype=np.float64))) for a in weights.tensors.parameters.values())
    assert moved == pytest.approx(0.25, rel=1e-4)
    next(iter(weights.tensors.gradients.values()))[...] = np.nan
    with pytest.raises(JobFailedError, match="norm became nan at step 2; lower the learning rate"):
        weights.update(1, {0: weights.squares()})


@pytest.mark.parametrize("build", [models.dense, models.diamond, models.convolutional])
def test_a_replicas_parameters_lie_in_one_flat_space_where_their_layout_is_plain(build: Any, blobs: BlobStore) -> None:
    """Dense ones do, convolutions are in the engine's own layout, and what several ops read is summed elsewhere first."""
    spec = parallel(spec_for(build(), blobs))
    weights = Weights(spec, Routes(spec.graph, [0] * len(spec.graph.ops), 0, 1), ENGINE)
    weights.load(blobs, None)
    space = Space.of(spec.graph)
    views, gradients = space.views(weights.flat), space.views(weights.flat_gradient)
    readers = Counter(name for name, _ in weights.tensors.gradients)
    for p in spec.graph.parameters:
        shares = np.shares_memory(weights.view(p.name), views[p.name])
        assert shares == (len(p.shape) <= 2), p.name
        if shares:
            np.testing.assert_array_equal(views[p.name], initial(p, spec.seed))
        if readers[p.name] == 1:
            assert np.shares_memory(weights.gradient(p.name), gradients[p.name]) == shares
    size = 4 * sum(p.size for p in spec.graph.parameters)
    state = sum(array.nbytes for array in weights.tensors.state.values())
    apart = sum(4 * p.size for p in spec.graph.parameters if len(p.shape) > 2)
    sums = sum(
        array.nbytes
        for (name, op), array in weights.tensors.gradients.items()
        if readers[name] > 1 or not np.shares_memory(array, gradients[name])
    )
    partial = sum(array.nbytes for held in weights.tensors.partial for array in held.values())
    assert weights.memory_bytes == 2 * size + state + apart + sums + partial


def test_a_replica_clips_by_its_own_norm_and_leaves_what_is_no_number_to_the_shards(blobs: BlobStore) -> None:
    spec = parallel(spec_for(models.dense(), blobs, optimizer=Optimizer("sgd", clip_norm=0.5)), "async")
    weights = Weights(spec, Routes(spec.graph, [0] * len(spec.graph.ops), 0, 1), ENGINE, micro_batches=1)
    assert not weights.slots
    assert not weights.fuse
    for array in weights.tensors.gradients.values():
        array[...] = 3.0
    totals, scale = weights.gradients()
    norm = 3.0 * float(np.sqrt(sum(array.size for array in totals.values())))
    assert scale == pytest.approx(0.5 / norm, rel=1e-5)
    assert {name: array.shape for name, array in totals.items()} == {p.name: p.shape for p in spec.graph.parameters}
    next(iter(weights.tensors.gradients.values()))[...] = np.nan
    assert weights.gradients()[1] == 1.0
