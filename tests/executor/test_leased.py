"""Workers that are cut over nodes and train what is leased to them, as real processes: all nodes of one train the same, and when
one of them is lost its worker is, while the others go on."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import numpy as np
import pytest

from p2pnn.data.blobs import BlobStore
from p2pnn.executor import commands
from p2pnn.job import script
from p2pnn.job.spec import JobSpec
from tests.executor import models
from tests.executor.mesh import contiguous, manifest, spec_for
from tests.executor.pump import hybrid, hybrid_plan
from tests.executor.test_executor import by_layers
from tests.executor.test_leasing import ADAM, Losing, again, rows
from tests.executor.test_replica import not_a_number


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> BlobStore:
    return BlobStore(tmp_path_factory.mktemp("leased") / "blobs")


def job(blobs: BlobStore, how: str = "async", epochs: int = 24, **settings: Any) -> JobSpec:
    """Of five steps an epoch."""
    return hybrid(spec_for(models.scaled(models.dense()), blobs, epochs=epochs, optimizer=ADAM), how, **settings)


class Cut(Losing):
    """Of workers that are cut, whose links are lost with a node. dealt: by node, batches that it was told of."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.dealt: dict[int, list[int]] = {node: [] for node in self.computing}

    def receive(self, key: tuple[str, int], message: Any) -> None:
        if not isinstance(message, commands.Send) or self.lost.isdisjoint(self.company(key[1])):
            super().receive(key, message)

    def tell(self, key: tuple[str, int], message: Any) -> None:
        if isinstance(message, commands.Dealt):
            self.dealt[key[1]] += [b for start, stop in message.ranges for b in range(start, stop)]
        super().tell(key, message)


@pytest.mark.parametrize("how", ["async", "ssp:0", "ssp:1"])
def test_all_nodes_of_a_worker_train_what_its_first_is_granted(how: str, blobs: BlobStore) -> None:
    spec = job(blobs, how)
    plan = hybrid_plan(spec, by_layers(spec.graph, 3), 2, 4)
    with Cut(spec, plan, blobs, dice=random.Random(5)) as pump:
        for until in (5, 10, 40):
            number = pump.command(lambda number, until=until: script.Train(number, until))  # type: ignore[misc]
            assert again(pump, number) == 0
            assert sorted(b for found in pump.granted for b in found) == list(range(until))
            assert pump.evaluate("validation").rows == 10
        assert pump.checkpoint()
        assert set(pump.finish()) == {0}
    for worker, replica in enumerate(plan.replicas):
        assert [pump.dealt[node] for node in replica.nodes] == [[], pump.granted[worker], pump.granted[worker]]
    assert rows(pump) == 40 * 16
    assert {told[-1].step for (role, _), told in pump.progress.items() if role == "compute"} == {40}
    for shard in range(4):
        assert sum(pump.served[shard].taken.values()) == 40


@pytest.mark.parametrize("how", ["async", "ssp:1"])
@pytest.mark.parametrize("position", [0, 1])
def test_the_others_train_what_a_worker_had_that_loses_a_node(how: str, position: int, blobs: BlobStore) -> None:
    """The node that is left of it answers at once, and neither evaluates nor writes."""
    spec = job(blobs, how, epochs=8)
    plan = hybrid_plan(spec, contiguous(spec.graph, 2), 2, 2)
    with Cut(spec, plan, blobs) as pump:
        pump.train(5)
        first = pump.command(lambda number: script.Train(number, 35))
        pump.route(lambda: len(set(pump.granted[1]) - set(range(5))) > 1)
        lost, left = plan.replicas[1].nodes[position], plan.replicas[1].nodes[1 - position]
        pump.lose(lost)
        told = again(pump, first)
        kept = set(pump.granted[0])
        assert kept | set(pump.granted[1]) == set(range(35))
        assert told <= len(kept & set(pump.granted[1]))
        answers = pump.results(pump.command(lambda number: script.Evaluate(number, "test", (1,))))
        found = [
            msgspec.msgpack.decode(done.result, type=script.Evaluation) for done in answers.values() if done.result
        ]
        assert sum(one.rows for one in found) == 10, "the whole split, by who is left"
        assert answers["compute", left].result == b""
        answers = pump.results(pump.command(lambda number: script.Checkpoint(number, (1,))))
        assert [bool(answers["compute", node].result) for node in (*plan.replicas[0].nodes, left)] == [
            True,
            True,
            False,
        ]
        pump.train(40)
        assert set(pump.finish()) == {0}


