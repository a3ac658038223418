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
