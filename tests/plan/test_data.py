"""Data parallelism planned: roles without a wish, with one, and every refusal in words."""

from __future__ import annotations

from typing import Any

import pytest

from p2pnn import plan as planner
from p2pnn.errors import UsageError
from p2pnn.job.assignment import REPLICATED_SHARDS_MAX
from p2pnn.job.plan import Plan
from p2pnn.job.spec import Pin
from p2pnn.model.graph import Graph
from p2pnn.plan.cost import Workload
from p2pnn.plan.data import choose, record
from p2pnn.plan.exchange import server_bytes, worker_bytes
from p2pnn.plan.profile import Profile

from .builder import mesh, mlp, node
from .dealt import ABC, ABCD, dealt, exchanged

GRAPH = mlp(1500, 1500)
SIZE = sum(p.size for p in GRAPH.parameters)


def made(
    graph: Graph = GRAPH,
    nodes: list[Profile] = ABC,
    *,
    bytes_per_s: float = 1e9,
    spec: dict[str, Any] | None = None,
    **data: Any,
) -> Plan:
    pieces = data.pop("micro_batches", 1)
    asked = dealt(graph, micro_batches=pieces, spec=spec, **data)
    return planner.plan(asked, nodes, mesh(*nodes, bytes_per_s=bytes_per_s))


def refusal(graph: Graph = GRAPH, nodes: list[Profile] = ABC, **more: Any) -> str:
    with pytest.raises(UsageError) as caught:
        made(graph, nodes, **more)
    assert caught.value.exit_status == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def roles(plan: Plan) -> dict[str, str]:
    return {row.name: row.layers for row in plan.nodes}


def test_without_a_wish_all_nodes_compute_and_serve() -> None:
    plan = made()
    assert roles(plan) == {"a": "worker 0; shard 0", "b": "worker 1; shard 1", "c": "worker 2; shard 2"}
    assert [replica.nodes for replica in plan.replicas] == [(0,), (1,), (2,)]
    assert [home.nodes for home in plan.shards] == [(0,), (1,), (2,)]
    assert plan.assignment == (0,) * len(GRAPH.ops)
    assert plan.frames == 1
    assert [plan.worker_of(n) for n in range(3)] == [0, 1, 2]
    assert plan.replica(1).nodes == (plan.nodes[1],)
    assert all(row.parameters == SIZE for row in plan.nodes), "each holds the whole model"


def test_whatever_order_the_profiles_came_in() -> None:
    links = mesh(*ABCD)
    assert planner.plan(dealt(GRAPH, workers=2), ABCD, links) == planner.plan(
        dealt(GRAPH, workers=2), ABCD[::-1], links
    )


