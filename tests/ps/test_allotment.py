"""Every batch and every micro-batch is somebody's, once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnn.errors import LocalProtocolError
from p2pnn.job.spec import DataParallel, JobSpec
from p2pnn.ps.allotment import Allotment, updates
from p2pnn.ps.consistency import Settings, consistency
from tests.engine.numpy.networks import NETWORKS
from tests.ps.models import mlp
from tests.ps.network import plan_of

some_workers = st.integers(1, 9)
GRAPH = mlp(4)


def alike(workers: int, *, shared: bool, backup: int = 0) -> list[Allotment]:
    return [Allotment(workers, index, shared, backup) for index in range(workers)]


@given(some_workers, st.integers(0, 200))
def test_each_batch_is_one_workers(workers: int, until: int) -> None:
    found = [a.batch(local) for a in alike(workers, shared=False) for local in range(a.local(until))]
    assert sorted(found) == list(range(until))
    counts = [a.local(until) for a in alike(workers, shared=False)]
    assert max(counts) - min(counts) <= 1


@given(some_workers, st.booleans(), st.integers(0, 200))
def test_local_and_global_steps_lead_back_to_each_other(workers: int, shared: bool, local: int) -> None:
    for allotment in alike(workers, shared=shared):
        batch = allotment.batch(local)
        assert allotment.local(batch) == local
        assert allotment.local(batch + 1) == local + 1
        assert allotment.reached(local) == batch


@given(some_workers, st.integers(0, 200))
def test_in_sync_every_batch_is_everybodys(workers: int, until: int) -> None:
    for allotment in alike(workers, shared=True):
        assert [allotment.batch(local) for local in range(allotment.local(until))] == list(range(until))


@given(some_workers, st.integers(1, 8))
def test_in_sync_each_micro_batch_is_one_workers_in_their_order(workers: int, share: int) -> None:
    count = workers * share
    found = [m for a in alike(workers, shared=True) for m in a.micro_batches(count)]
    assert found == list(range(count))
    for allotment in alike(workers, shared=False):
        assert allotment.micro_batches(count) == range(count)


@given(some_workers, st.integers(1, 8), st.data())
def test_sums_of_gradients_are_means(workers: int, share: int, data: st.DataObject) -> None:
    count = workers * share
    backup = data.draw(st.integers(0, workers - 1))
    (scale,) = {a.loss_scale(count) for a in alike(workers, shared=True, backup=backup)}
    assert scale * share * (workers - backup) == pytest.approx(1)
    if not backup:
        assert scale == 1 / count  # as one process has it, to the bit
    assert {a.loss_scale(count) for a in alike(workers, shared=False)} == {1 / count}


@given(some_workers, st.integers(0, 50), st.booleans())
def test_each_micro_batch_of_a_split_is_evaluated_once(workers: int, count: int, shared: bool) -> None:
    shares = [a.evaluated(count) for a in alike(workers, shared=shared)]
    assert [m for share in shares for m in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(some_workers, st.integers(0, 50))
def test_workers_with_statistics_of_their_own_leave_evaluation_to_the_one_whose_are_saved(
    workers: int, count: int
) -> None:
    first, *others = [Allotment(workers, index, apart=True) for index in range(workers)]
    assert first.evaluated(count) == range(count)
    assert not any(other.evaluated(count) for other in others)


def test_one_worker_has_everything() -> None:
    alone = Allotment()
    assert (alone.local(7), alone.batch(3), alone.micro_batches(4), alone.loss_scale(4)) == (7, 3, range(4), 0.25)
    assert alone.evaluated(5) == range(5)
    with pytest.raises(LocalProtocolError, match="no worker 2 of 2"):
        Allotment(2, 2)


@pytest.mark.parametrize(
    ("how", "shared", "backup"), [("async", False, 0), ("ssp:2", False, 0), ("local:4", False, 0), ("sync", True, 1)]
)
def test_that_of_a_node(how: str, shared: bool, backup: int) -> None:
    spec = JobSpec("net", GRAPH, {}, data=DataParallel(how, backup))
    assert Allotment.of(spec, plan_of(3, 1), 2) == Allotment(3, 2, shared, backup)
    normalized = JobSpec("net", NETWORKS["resnet"](), {}, data=DataParallel(how, backup))
    assert Allotment.of(normalized, plan_of(3, 1), 2) == Allotment(3, 2, shared, backup, apart=True)
    with pytest.raises(LocalProtocolError, match="no worker -1 of 3"):
        Allotment.of(spec, plan_of(3, 1), 3)  # a server's
    assert Allotment.of(JobSpec("net", GRAPH, {}), plan_of(1, 0), 0) == Allotment()


def test_how_many_updates_there_will_be() -> None:
    assert updates(Settings(consistency("sync")), 4, 10) == 10
    assert updates(Settings(), 4, 10) == 10
    assert updates(Settings(n_push=2), 4, 10) == 2 + 2 + 1 + 1
    assert updates(Settings(consistency("ssp:3")), 3, 7) == 7
    assert updates(Settings(consistency("local:2")), 3, 10) == 2
