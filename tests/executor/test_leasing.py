"""Workers that train what is leased to them, as real processes: who trains how much, and what becomes of the batches of one
that is lost."""

from __future__ import annotations

import os
import random
import signal
from typing import Any

import msgspec
import pytest

from p2pnn.data.blobs import BlobStore
from p2pnn.executor import commands
from p2pnn.job import assignment, script
from p2pnn.job.spec import JobSpec, Optimizer
from tests.executor import models
from tests.executor.mesh import manifest, spec_for
from tests.executor.pump import Pump, data_plan, parallel
from tests.executor.test_replica import not_a_number

ADAM = Optimizer("adam", rate=0.02)


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> BlobStore:
    return BlobStore(tmp_path_factory.mktemp("leasing") / "blobs")


def job(blobs: BlobStore, how: str = "async", epochs: int = 24, **settings: Any) -> JobSpec:
    """Of five steps an epoch."""
    return parallel(spec_for(models.scaled(models.dense()), blobs, epochs=epochs, optimizer=ADAM), how, **settings)


class Losing(Pump):
    """A pump one of whose nodes may be lost. granted: by worker, batches that it was granted, in order."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.granted: list[list[int]] = [[] for _ in self.plan.replicas]
        self.lost: set[int] = set()

    def receive(self, key: tuple[str, int], message: Any) -> None:
        if key[0] == "compute" and key[1] in self.lost:
            return
        if isinstance(message, commands.SendLeased):
            known = self.granted[message.worker]
            known += [b for start, stop in message.ranges for b in range(start, stop) if b not in known]
        super().receive(key, message)

    def lose(self, node: int) -> None:
        """Kill a node that computes, and tell everybody that it is gone."""
        self.lost.add(node)
        self.spawned["compute", node].kill()
        for found in (self.done, self.spawned):
            found.pop(("compute", node))  # type: ignore[attr-defined]
        self._waiting = [(key, message) for key, message in self._waiting if key != ("compute", node)]
        told = commands.Assigned(assignment.encode(assignment.Assignment(gone=(node,))))
        for key in self.spawned:
            self.tell(key, told)

    def tell(self, key: tuple[str, int], message: Any) -> None:
        if key in self.spawned:
            super().tell(key, message)


class Slowing(Losing):
    """A pump that stops one worker's process for most of the time."""

    STEPS = 3

    def begin(self, node: int) -> None:
        self._slow, self._left = node, 0

    def end(self) -> None:
        self._signal(signal.SIGCONT)
        del self._slow

    def _signal(self, number: int) -> None:
        os.kill(self.spawned["compute", self._slow].process.pid, number)

    def receive(self, key: tuple[str, int], message: Any) -> None:
        super().receive(key, message)
        if not hasattr(self, "_slow") or key[0] != "compute":
            return
        steps = isinstance(message, commands.PushPart) and message.part == 0
        if key[1] == self._slow and steps:
            self._left = self.STEPS
            self._signal(signal.SIGSTOP)
        elif key[1] != self._slow and (steps or isinstance(message, commands.WishLeases)):
            self._left = self._left - 1 if steps else 0
            if self._left <= 0:
                self._signal(signal.SIGCONT)


def again(pump: Pump, sequence: int) -> int:
    """When a Train is answered: batches of the epoch that were trained more often than once, as the newest word is."""
    return max(done.uneven for done in pump.results(sequence).values())[0]


def rows(pump: Pump) -> int:
    """Trained, and reported."""
    return sum(p.losses[1] for (role, _), told in pump.progress.items() if role == "compute" for p in told)


@pytest.mark.parametrize("how", ["async", "ssp:2"])
def test_every_batch_is_trained_once_by_whoever_has_time(how: str, blobs: BlobStore) -> None:
    spec = job(blobs, how)
    with Losing(spec, data_plan(spec, 3, 2), blobs, dice=random.Random(5)) as pump:
        for until in (5, 10, 40):
            number = pump.command(lambda number, until=until: script.Train(number, until))  # type: ignore[misc]
            assert again(pump, number) == 0
            assert sorted(b for found in pump.granted for b in found) == list(range(until))
            pump.evaluate("validation")
        assert pump.checkpoint()
        assert set(pump.finish()) == {0}
    assert rows(pump) == 40 * 16
    assert {told[-1].step for (role, _), told in pump.progress.items() if role == "compute"} == {40}
    for shard in (0, 1):
        assert sum(pump.served[shard].taken.values()) == 40


