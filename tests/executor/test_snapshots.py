"""Snapshots of real executors: each is what a checkpoint at its step would hold, and a run goes on from it with the same bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from p2pnn.data.blobs import BlobStore
from p2pnn.job.checkpoint import Part
from p2pnn.job.spec import Optimizer
from p2pnn.model.graph import Graph
from p2pnn.node.snapshots import write
from p2pnn.train.cuts import COUNTER_BYTES, places
from tests.executor import models
from tests.executor.mesh import Mesh, contiguous, digests, manifest, spec_for
from tests.support.marks import long

ADAM = Optimizer("adam", rate=0.01)
PLAIN = Optimizer("sgd", rate=0.1, schedule="constant")


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> BlobStore:
    return BlobStore(tmp_path_factory.mktemp("snapshots") / "blobs")


def parts_of(mesh: Mesh, step: int, blobs: BlobStore) -> tuple[Part, ...]:
    return tuple(
        write(blobs, mesh.spec, mesh.plan, node, step, memoryview(mesh.cuts[node][step]))
        for node in range(len(mesh.cuts))
    )


@pytest.mark.parametrize("build", [models.dense, models.convolutional, models.residual])
@pytest.mark.parametrize("optimizer", [PLAIN, ADAM], ids=["sgd", "adam"])
def test_in_sync_a_snapshot_is_the_very_file_that_a_checkpoint_at_its_step_would_be(
    build: Callable[[], Graph], optimizer: Optimizer, blobs: BlobStore
) -> None:
    graph = models.scaled(build())
    spec = spec_for(graph, blobs, optimizer=optimizer)
    with Mesh(spec, contiguous(graph, 2), blobs, nodes=2, every=3) as mesh:
        mesh.train(4, 6)
        checkpoint = mesh.checkpoint()
        mesh.train(8)
        assert [sorted(cuts) for cuts in mesh.cuts] == [[3, 6], [3, 6]]
        assert parts_of(mesh, 6, blobs) == checkpoint
        counters = [s.arena.view[room.counter :] for s, room in zip(mesh.spawned, mesh.rooms, strict=True)]
        counted = [int.from_bytes(view[:8], "little") for view in counters]
        assert counted == [8, 8]
        snapshots = [sum(p.snapshots for p in told) for told in mesh.progress]
        assert snapshots == [2, 2]
        assert all(sum(p.snapshot_s for p in told) > 0 for told in mesh.progress)


@pytest.mark.parametrize(
    ("optimizer", "in_flight"),
    [
        pytest.param(ADAM, 2, id="adam-2"),
        pytest.param(PLAIN, 3, id="sgd-3"),
        pytest.param(ADAM, 4, id="adam-4"),
        long(PLAIN, 2, id="sgd-2"),
        long(ADAM, 3, id="adam-3"),
        long(PLAIN, 4, id="sgd-4"),
    ],
)
def test_with_mini_batches_in_flight_a_run_goes_on_from_a_cut_in_full_flow_with_the_same_bits(
    in_flight: int, optimizer: Optimizer, blobs: BlobStore
) -> None:
    graph = models.scaled(models.convolutional())
    spec = spec_for(graph, blobs, optimizer=optimizer, epochs=4, micro_batches=1, schedule=f"async:{in_flight}")
    assignment = contiguous(graph, 3)
    with Mesh(spec, assignment, blobs, nodes=3, every=5) as mesh:
        mesh.train(6, 12, 17)  # cuts at 5, 10 and 15, none of them at the end of a command
        whole = digests(mesh.checkpoint(), blobs)
        assert all(15 in cuts for cuts in mesh.cuts)
        found = {step: parts_of(mesh, step, blobs) for step in (10, 15)}
    for step, parts in found.items():
        with Mesh(spec, assignment, blobs, nodes=3, checkpoint=manifest(step, parts)) as mesh:
            mesh.train(17)
            assert digests(mesh.checkpoint(), blobs) == whole, step


def test_where_no_slot_is_free_a_cut_is_left_out_and_training_goes_on(blobs: BlobStore) -> None:
    graph = models.scaled(models.dense())
    spec = spec_for(graph, blobs, optimizer=ADAM, epochs=4)
    with Mesh(spec, contiguous(graph, 2), blobs, nodes=2, every=1) as mesh:
        mesh.frees = False
        mesh.train(12)
        slots = places(spec, mesh.plan, 0).slots
        assert sorted(mesh.cuts[0]) == list(range(1, slots + 1))
        assert mesh.finish() == [0, 0]


def test_a_job_without_snapshots_copies_nothing(blobs: BlobStore) -> None:
    graph = models.scaled(models.dense())
    spec = spec_for(graph, blobs)
    with Mesh(spec, contiguous(graph, 2), blobs, nodes=2) as mesh:
        mesh.every = 2  # what a coordinator asks of a node that has no room
        mesh.train(4)
        assert mesh.cuts == [{}, {}]


def test_a_part_of_another_size_is_refused(tmp_path: Path, blobs: BlobStore) -> None:
    graph = models.scaled(models.dense())
    spec = spec_for(graph, blobs)
    with Mesh(spec, contiguous(graph, 2), blobs, nodes=2, every=2) as mesh:
        assert mesh.rooms[0].counter % COUNTER_BYTES == 0
        with pytest.raises(Exception, match="the snapshot has 7 bytes, but the plan says"):
            write(blobs, spec, mesh.plan, 0, 2, memoryview(bytes(7)))
