"""Places of snapshots: what lies where, and how many of them are kept."""

from __future__ import annotations

import msgspec
import pytest

from p2pnn.job.segment import delays
from p2pnn.job.spec import JobSpec, Optimizer
from p2pnn.train.cuts import CUTS_BYTES, CUTS_MAX, CUTS_MIN, Places, places
from tests.executor import models
from tests.executor.mesh import contiguous
from tests.train.graphs import plan_for


@pytest.mark.parametrize(("kind", "slots"), [("sgd", 0), ("momentum", 1), ("adamw", 2)])
def test_every_parameter_lies_on_one_node_with_what_the_optimizer_keeps_of_it(kind: str, slots: int) -> None:
    graph = models.residual()
    spec = JobSpec("it", graph, {}, optimizer=Optimizer(kind))
    plan = plan_for(contiguous(graph, 2), 2, 1)
    found = [places(spec, plan, index) for index in range(2)]
    named = [entry.parameter.name for one in found for entry in one.named]
    assert sorted(named) == sorted(p.name for p in (*graph.parameters, *graph.state))
    assert sum(len(one.more) for one in found) == slots * len(graph.parameters)
    for one in found:
        end = 0
        for entry in (*one.named, *one.more):
            assert entry.offset == end
            end += entry.count
        assert one.nbytes == 4 * end


def test_updates_that_run_behind_keep_as_many_older_versions() -> None:
    graph = models.dense()
    assignment = contiguous(graph, 2)
    spec = JobSpec("it", graph, {}, optimizer=Optimizer("sgd"), schedule="async:4", micro_batches=1)
    plan = msgspec.structs.replace(plan_for(assignment, 2, 4), delays=delays(graph, assignment, 4, 2))
    late, last = places(spec, plan, 0), places(spec, plan, 1)
    assert [entry.behind for entry in late.more] == sorted((e.behind for e in late.more), reverse=True)
    assert {entry.behind for entry in late.more} == set(range(1, plan.delays[0] + 1))
    assert last.more == ()


@pytest.mark.parametrize(
    ("count", "kept"),
    [(0, CUTS_MAX), (1, CUTS_MAX), (CUTS_BYTES // 16, 4), (CUTS_BYTES, CUTS_MIN), (1 << 30, CUTS_MIN)],
)
def test_small_parts_are_kept_a_little_longer_and_large_ones_twice(count: int, kept: int) -> None:
    found = Places((), (), count)
    assert found.kept == kept
    assert found.slots == kept + 1
