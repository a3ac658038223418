"""A shard's arrays come from whole tensors or pieces, and are written so that any other shard finds them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from p2pnn.data.blobs import BlobStore
from p2pnn.errors import CheckpointError
from p2pnn.executor import parts
from p2pnn.executor.pieces import Pieces
from p2pnn.job.spec import JobSpec, Optimizer
from p2pnn.model.initial import initial
from p2pnn.ps.consistency import settings
from p2pnn.ps.sharding import Sharding, cut
from p2pnn.ps.space import Flat, Space
from tests.executor import models
from tests.executor.mesh import manifest, spec_for
from tests.executor.pump import parallel

ADAM = Optimizer("adam")


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path)


def job(blobs: BlobStore, consistency: str = "sync", optimizer: Optimizer = ADAM) -> JobSpec:
    return parallel(spec_for(models.dense(), blobs, optimizer=optimizer), consistency)


def pieces_of(spec: JobSpec, sharding: Sharding) -> Pieces:
    assert spec.data is not None
    return Pieces(spec, settings(spec.data), {shard.index: shard for shard in sharding.shards})


def whole(spec: JobSpec, sharding: Sharding, found: list[dict[str, Flat]], name: str) -> Flat:
    return sharding.join([arrays[name] for arrays in found])


@pytest.mark.parametrize("policy", ["equal", "greedy"])
@pytest.mark.parametrize("count", [1, 3])
def test_shards_start_from_the_seed_like_any_run(policy: str, count: int, blobs: BlobStore) -> None:
    spec = job(blobs)
    sharding = cut(Space.of(spec.graph), count, policy)
    pieces = pieces_of(spec, sharding)
    found = [pieces.read(pieces.source(blobs, None), n, with_slots=False) for n in range(count)]
    wanted = {p.name: initial(p, spec.seed) for p in spec.graph.parameters}
    np.testing.assert_array_equal(whole(spec, sharding, found, "parameters"), sharding.space.join(wanted))


def test_what_three_shards_write_two_others_read(blobs: BlobStore) -> None:
    spec = job(blobs)
    space = Space.of(spec.graph)
    three, two = cut(space, 3), cut(space, 2, "greedy")
    dice = np.random.default_rng(0)
    slots = {slot: dice.standard_normal(space.size).astype(np.float32) for slot in ("mean", "square")}
    parameters = {p.name: initial(p, 99) for p in spec.graph.parameters}
    start = parts.write(blobs, [(name, array.shape, lambda a=array: a) for name, array in parameters.items()])
    written = []
    for shard in three.shards:  # each by a server of its own
        held = {slot: three.take(shard.index, flat, np.empty(shard.size, np.float32)) for slot, flat in slots.items()}
        part = pieces_of(spec, three).write(blobs, {shard.index: held})
        assert part is not None
        written.append(part)
    assert any("/0-" in name for part in written for name in load_file(blobs.path(part.blob)))
    pieces = pieces_of(spec, two)
    source = pieces.source(blobs, manifest(5, (start, *written)))
    found = [pieces.read(source, n, with_slots=True) for n in range(2)]
    for slot, flat in slots.items():
        np.testing.assert_array_equal(whole(spec, two, found, slot), flat)
    np.testing.assert_array_equal(whole(spec, two, found, "parameters"), space.join(parameters))


def test_an_optimizer_without_arrays_writes_no_part(blobs: BlobStore) -> None:
    spec = job(blobs, optimizer=Optimizer("sgd"))
    sharding = cut(Space.of(spec.graph), 1)
    assert (
        pieces_of(spec, sharding).write(blobs, {0: {"parameters": np.zeros(sharding.space.size, np.float32)}}) is None
    )


def test_a_missing_array_is_named_but_the_outer_optimizer_may_begin_with_nothing(blobs: BlobStore) -> None:
    spec = job(blobs)
    sharding = cut(Space.of(spec.graph), 1)
    start = parts.write(blobs, [(p.name, p.shape, lambda p=p: initial(p, 1)) for p in spec.graph.parameters])
    pieces = pieces_of(spec, sharding)
    with pytest.raises(CheckpointError, match="no tensor optimizer/mean/hidden1/weight"):
        pieces.read(pieces.source(blobs, manifest(3, (start,))), 0, with_slots=True)
    local = pieces_of(job(blobs, "local:2"), sharding)
    found = local.read(local.source(blobs, manifest(3, (start,))), 0, with_slots=True)
    assert found.keys() == {"parameters", "momentum"}
    assert not found["momentum"].any()
    part = local.write(blobs, {0: {"momentum": found["parameters"]}})
    assert part is not None
    assert all(name.startswith("optimizer/outer/momentum/") for name in load_file(blobs.path(part.blob)))
    again = local.read(local.source(blobs, manifest(3, (start, part))), 0, with_slots=True)
    np.testing.assert_array_equal(again["momentum"], found["parameters"])