def test_the_first_worker_may_lose_a_node_and_the_next_one_writes(blobs: BlobStore) -> None:
    spec = job(blobs, "ssp:1", epochs=8)
    with Cut(spec, hybrid_plan(spec, contiguous(spec.graph, 2), 3, 2), blobs) as pump:
        pump.train(5)
        number = pump.command(lambda number: script.Train(number, 30))
        pump.lose(0)
        pump.results(number)
        answers = pump.results(pump.command(lambda number: script.Checkpoint(number, (0,))))
        wrote = [node for node in pump.computing if node and answers["compute", node].result]
        assert wrote == list(pump.plan.replicas[1].nodes), "each its own layers"
        pump.train(40)
        assert set(pump.finish()) == {0}


def test_a_node_is_lost_amid_an_evaluation(blobs: BlobStore) -> None:
    """Of the worker that evaluates, too; who is left answers for what was under way, and evaluates it all then."""
    spec = job(blobs, epochs=8)
    plan = hybrid_plan(spec, contiguous(spec.graph, 2), 2, 2)
    with Cut(spec, plan, blobs) as pump:
        pump.train(5)
        number = pump.command(lambda number: script.Evaluate(number, "test"))
        pump.lose(3)
        pump.results(number)
        answers = pump.results(pump.command(lambda number: script.Evaluate(number, "test", (1,))))
        found = [
            msgspec.msgpack.decode(done.result, type=script.Evaluation) for done in answers.values() if done.result
        ]
        assert sum(one.rows for one in found) == 10
        assert set(pump.finish()) == {0}


def test_a_run_goes_on_where_the_checkpoint_was_cut(blobs: BlobStore) -> None:
    spec = job(blobs)
    with Cut(spec, hybrid_plan(spec, contiguous(spec.graph, 2), 2, 2), blobs) as pump:
        pump.train(13)
        parts = pump.checkpoint()
    plan = hybrid_plan(spec, by_layers(spec.graph, 3), 1, 3, together=True)
    with Cut(spec, plan, blobs, checkpoint=manifest(13, parts)) as pump:
        pump.train(20)
        assert pump.granted == [list(range(13, 20))]
        assert set(pump.finish()) == {0}
    assert rows(pump) == 7 * 16


@pytest.mark.parametrize("shard", [0, 1])
def test_who_is_set_aside_leaves_its_batches_to_the_others(shard: int, blobs: BlobStore) -> None:
    """By one of its shards, whichever of its nodes speaks to that; its nodes go on together to evaluate."""
    spec = job(blobs)
    spoil = not_a_number(1, first=1)
    with Cut(spec, hybrid_plan(spec, contiguous(spec.graph, 2), 3, 2), blobs) as pump:
        pump.spoil = lambda worker, message, place: spoil(worker, message, place) if message.shard == shard else None
        pump.train(60)
        assert pump.evaluate("test").rows == 10
        pump.train(70)
        after = pump.evaluate("test")
        assert set(pump.finish()) == {0}
    assert (after.rows, np.isfinite(after.loss_sum)) == (10, True)
    assert pump.served[shard].set_aside == (1,)
    assert len({b for worker in (0, 2) for b in pump.granted[worker]}) >= 57


def test_batches_that_are_pushed_together_are_all_trained(blobs: BlobStore) -> None:
    spec = job(blobs, n_push=4, n_fetch=3)
    with Cut(spec, hybrid_plan(spec, contiguous(spec.graph, 2), 2, 2), blobs) as pump:
        for until in (7, 40):
            pump.train(until)
            pump.evaluate("test")
        assert set(pump.finish()) == {0}
    assert rows(pump) == 40 * 16
    assert sorted(b for found in pump.granted for b in found) == list(range(40))


def test_workers_wait_for_the_first_ones_updates(blobs: BlobStore) -> None:
    spec = job(blobs, warm_start=8)
    with Cut(spec, hybrid_plan(spec, contiguous(spec.graph, 2), 2, 2), blobs) as pump:
        pump.train(5)
        pump.train(40)
        assert set(pump.finish()) == {0}
    assert rows(pump) == 40 * 16
