"""Bytes, passes and memory of data parallelism."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from p2pnn.errors import UsageError
from p2pnn.job.assignment import REPLICATED_SHARDS_MAX
from p2pnn.job.spec import Optimizer
from p2pnn.plan.cost import Workload, memory_bytes
from p2pnn.plan.exchange import HANDLING_S, check_shards, serve_s, server_bytes, shard_counts, worker_bytes, worker_s
from p2pnn.ps.consistency import Settings
from p2pnn.ps.layout import WorkerLayout, part_sizes
from tests.executor import models
from tests.executor.mesh import spec_for, store
from tests.executor.pump import Pump, data_plan, parallel

from .builder import mlp, node
from .dealt import dealt, exchanged

GRAPH = mlp(40, 50)
SIZE = sum(p.size for p in GRAPH.parameters)


def test_pushes_and_fetches_have_the_bytes_of_their_compression() -> None:
    plain = exchanged(dealt(GRAPH), shards=2)
    assert sum(plain.push_bytes) == sum(plain.pull_bytes) == 4 * SIZE
    assert plain.pushed_per_step == plain.fetched_per_step == 4 * SIZE
    halves = exchanged(dealt(GRAPH, push="bf16", pull="int8"), shards=2)
    assert sum(halves.push_bytes) == 2 * SIZE
    assert SIZE < sum(halves.pull_bytes) < 1.1 * SIZE


def test_seldom_is_cheaper_per_step() -> None:
    seldom = exchanged(dealt(GRAPH, n_push=4, n_fetch=2))
    assert (seldom.pushed_per_step, seldom.fetched_per_step) == (SIZE, 2 * SIZE)
    local = exchanged(dealt(GRAPH, consistency="local:8"))
    assert (local.n_push, local.n_fetch) == (8, 8)
    assert local.pushed_per_step == SIZE / 2


def test_a_body_is_as_large_as_the_one_that_a_worker_sends() -> None:
    for push in ("float32", "bf16", "int8", "top:0.1"):
        there = exchanged(dealt(GRAPH, push=push, pull=push), shards=3)
        layout = WorkerLayout.of(there.sharding, Settings(push=push, pull=push))
        for shard in there.sharding.shards:
            assert there.push_bytes[shard.index] == sum(part_sizes(shard, push))
            assert there.pull_bytes[shard.index] == layout.values[shard.index][push != "float32"]


def test_unknown_words_are_refused() -> None:
    with pytest.raises(UsageError, match="there is no compression 'fp8'"):
        exchanged(dealt(GRAPH, push="fp8"))
    with pytest.raises(UsageError, match="there is no consistency 'ssp'"):
        exchanged(dealt(GRAPH, consistency="ssp"))


def test_more_shards_than_tensors() -> None:
    check_shards(dealt(GRAPH, shards=3), 3)
    with pytest.raises(UsageError, match=r"--shards 4 is more than the 3 parameter tensors .* at most --shards 3"):
        check_shards(dealt(GRAPH, shards=4), 3)


def test_more_shards_with_replicas_than_the_charter_has_room_for() -> None:
    most = REPLICATED_SHARDS_MAX
    for replicas, shards in ((2, most), (0, most + 1), (1, most + 1)):
        check_shards(dealt(GRAPH, shards=shards, replicas=replicas), 999)
    words = rf"--shards {most + 1} with --replicas 2: .* take at most --shards {most}, or --replicas 1"
    with pytest.raises(UsageError, match=words):
        check_shards(dealt(GRAPH, shards=most + 1, replicas=2), 999)
    assert shard_counts(dealt(GRAPH), 2, 999, 1) == list(range(2, 1000))
    assert shard_counts(dealt(GRAPH), 2, 999, 2) == list(range(2, most + 1))
    asked = dealt(GRAPH, shards=most + 1)
    assert (shard_counts(asked, 1, 9, 1), shard_counts(asked, 1, 9, 2)) == ([most + 1], [])


def test_a_worker_holds_the_whole_model_and_the_shards_the_optimizers_state() -> None:
    def bytes_of(kind: str, **data: Any) -> int:
        spec = dealt(GRAPH, spec={"optimizer": Optimizer(kind)}, **data)
        return worker_bytes(Workload(spec), spec, exchanged(spec))

    assert bytes_of("adam") == bytes_of("momentum"), "no state of an optimizer"
    assert bytes_of("adam") > memory_bytes(Workload(dealt(GRAPH)), [0] * len(GRAPH.ops), 0, 1)
    assert bytes_of("sgd") == bytes_of("adam"), "and every gradient, though plain SGD alone could do without"
    assert bytes_of("adam", consistency="local:8") - bytes_of("momentum", consistency="local:8") == 4 * SIZE
    assert bytes_of("adam", push="bf16") > bytes_of("adam")


def test_a_server_holds_versions_state_and_a_place_for_each_push() -> None:
    def bytes_of(workers: int = 2, kind: str = "adam", **data: Any) -> int:
        spec = dealt(GRAPH, spec={"optimizer": Optimizer(kind)}, **data)
        return server_bytes(spec, exchanged(spec), [0], workers)

    whole = 4 * SIZE
    slack = 64 * 10  # alignment
    assert bytes_of() == pytest.approx(whole * (1 + 2 + 2 * 2), abs=slack)
    assert bytes_of(workers=3) - bytes_of() == pytest.approx(2 * whole, abs=slack)
    assert bytes_of(consistency="sync") - bytes_of() == pytest.approx(2 * whole, abs=slack), "a version and a sum"
    assert bytes_of(consistency="sync", backup=1) - bytes_of(consistency="sync") == pytest.approx(whole, abs=slack)
    assert bytes_of() - bytes_of(kind="sgd") == 2 * whole
    assert bytes_of(consistency="local:8", kind="adam") == bytes_of(consistency="local:8", kind="sgd"), (
        "its own outer one"
    )
    spec = dealt(GRAPH)
    both = exchanged(spec, shards=2)
    assert server_bytes(spec, both, [0, 1], 2) == server_bytes(spec, both, [0], 2) + server_bytes(spec, both, [1], 2)
    assert server_bytes(spec, both, [], 2) == 0


def test_what_a_learner_needs_is_counted_where_a_shard_has_several_replicas() -> None:
    def bytes_of(copies: int, **data: Any) -> int:
        spec = dealt(GRAPH, spec={"optimizer": Optimizer("adam")}, **data)
        return server_bytes(spec, exchanged(spec), [0], 2, copies)

    whole, slack = 4 * SIZE, 4 * 2**20 + 64 * 20  # pieces of a state, and alignment
    state, copied, slots = 3 * whole, (3 + 2 + 2) * whole, 2 * 2 * whole
    assert bytes_of(2) - bytes_of(1) == pytest.approx(state + copied + slots, abs=slack)
    in_round = 2 * whole
    assert bytes_of(2, consistency="sync") - bytes_of(1, consistency="sync") == pytest.approx(
        state + copied + slots + in_round, abs=slack
    )


def test_compressing_costs_passes_and_local_steps_cost_updates() -> None:
    at = node("a")
    plain, halves, local = dealt(GRAPH), dealt(GRAPH, push="bf16", pull="bf16"), dealt(GRAPH, consistency="local:8")
    assert worker_s(halves, exchanged(halves), at)[1] > worker_s(plain, exchanged(plain), at)[1]
    assert worker_s(local, exchanged(local), at)[0] > worker_s(plain, exchanged(plain), at)[0]
    assert worker_s(dealt(GRAPH, local_rate=0.1), exchanged(plain), at)[0] > worker_s(plain, exchanged(plain), at)[0]
    push, update, answer = serve_s(plain, exchanged(plain), 0, at)
    assert (push > HANDLING_S, update > push - HANDLING_S, answer) == (True, True, 0.0)
    assert serve_s(halves, exchanged(halves), 0, at)[2] > 0
    fast = serve_s(plain, exchanged(plain), 0, node("b", 4.0))
    assert fast[1] == pytest.approx(update / 4)


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize(
    ("kind", "pieces", "data"),
    [
        ("sgd", 1, {"consistency": "async"}),
        ("adam", 1, {"consistency": "async", "push": "bf16", "pull": "int8"}),
        ("adam", 4, {"consistency": "sync"}),
        ("momentum", 2, {"consistency": "local:3", "push": "int8"}),
        ("adagrad", 2, {"consistency": "ssp:1", "pull": "bf16"}),
    ],
)
def test_no_executor_takes_more_than_the_planner_counts(
    kind: str, pieces: int, data: dict[str, Any], copies: int, tmp_path: Path
) -> None:
    """And not much less: what executors say when they are prepared."""
    spec = spec_for(models.dense(), store(tmp_path), optimizer=Optimizer(kind), micro_batches=pieces)
    spec = parallel(spec, **data)
    there, work = exchanged(spec, 2), Workload(spec)
    with Pump(spec, data_plan(spec, 2, 2, servers=copies, frames=1, copies=copies), store(tmp_path)) as pump:
        pump.prepare()
        taken = pump.prepared
        assert len(taken) == 2 + copies
        for (role, _), nbytes in taken.items():
            serves = role == "serve"
            counted = server_bytes(spec, there, [0, 1], 2, copies) if serves else worker_bytes(work, spec, there)
            assert counted / 3 < nbytes <= counted, (role, nbytes, counted)