def test_the_rows_tell_what_is_exchanged_and_held() -> None:
    plan = made(nodes=ABCD, workers=2, shards=2, push="bf16")
    assert roles(plan) == {"a": "worker 0", "b": "worker 1", "c": "shard 0", "d": "shard 1"}
    assert [row.parameters for row in plan.nodes] == [SIZE, SIZE, SIZE // 2, SIZE - SIZE // 2]
    (one, other), nothing = plan.nodes[0].sends, plan.nodes[2].sends
    assert (one[0], other[0], nothing) == ("c", "d", ())
    assert one[1] + other[1] == 2 * SIZE
    assert one[2] + other[2] == 4 * SIZE
    assert plan.nodes[0].compute_s > 0
    assert plan.nodes[2].compute_s == 0
    assert all(0 < row.memory_bytes <= row.memory_bytes_max for row in plan.nodes)


def test_as_many_workers_as_asked_for_are_the_fastest_nodes() -> None:
    nodes = [node("a", 0.5), node("b", 2.0), node("c"), node("d", 2.0)]
    plan = made(nodes=nodes, workers=2)
    assert [row.name for row in plan.nodes][:2] == ["b", "d"]
    assert roles(plan) == {"b": "worker 0; shard 1", "d": "worker 1; shard 2", "c": "shard 0"}, "a is too slow to serve"
    assert {row.name for row in made(nodes=nodes, spec={"node_count": 2}).nodes} == {"b", "d"}
    assert {row.name for row in made(nodes=nodes, spec={"nodes": ("a", "c")}).nodes} == {"a", "c"}


def test_as_many_shards_as_make_it_no_slower() -> None:
    """Over a slow link, one shard each; where messages cost more than bytes, one."""
    assert len(made(bytes_per_s=1e6).shards) == 3
    small = made(mlp(8), bytes_per_s=1e12)
    assert len(small.shards) == 1
    assert any(reason.startswith("one shard, on a: more would be slower") for reason in small.reasons)
    assert len(made(mlp(), nodes=ABC).shards) == 1, "one tensor"
    assert len(made(shards=2).shards) == 2


def test_sync_takes_as_many_workers_as_share_the_micro_batches() -> None:
    plan = made(consistency="sync", micro_batches=4)
    assert len(plan.replicas) == 2
    assert "2 of 3 nodes compute: 4 micro-batches cannot be shared evenly by more" in plan.reasons
    assert len(made(consistency="sync", micro_batches=3, spec={"batch_size": 96}).replicas) == 3
    assert len(made(consistency="async", micro_batches=4).replicas) == 3


def test_a_backup_is_told() -> None:
    plan = made(nodes=ABCD, consistency="sync", micro_batches=4, backup=1)
    assert "the first 3 of 4 gradients make a step; the others are dropped" in plan.reasons


def test_nodes_without_room_for_the_model_serve() -> None:
    spec = dealt(GRAPH)
    needed = worker_bytes(Workload(spec), spec, exchanged(spec))
    nodes = [node("a"), node("b", memory=needed - 1), node("c")]
    plan = made(nodes=nodes)
    assert roles(plan)["b"].startswith("shard")
    assert "1 of 3 nodes have no room for the whole model" in plan.reasons


def test_where_memory_is_scarce_a_node_serves_instead_of_computing() -> None:
    spec = dealt(GRAPH)
    there = exchanged(spec)
    needed, server = worker_bytes(Workload(spec), spec, there), server_bytes(spec, there, [0], 1)
    nodes = [node("a", memory=needed), node("b", memory=max(needed, server))]
    plan = made(nodes=nodes)
    assert roles(plan) == {"a": "worker 0", "b": "shard 0"}
    assert "1 of 2 nodes compute: the others' memory is needed for shards" in plan.reasons


def test_nodes_that_differ_are_told() -> None:
    nodes = [*ABC[:2], node("c", fingerprint="other")]
    plan = made(nodes=nodes, consistency="sync", micro_batches=2, workers=2, shards=3)
    assert not plan.bitwise
    assert "equal to 1e-5, not bitwise" in plan.reasons[-1]
    assert made().bitwise


def test_more_shards_than_tensors() -> None:
    assert refusal(shards=4) == (
        f"--shards 4 is more than the 3 parameter tensors of the model {GRAPH.name}: no shard may be empty; take at most "
        "--shards 3"
    )


def test_more_shards_than_can_have_backups_have_none_and_that_is_told() -> None:
    graph = mlp(*[8] * REPLICATED_SHARDS_MAX)
    for shards, copies in ((REPLICATED_SHARDS_MAX, 2), (REPLICATED_SHARDS_MAX + 1, 1)):
        spec = dealt(graph, shards=shards, replicas=0)
        work = Workload(spec)
        plan = record(work, spec, choose(work, spec, ABC, mesh(*ABC)), 3)
        assert {len(home.nodes) for home in plan.shards} == {copies}
        told = "no shard has a backup, since those of at most 256 shards can have one" in plan.reasons
        assert told is (copies == 1)


def test_fewer_nodes_than_workers() -> None:
    assert refusal(workers=5) == (
        "--workers 5 takes as many nodes, but there are 3: a, b, c; start more, or take --workers 3"
    )
    assert "but there is one: a; start more" in refusal(nodes=ABC[:1], workers=2)


def test_fewer_nodes_allowed_than_workers() -> None:
    assert refusal(workers=3, spec={"node_count": 2}) == (
        "--workers 3 takes as many nodes, but --nodes 2 allows fewer; change one of them"
    )
    assert "two shards, each on another node: as many as there can be" in made(spec={"node_count": 2}).reasons


def test_micro_batches_that_workers_cannot_share() -> None:
    assert refusal(consistency="sync", workers=3, micro_batches=4) == (
        "3 workers cannot share the 4 micro-batches of a step evenly, which sync needs: take 1 or 2 or 4 workers, or a "
        "--batch-size that 3 divides, with --micro-batches 3"
    )


def test_as_many_backups_as_workers() -> None:
    words = "a step needs at least one gradient"
    assert words in refusal(consistency="sync", workers=2, backup=2, micro_batches=4)
    assert words in refusal(consistency="sync", backup=2, micro_batches=4), "two workers of three nodes"


def test_no_room_for_a_worker() -> None:
    small = [node("a", memory=1 << 20), node("b", memory=1 << 21)]
    said = refusal(nodes=small)
    assert said.startswith("a worker holds the whole model and needs ")
    assert "but a has 1.0 MiB, b has 2.0 MiB; use smaller micro-batches (--micro-batches), or cut the model" in said
    assert "ask for fewer --workers" in refusal(nodes=[*ABC[:1], *small[1:]], workers=2)


def test_no_room_for_a_shard() -> None:
    spec = dealt(GRAPH)
    needed = worker_bytes(Workload(spec), spec, exchanged(spec))
    tight = [node("a", memory=needed), node("b", memory=needed)]
    assert refusal(nodes=tight, workers=2).startswith("no node has the memory for a shard: one of 1 needs ")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"pins": (Pin("fc0", "a"),)},
            "the pin fc0=a is for model parallelism: .* leave pins away, or say --parallel model",
        ),
        ({"schedule": "async:2"}, "--schedule async:2 is for model parallelism; .* say --consistency async instead"),
        ({"cut": (0,) * len(GRAPH.ops)}, "the job's cut is for model parallelism"),
        ({"nodes": ("a", "attic")}, "attic"),
    ],
)
def test_what_does_not_go_with_it(changes: dict[str, Any], words: str) -> None:
    import msgspec

    spec = msgspec.structs.replace(dealt(GRAPH), **changes)
    with pytest.raises(UsageError, match=words):
        planner.plan(spec, ABC, mesh(*ABC))


