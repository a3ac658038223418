"""Shards on two nodes each, as real processes: a lost one costs no update, and nobody notices but by who answers."""

from __future__ import annotations

import random
from typing import Any

import pytest

from p2pnn.data.blobs import BlobStore
from p2pnn.executor import commands
from p2pnn.job import script
from p2pnn.job.spec import JobSpec, Optimizer
from p2pnn.wire.codec import encode
from p2pnn.wire.messages import Append, StatePiece
from tests.executor import models
from tests.executor.mesh import Mesh, manifest, spec_for
from tests.executor.pump import GENERATION, Pump, data_plan, parallel
from tests.executor.test_replica import trained
from tests.executor.test_serving import failure

ADAM = Optimizer("adam", rate=0.02, warmup_steps=2)


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> BlobStore:
    return BlobStore(tmp_path_factory.mktemp("replicating") / "blobs")


def job(blobs: BlobStore, **settings: Any) -> JobSpec:
    return spec_for(models.scaled(models.dense()), blobs, optimizer=ADAM, **settings)


def alone(spec: JobSpec, blobs: BlobStore, steps: int) -> dict[str, str]:
    with Mesh(spec, [0] * len(spec.graph.ops), blobs) as mesh:
        mesh.train(steps)
        return trained(spec.graph, mesh.checkpoint(), blobs)


def training(pump: Pump, until: int) -> int:
    """Have it train; the number of the command."""
    return pump.command(lambda number: script.Train(number, until))


def pushed(pump: Pump, count: int) -> bool:
    """Whether a shard has taken so many pushes, by what primaries said."""
    return any(sum(report.taken.values()) >= count for report in pump.served.values())


@pytest.mark.parametrize("lost", [None, 2, 3], ids=["nobody", "one", "other"])
def test_sync_has_the_bits_of_one_process_whoever_is_lost(lost: int | None, blobs: BlobStore) -> None:
    """Two nodes are each the primary of one shard and the backup of the other."""
    spec = job(blobs)
    wanted = alone(spec, blobs, 9)
    with Pump(parallel(spec), data_plan(spec, 2, 2, copies=2), blobs, dice=random.Random(3)) as pump:
        pump.prepare()
        first = training(pump, 4)
        pump.results(first)
        second = training(pump, 9)
        if lost is not None:
            pump.route(lambda: pushed(pump, 2))
            pump.kill(lost)
        pump.results(second)
        parts = pump.checkpoint()
        assert trained(spec.graph, parts, blobs) == wanted
        if lost is None:
            assert {report.in_sync for report in pump.served.values()} == {(2, 3), (3, 2)}
            assert all(report.copied_bytes > 0 for report in pump.served.values())
        assert set(pump.finish()) == {0}
    with Pump(parallel(spec), data_plan(spec, 1, 1), blobs, checkpoint=manifest(9, parts)) as pump:
        pump.evaluate("test")
        assert set(pump.finish()) == {0}


@pytest.mark.parametrize("consistency", ["async", "ssp:2", "local:2"])
def test_each_push_counts_once_though_a_primary_is_lost(consistency: str, blobs: BlobStore) -> None:
    spec = job(blobs, epochs=8)
    with Pump(parallel(spec, consistency), data_plan(spec, 2, 1, copies=2), blobs, dice=random.Random(5)) as pump:
        pump.prepare()
        number = training(pump, 40)
        pump.route(lambda: pushed(pump, 8))
        pump.kill(pump.primaries[0])
        pump.results(number)
        pump.checkpoint()
        every = 2 if consistency == "local:2" else 1
        refused = sum(
            often for _, why, often in pump.served[0].refused if why == "TOO_STALE" and consistency == "ssp:2"
        )
        assert sum(pump.served[0].taken.values()) + refused == 40 // every, (
            "a push of too old a clock is decided as well"
        )
        assert pump.served[0].in_sync == (3,)
        assert sum(often for *_, often in pump.served[0].refused) == refused
        assert set(pump.finish()) == {0}


def test_a_backup_to_which_bytes_hang_keeps_no_slots_once_it_is_waited_for_no_more(blobs: BlobStore) -> None:
    """It is a learner while its link hangs, and comes back."""
    spec = parallel(job(blobs, epochs=8), "async")
    with Pump(spec, data_plan(spec, 2, 1, copies=2), blobs) as pump:
        pump.prepare()
        number = training(pump, 40)
        pump.route(lambda: pump.answers.total() > 4)  # reports come seldomer than a starved machine trains all
        pump.hanging = {3}
        pump.route(lambda: pushed(pump, 40))
        [shard] = pump.assignment.shards
        assert [member.node for member in shard.learners] == [pump.plan.nodes[3].node]
        pump.hanging = set()
        pump.results(number)
        pump.route(lambda: not pump.assignment.shards[0].learners)
        pump.checkpoint()
        assert sum(pump.served[0].taken.values()) == 40
        assert set(pump.finish()) == {0}


def test_what_no_replica_sends_ends_it_with_a_sentence(blobs: BlobStore, capfd: pytest.CaptureFixture[str]) -> None:
    spec = parallel(job(blobs), "async")
    plan = data_plan(spec, 2, 1, copies=2)
    entries = [
        (
            Append("j", 0, GENERATION, 0, 0, 0, 1, GENERATION, 9, 1, 16, b"x"),
            "names 16 bytes of worker 9, which cannot be",
        ),
        (Append("j", 0, GENERATION, 0, 1, 0, 1, GENERATION, 0, 1, 0, b"x"), "cannot be read"),
        (Append("j", 0, GENERATION, 0, 1, 0, 1, GENERATION, 1, 9, 0, b"\x94\x01\0\0\xa0"), "which is not next"),
        (StatePiece("j", 0, GENERATION, 5, 0, 4, 2**30), ""),
    ]
    for message, words in entries:
        with Pump(spec, plan, blobs) as pump:
            pump.prepare()
            pump.tell(
                ("serve", 3),
                commands.Replicated(2, encode(message), b"1234" if isinstance(message, StatePiece) else b""),
            )
            if words:
                assert words in failure(pump)
                assert pump.lost == {("serve", 3): True}, "the others go on"
            else:
                pump.results(training(pump, 4))
                assert set(pump.finish()) == {0}


def test_nonsense_of_who_is_not_the_primary_or_not_any_more_is_dropped(blobs: BlobStore) -> None:
    spec = parallel(job(blobs), "async")
    entries = [
        (2, 3, GENERATION),  # a backup to its primary
        (2, 3, 0),  # of an old generation
        (3, 2, 0),  # the primary, of an old generation
        (3, 0, GENERATION),  # a node that holds nothing
    ]
    with Pump(spec, data_plan(spec, 2, 1, copies=2), blobs) as pump:
        pump.prepare()
        for target, source, generation in entries:
            for worker, nbytes, head in ((9, 16, b"x"), (0, 0, b"x"), (1, 0, b"\x94\x01\0\0\xa0")):
                entry = Append("j", 0, generation, 0, 1, 0, 1, generation, worker, 9, nbytes, head)
                pump.tell(("serve", target), commands.Replicated(source, encode(entry)))
        pump.results(training(pump, 6))
        assert set(pump.finish()) == {0}
