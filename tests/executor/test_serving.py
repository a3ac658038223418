"""A parameter server's process: what it answers when, what it refuses, and how it ends. Whole runs are in test_replica."""

from __future__ import annotations

import re
import resource
from typing import Any

import msgspec
import pytest
from safetensors.numpy import load_file

from p2pnn.data.blobs import BlobStore
from p2pnn.executor import commands
from p2pnn.job import script
from p2pnn.job.spec import JobSpec, Optimizer
from tests.executor import models
from tests.executor.mesh import spec_for
from tests.executor.pump import Pump, data_plan, parallel


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> BlobStore:
    return BlobStore(tmp_path_factory.mktemp("serving") / "blobs")


def job(blobs: BlobStore, consistency: str = "async", kind: str = "adam", **settings: Any) -> JobSpec:
    return parallel(spec_for(models.dense(), blobs, optimizer=Optimizer(kind), **settings), consistency)


def pump_of(spec: JobSpec, blobs: BlobStore, workers: int = 2, shards: int = 1) -> Pump:
    return Pump(spec, data_plan(spec, workers, shards), blobs)


class Marking(Pump):
    """Keeps what one worker marks back."""

    held: list[tuple[Any, Any]] | None = None

    def receive(self, key: Any, message: Any) -> None:
        if self.held is not None and isinstance(message, commands.SendMark) and key == ("compute", 1):
            self.held.append((key, message))
        else:
            super().receive(key, message)


def test_a_checkpoint_waits_for_what_all_workers_did_before_it(blobs: BlobStore) -> None:
    spec = job(blobs)
    with Marking(spec, data_plan(spec, 2, 1), blobs) as pump:
        pump.prepare()
        pump.held = []
        train = pump.command(lambda number: script.Train(number, 4))
        number = pump.command(script.Checkpoint)
        pump.route(lambda: bool(pump.held))
        server = pump.done["serve", 2]
        assert train in server
        assert number not in server
        held, pump.held = pump.held, None
        for key, message in held:
            pump.receive(key, message)
        answers = pump.results(number)
        assert answers["serve", 2].result
        assert pump.served[0].taken == {0: 2, 1: 2}
        pump.finish()


def test_a_part_holds_the_optimizers_arrays_alone_and_is_left_out_without_any(blobs: BlobStore) -> None:
    for kind, slots in (("adam", {"mean", "square"}), ("sgd", set())):
        with pump_of(job(blobs, kind=kind), blobs, shards=2) as pump:
            pump.train(2)
            parts = pump.checkpoint()
            pump.finish()
        assert len(parts) == (3 if slots else 1)
        names = [set(load_file(blobs.path(part.blob))) for part in parts]
        assert {name.split("/")[1] for found in names[1:] for name in found} == slots
        assert all(name.startswith("optimizer/") for found in names[1:] for name in found)
        assert not any(part.bits.strip(b"\0") for part in parts[1:])


def test_a_full_disk_fails_the_checkpoint_and_not_the_training(blobs: BlobStore) -> None:
    with pump_of(job(blobs), blobs) as pump:
        pump.prepare()
        pid = pump.spawned["serve", 2].process.pid
        kept = resource.prlimit(pid, resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        pump.train(2)
        answers = pump.results(pump.command(script.Checkpoint))
        assert answers["serve", 2].error
        assert not answers["compute", 0].error
        resource.prlimit(pid, resource.RLIMIT_FSIZE, kept)
        pump.train(4)
        assert len(pump.checkpoint()) == 2
        assert set(pump.finish()) == {0}


def failure(pump: Pump) -> str:
    with pytest.raises(AssertionError):
        pump.route(lambda: False)
    return next(iter(pump.failed.values()))


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (script.Predict(9), "a parameter server was told Predict"),
        (commands.Arrived(0, 0), "a parameter server was told Arrived"),
        (commands.Marked(3, 0, 1), "shard 3 is not served by this node"),
        (commands.Marked(0, 2, 1), "the run has no worker 2"),
        (commands.PushArrived(0, 0, 1, 99, 0, 0, True, 0), "shard 0 has no part 99"),
        (commands.Prepare("", b"", 0, ""), "the executor was told Prepare twice"),
    ],
)
def test_what_makes_no_sense_ends_it_with_a_sentence(
    message: Any, words: str, blobs: BlobStore, capfd: pytest.CaptureFixture[str]
) -> None:
    with pump_of(job(blobs), blobs) as pump:
        pump.prepare()
        pump.tell(("serve", 2), message)
        assert failure(pump) == words


def test_shards_that_do_not_fit_are_refused_with_both_figures(
    blobs: BlobStore, capfd: pytest.CaptureFixture[str]
) -> None:
    spec = job(blobs)
    plan = data_plan(spec, 2, 1)
    small = msgspec.structs.replace(plan.nodes[2], memory_bytes_max=10_000)
    with Pump(spec, msgspec.structs.replace(plan, nodes=(*plan.nodes[:2], small)), blobs) as pump:
        sentence = failure(pump)
    assert re.fullmatch(
        r"this node's shards of the parameters take [0-9,]+ bytes, but this node has 10,000; use more shards on more nodes",
        sentence,
    )


def test_reports_say_what_each_worker_did(blobs: BlobStore) -> None:
    with pump_of(job(blobs, "sync"), blobs, shards=2) as pump:
        pump.train(5)
        pump.checkpoint()
        assert set(pump.finish()) == {0}
    assert sorted(pump.served) == [0, 1]
    for report in pump.served.values():
        assert report.version == 5
        assert report.staleness == {0: 10}
        assert report.taken == {0: 5, 1: 5}
        assert (report.refused, report.set_aside, report.queued) == ((), (), 0)
        assert report.received_bytes > 0
        assert report.sent_bytes > 0
    compute = [p for (role, _), told in pump.progress.items() if role == "serve" for p in told]
    assert all(0 <= p.compute_s <= p.wall_s and p.losses == (0.0, 0) for p in compute)