def test_each_shard_has_a_backup_on_another_node_and_nodes_have_as_many() -> None:
    plan = made(replicas=2)
    assert [len(set(home.nodes)) for home in plan.shards] == [2, 2, 2]
    assert roles(plan)["a"] == f"worker 0; shard 0 (backup of shard {plan.served_by(0)[1]})"
    assert sorted(home.nodes[1] for home in plan.shards) == [0, 1, 2]
    assert plan.copies == 2
    assert all(plan.served_by(n) for n in range(3))
    assert all(row.copied_bytes > 0 for row in plan.nodes)
    assert any("each shard has a backup on another node" in reason for reason in plan.reasons)
    alone = made(replicas=1)
    assert alone.copies == 1
    assert all(x.memory_bytes > y.memory_bytes for x, y in zip(plan.nodes, alone.nodes, strict=True))
    assert not any(row.copied_bytes for row in alone.nodes)


def test_without_a_wish_shards_have_backups_where_the_plan_has_nodes_with_room() -> None:
    assert made(replicas=0).copies == 2
    assert made(nodes=ABC[:1], replicas=0).copies == 1
    spec = dealt(GRAPH)
    there = exchanged(spec)
    needed, server = worker_bytes(Workload(spec), spec, there), server_bytes(spec, there, [0], 2)
    nodes = [node("a", memory=needed + server), node("b", memory=needed)]
    assert made(nodes=nodes, replicas=0).copies == 1
    assert refusal(nodes=nodes, replicas=2, workers=2).startswith(
        "not enough nodes have the memory for 2 replicas of each shard: "
    )


def test_only_a_wish_for_backups_takes_in_a_node_that_has_nothing_else_to_do() -> None:
    assert roles(made(nodes=ABCD, workers=1, shards=1, replicas=0)) == {
        "a": "worker 0; backup of shard 0",
        "b": "shard 0",
    }
    wished = roles(made(nodes=ABCD, workers=1, shards=1, replicas=2))
    assert wished == {"a": "worker 0", "b": "shard 0", "c": "backup of shard 0"}


def test_more_replicas_than_nodes() -> None:
    assert refusal(nodes=ABC[:1], replicas=2) == (
        "--replicas 2 takes as many nodes for each shard, but there is one: a; start more, or take --replicas 1"
    )
    assert "replicas = 3" in refusal(replicas=3)


def test_words_that_there_are_not_are_refused_here_too() -> None:
    assert "there is no consistency" in refusal(consistency="eventually")
    assert "there is no compression" in refusal(push="zip")
    assert "there is no way" in refusal(cut="thirds")


def test_large_meshes_are_planned_in_a_moment() -> None:
    """Nothing in it grows with more than the third power of nodes; and it is the same plan each time."""
    nodes = [node(chr(ord("A") + n)) for n in range(20)]
    spec = dealt(mlp(*[64] * 12))
    work = Workload(spec)
    first, second = (choose(work, spec, nodes, mesh(*nodes)) for _ in range(2))
    assert first.roles == second.roles
    assert first.roles.workers == 20


def test_sync_says_whether_its_bits_are_those_of_one_node() -> None:
    def promise(**data: Any) -> str:
        plan = made(nodes=ABCD, consistency="sync", **data)
        return next(reason for reason in plan.reasons if reason.startswith("sync: "))

    assert promise(micro_batches=4).endswith(
        "; the result is, bit for bit, that of one node with as many micro-batches"
    )
    assert "other bits than one node's" in promise(micro_batches=4, push="bf16")
    assert "bits" not in promise(micro_batches=4, backup=1)
