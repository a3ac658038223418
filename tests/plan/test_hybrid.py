"""Hybrid parallelism planned: replicas that are cut over nodes, with shards of their own; every refusal in words."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest

from p2pnn import plan as planner
from p2pnn.errors import UsageError
from p2pnn.job.plan import Plan
from p2pnn.job.spec import JobSpec, Pin
from p2pnn.model.graph import Graph
from p2pnn.plan.cost import Workload
from p2pnn.plan.exchange import worker_bytes
from p2pnn.plan.hybrid import choose
from p2pnn.plan.profile import Profile
from p2pnn.ps.layout import server_layout, shardings_of, worker_layout

from .builder import mesh, mlp, node
from .dealt import ABCD, dealt, exchanged

GRAPH = mlp(1500, 1500, 1500)
ABCDEF = [*ABCD, node("e"), node("f")]


def asked(graph: Graph = GRAPH, spec: dict[str, Any] | None = None, **data: Any) -> JobSpec:
    pieces = data.pop("micro_batches", 4)
    found = dealt(graph, micro_batches=pieces, spec=spec, **{"segments": 0, **data})
    return msgspec.structs.replace(found, parallel="hybrid")


def made(graph: Graph = GRAPH, nodes: list[Profile] = ABCD, *, bytes_per_s: float = 1e9, **more: Any) -> Plan:
    return planner.plan(asked(graph, **more), nodes, mesh(*nodes, bytes_per_s=bytes_per_s))


def refusal(graph: Graph = GRAPH, nodes: list[Profile] = ABCD, **more: Any) -> str:
    with pytest.raises(UsageError) as caught:
        made(graph, nodes, **more)
    assert caught.value.exit_status == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_two_replicas_of_two_nodes_with_shards_of_their_own() -> None:
    plan = made(segments=2, shards=2)
    assert [len(replica.nodes) for replica in plan.replicas] == [2, 2]
    assert sorted(n for replica in plan.replicas for n in replica.nodes) == [0, 1, 2, 3]
    assert set(plan.assignment) == {0, 1}
    assert len({home.nodes for home in plan.shards}) == 2
    spec = asked(segments=2, shards=2)
    whole, own = shardings_of(spec, plan)
    assert whole.segments == (0, 1)
    assert [row.parameters for row in plan.nodes] == [own[0].space.size, own[1].space.size] * 2
    assert [row.layers.split(":")[0] for row in plan.nodes] == ["worker 0", "worker 0", "worker 1", "worker 1"]
    assert "fc0" in plan.nodes[0].layers
    for index, row in enumerate(plan.nodes):
        assert worker_layout(spec, plan, index).stop < row.memory_bytes <= row.memory_bytes_max
        assert server_layout(spec, plan, index).arena_bytes < row.memory_bytes
        assert {name for name, _, _ in row.sends} <= set("abcd")


def test_whatever_order_the_profiles_came_in() -> None:
    assert planner.plan(asked(), ABCDEF, mesh(*ABCDEF)) == planner.plan(asked(), ABCDEF[::-1], mesh(*ABCDEF))


def test_nodes_of_a_kind_have_the_same_segment() -> None:
    """Each replica gets one of the fast nodes and one of the slow ones, and is cut so that both are busy."""
    nodes = [node("a", 4.0), node("b"), node("c"), node("d", 4.0)]
    plan = made(nodes=nodes, segments=2, workers=2)
    names = [[plan.nodes[n].name for n in replica.nodes] for replica in plan.replicas]
    assert [set(replica) & {"a", "d"} for replica in names] in ([{"a"}, {"d"}], [{"d"}, {"a"}])
    fast = [{"a", "d"} & {replica[position] for replica in names} for position in (0, 1)]
    assert sorted(map(len, fast)) == [0, 2]
    by_name = {row.name: row.parameters for row in plan.nodes}
    assert by_name["a"] == by_name["d"] > by_name["b"] == by_name["c"]


def test_what_fits_no_node_is_cut_over_several() -> None:
    spec = asked()
    needed = worker_bytes(Workload(spec), spec, exchanged(spec))
    nodes = [node(name, memory=needed * 7 // 10) for name in "abcd"]
    plan = made(nodes=nodes)
    assert plan.predicted[-1].way == "hybrid"
    assert "data" not in [found.way for found in plan.predicted]
    assert len(plan.replicas) == 2
    assert all(row.memory_bytes <= row.memory_bytes_max for row in plan.nodes)
    data = msgspec.structs.replace(spec, parallel="data", data=msgspec.structs.replace(spec.data, segments=1))
    with pytest.raises(UsageError, match="a worker holds the whole model"):
        planner.plan(data, nodes, mesh(*nodes))


def test_sync_takes_as_many_workers_as_share_the_micro_batches() -> None:
    assert len(made(nodes=ABCDEF, consistency="sync", segments=2).replicas) == 2
    assert len(made(nodes=ABCDEF, consistency="async", segments=2).replicas) == 3
    plan = made(consistency="sync", workers=2)
    assert any("bit for bit, that of one node with as many micro-batches" in reason for reason in plan.reasons)


def test_the_first_line_compares_and_tells_when_it_loses() -> None:
    plan = made(segments=2)
    assert [found.way for found in plan.predicted] == ["single", "model", "data", "hybrid"]
    assert plan.samples_per_s == plan.predicted[-1].samples_per_s
    assert ", hybrid " in plan.reasons[0]
    assert "slower than workers that hold the whole model (--parallel data), because" in plan.reasons[0]
    assert plan.reasons[1].startswith("2 workers of 2 nodes each: each holds a part of the model")


def test_data_parallelism_tells_where_hybrid_would_be_faster() -> None:
    """Wide layers over slow links: a worker that is cut sends each shard half as many gradients."""
    graph = mlp(1500, 1500, 1500)
    data = msgspec.structs.replace(dealt(graph, micro_batches=4, batch_size=4096), name="wide")
    nodes = [node(name, 20.0) for name in "abcd"]
    plan = planner.plan(data, nodes, mesh(*nodes, bytes_per_s=3e7))
    by_way = {found.way: found.samples_per_s for found in plan.predicted}
    assert list(by_way) == ["single", "model", "data", "hybrid"]
    told = [reason for reason in plan.reasons if reason.startswith("--parallel hybrid --workers 2 --segments 2 would")]
    assert bool(told) == (by_way["hybrid"] > 1.05 * by_way["data"])
    assert planner.best(plan.predicted).samples_per_s >= max(by_way.values()) / 1.05


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"workers": 3}, "3 workers of 2 nodes each take 6 nodes, but there are 4: a, b, c, d; start more, or"),
        ({"segments": 3, "workers": 2}, "2 workers of 3 nodes each take 6 nodes, but there are 4"),
        ({"nodes": ABCD[:1]}, "a worker of 2 nodes takes 2 nodes, but there is one: a"),
        ({"workers": 2, "spec": {"node_count": 3}}, "take 4 nodes, but --nodes 3 allows fewer; change one of them"),
        ({"segments": 9}, "--segments 9, but the model can be cut into 4 parts .* take at most --segments 4"),
        ({"graph": mlp()}, "the model cannot be cut over nodes: .* say --parallel data"),
        ({"shards": 1}, "--shards 1 with workers of 2 nodes each: .* take --shards 2 or more"),
        ({"shards": 2, "segments": 3}, "--shards 2 with workers of 3 nodes each"),
        ({"shards": 99}, "--shards 99 is more than the 4 parameter tensors"),
        ({"segments": 1}, "segments = 1 with parallel = hybrid"),
        ({"consistency": "sync", "backup": 1}, "backup:1 with parallel = hybrid"),
        ({"consistency": "sync", "workers": 2, "micro_batches": 1}, "2 workers cannot share the 1 micro-batches"),
        ({"spec": {"pins": (Pin("fc0", "a"),)}}, "the pin fc0=a .* with hybrid parallelism each worker has nodes"),
        ({"spec": {"cut": (0,) * len(GRAPH.ops)}}, "the job's cut is for model parallelism"),
        (
            {"spec": {"memory_bytes_max": 5 << 20}},
            "nodes .*not fit: a would need .* MiB and has 5.0 MiB, .* a shard takes",
        ),
        (
            {"spec": {"memory_bytes_max": 5 << 20}, "replicas": 2},
            "not fit: .* 2 replicas of a shard take up to .* more each .* --replicas 1, or add nodes",
        ),
        ({"replicas": 3}, "replicas = 3: each shard lives on 1 node or on 2"),
        ({"spec": {"schedule": "async:2"}, "micro_batches": 1}, "with --parallel hybrid say --consistency async"),
    ],
)
def test_what_cannot_be_is_one_sentence(more: dict[str, Any], words: str) -> None:
    assert re.search(words, refusal(**more)), refusal(**more)


def test_each_shard_has_a_backup_where_that_is_asked_for() -> None:
    plan = made(segments=2, shards=2, replicas=2)
    alone = made(segments=2, shards=2, replicas=1)
    assert (plan.copies, alone.copies) == (2, 1)
    assert all(len(set(home.nodes)) == 2 for home in plan.shards)
    assert any("each shard has a backup on another node" in reason for reason in plan.reasons)
    spec = asked(segments=2, shards=2, replicas=2)
    whole, own = shardings_of(spec, plan)
    for index, row in enumerate(plan.nodes):
        held = sum(x.memory_bytes for x in alone.nodes if x.node == row.node)
        assert server_layout(spec, plan, index).arena_bytes < row.memory_bytes
        assert (row.memory_bytes > held) == bool(plan.served_by(index))
        primary_of = [home.nodes[0] for home in plan.shards]
        copied = [4 * whole.shards[shard].size for shard, home in enumerate(primary_of) if home == index]
        assert row.copied_bytes == 2 * sum(copied), "the pushes of both workers, each of its segment's node alone"
        assert ("backup of shard" in row.layers) == any(index in home.nodes[1:] for home in plan.shards)
    assert sum(row.copied_bytes for row in plan.nodes) == 2 * 4 * sum(part.space.size for part in own)
    assert plan.samples_per_s <= alone.samples_per_s


def test_without_a_wish_shards_have_backups_where_a_loss_is_made_good_with_them() -> None:
    """Where batches are leased and another worker is left, and of nodes that only serve."""
    assert made(segments=2, workers=2, replicas=0).copies == 2
    assert made(segments=2, workers=1, replicas=0, nodes=ABCD[:2]).copies == 1
    assert made(segments=2, workers=2, replicas=0, consistency="sync").copies == 1
    plan = made(nodes=ABCDEF, segments=2, workers=2, shards=2, replicas=0, consistency="sync")
    assert plan.copies == 2
    assert {plan.worker_of(home.nodes[0]) for home in plan.shards} == {-1}


def test_a_node_without_a_part_is_told() -> None:
    plan = made(nodes=[*ABCD, node("e", 0.2)], segments=2, workers=2)
    assert len(plan.replicas) == 2
    assert any(reason.startswith("one of 5 nodes has no part in it") for reason in plan.reasons)


def test_large_meshes_are_planned_and_the_same_each_time() -> None:
    """Finer cuts are not tried where they are no faster."""
    nodes = [node(chr(ord("A") + n)) for n in range(20)]
    spec = asked(mlp(*[64] * 12))
    work = Workload(spec)
    first, second = (choose(work, spec, nodes, mesh(*nodes)) for _ in range(2))
    assert first.roles == second.roles
    assert first.replicas.count * first.replicas.segments <= 20
    assert first.replicas.segments < 5