def test_a_slow_worker_trains_less(blobs: BlobStore) -> None:
    """It is stopped after each step, until the other has made three, or asks for more."""
    spec = job(blobs, epochs=60)
    with Slowing(spec, data_plan(spec, 2, 1), blobs) as pump:
        pump.train(20)
        before = [len(found) for found in pump.granted]
        pump.begin(1)
        pump.train(300)
        pump.end()
        trained = [len(found) - then for found, then in zip(pump.granted, before, strict=True)]
        assert set(pump.finish()) == {0}
    assert sum(trained) == 280
    assert trained[0] > 1.5 * trained[1] > 0


def test_what_a_lost_worker_had_is_trained_by_the_other_before_the_epoch_ends(blobs: BlobStore) -> None:
    spec = job(blobs, epochs=8)
    with Losing(spec, data_plan(spec, 2, 2), blobs) as pump:
        pump.train(5)
        first = pump.command(lambda number: script.Train(number, 35))
        pump.route(lambda: len(pump.granted[1]) > len(set(range(5)) & set(pump.granted[1])))
        pump.lose(1)
        told = again(pump, first)
        kept = set(pump.granted[0])
        assert kept | set(pump.granted[1]) == set(range(35))
        both = kept & set(pump.granted[1])
        assert told <= len(both)
        gone = pump.results(pump.command(lambda number: script.Evaluate(number, "test", (1,))))
        found = [msgspec.msgpack.decode(done.result, type=script.Evaluation) for done in gone.values() if done.result]
        assert sum(one.rows for one in found) == 10, "the whole split, by who is left"
        parts = [
            done.result for done in pump.results(pump.command(lambda number: script.Checkpoint(number, (1,)))).values()
        ]
        assert any(parts)
        pump.train(40)
        assert set(pump.finish()) == {0}


def test_the_first_worker_may_be_lost_and_the_next_one_writes(blobs: BlobStore) -> None:
    spec = job(blobs, "ssp:1", epochs=8)
    with Losing(spec, data_plan(spec, 3, 1), blobs) as pump:
        pump.train(5)
        number = pump.command(lambda number: script.Train(number, 30))
        pump.lose(0)
        pump.results(number)
        answers = pump.results(pump.command(lambda number: script.Checkpoint(number, (0,))))
        assert [bool(answers["compute", node].result) for node in pump.computing[1:]] == [True, False]
        evaluated = pump.results(pump.command(lambda number: script.Evaluate(number, "test", (0,))))
        assert all(evaluated["compute", node].result for node in pump.computing[1:])
        pump.train(40)
        assert set(pump.finish()) == {0}


def test_a_run_goes_on_where_the_checkpoint_was_cut(blobs: BlobStore) -> None:
    spec = job(blobs)
    with Losing(spec, data_plan(spec, 2, 2), blobs) as pump:
        pump.train(13)
        parts = pump.checkpoint()
    cut = msgspec.structs.replace(manifest(13, parts), uneven=(2, 0))
    with Losing(spec, data_plan(spec, 3, 1), blobs, checkpoint=cut) as pump:
        for until, told in ((14, 2), (15, 2), (20, 0)):
            assert again(pump, pump.command(lambda number, until=until: script.Train(number, until))) == told  # type: ignore[misc]
        assert sorted(b for found in pump.granted for b in found) == list(range(13, 20))
        assert set(pump.finish()) == {0}
    assert rows(pump) == 7 * 16


def test_who_is_set_aside_leaves_its_batches_to_the_others(blobs: BlobStore) -> None:
    """Long enough that a starved process, too, pushes as often as it takes."""
    spec = job(blobs, epochs=80)
    with Losing(spec, data_plan(spec, 3, 2), blobs) as pump:
        pump.spoil = not_a_number(1, first=1)
        pump.train(400)
        assert pump.evaluate("test").rows == 10
        assert set(pump.finish()) == {0}
    assert pump.served[0].set_aside == (1,)
    assert len({b for node in (0, 2) for b in pump.granted[node]}) >= 397


def test_batches_that_are_pushed_together_are_all_trained(blobs: BlobStore) -> None:
    spec = job(blobs, n_push=4, n_fetch=3)
    with Losing(spec, data_plan(spec, 2, 2), blobs) as pump:
        for until in (7, 40):
            pump.train(until)
            pump.evaluate("test")
        assert set(pump.finish()) == {0}
    assert rows(pump) == 40 * 16
    assert sorted(b for found in pump.granted for b in found) == list(range(40))
