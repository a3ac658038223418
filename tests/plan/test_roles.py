"""Who computes and who serves."""

from __future__ import annotations

from p2pnn.plan.cost import Workload, limits
from p2pnn.plan.exchange import server_bytes, worker_bytes
from p2pnn.plan.profile import Link
from p2pnn.plan.roles import by_speed, fewer, pass_s, place, with_room
from p2pnn.types import NodeId

from .builder import mesh, mlp, node
from .dealt import ABC, ABCD, dealt, exchanged, placed

SPEC = dealt(mlp(1000, 1100, 1200, 1300))


def slowed(links: dict[tuple[NodeId, NodeId], Link], name: str, factor: float) -> dict[tuple[NodeId, NodeId], Link]:
    """The links with those to and from one node slower."""
    slow = node(name).node
    return {pair: Link(x.bytes_per_s / (factor if slow in pair else 1), x.latency_s) for pair, x in links.items()}


def test_the_fastest_first_and_of_equals_by_name() -> None:
    assert by_speed(Workload(SPEC), [node("a"), node("b", 2.0), node("c", 0.5), node("d")]) == [1, 0, 3, 2]
    assert pass_s(Workload(SPEC), node("a")) > pass_s(Workload(SPEC), node("b", 2.0)) > 0


def test_numbers_of_workers_without_the_slow_ones() -> None:
    work = Workload(SPEC)
    assert fewer(work, [node("a"), node("b", 0.5), node("c"), node("d", 0.1)]) == [3, 2]
    assert fewer(work, ABC) == fewer(work, [node("a")]) == []


def test_with_as_many_workers_as_nodes_shards_lie_beside_workers_one_each() -> None:
    roles = placed(SPEC, shards=3)
    assert (roles.workers, roles.homes) == (3, (0, 1, 2))
    assert placed(SPEC, shards=4).homes == (0, 1, 2, 0), "each node once before any twice"
    assert placed(SPEC, shards=4).shards_of(0) == [0, 3]


def test_a_node_without_a_worker_serves_first() -> None:
    roles = placed(SPEC, ABCD, workers=(0, 2), shards=2)
    assert [p.name for p in roles.nodes] == ["a", "c", "b", "d"], "workers first"
    assert roles.homes == (2, 3)
    one = placed(SPEC, ABCD, workers=(0, 2), shards=1)
    assert [p.name for p in one.nodes] == ["a", "c", "b"], "who does nothing takes no part"


def test_but_not_over_much_slower_links() -> None:
    links = slowed(mesh(*ABCD), "b", 1.5)
    assert [p.name for p in placed(SPEC, ABCD, (0, 2), 1, links).nodes] == ["a", "c", "d"], "the faster of two"
    links = slowed(mesh(*ABC), "b", 1.5)
    assert placed(SPEC, ABC, (0, 2), 1, links).homes == (2,)
    links = slowed(mesh(*ABC), "b", 5.0)
    roles = placed(SPEC, ABC, (0, 2), 1, links)
    assert ([p.name for p in roles.nodes], roles.homes) == (["a", "c"], (0,))


def test_nor_where_updates_take_much_longer() -> None:
    nodes = [node("a"), node("b", 0.1), node("c")]
    assert placed(SPEC, nodes, (0, 2), 1, mesh(*nodes, bytes_per_s=1e12)).homes == (0,)
    nodes = [node("a"), node("b", 0.8), node("c")]
    assert placed(SPEC, nodes, (0, 2), 1, mesh(*nodes, bytes_per_s=1e12)).homes == (2,)


def test_a_backup_lies_where_nobody_computes_but_not_over_much_slower_links_either() -> None:
    for factor, name in ((1.5, "d"), (5.0, "a")):
        roles = placed(SPEC, ABCD, (0, 1), 1, slowed(mesh(*ABCD, bytes_per_s=1e8), "d", factor), 2)
        assert [roles.nodes[at[0]].name for at in (roles.homes, roles.backups)] == ["c", name]


def test_memory_decides_where_a_shard_can_lie() -> None:
    there, work = exchanged(SPEC, 2), Workload(SPEC)
    worker, server = worker_bytes(work, SPEC, there), server_bytes(SPEC, there, [0], 2)
    nodes = [node("a", memory=worker), node("b", memory=worker + 2 * server), node("c", memory=server - 1)]
    assert with_room(work, SPEC, there, nodes) == [0, 1]
    found = place(work, SPEC, there, nodes, (0, 1), mesh(*nodes))
    assert found is not None
    assert ([p.name for p in found.nodes], found.homes) == (["a", "b"], (1, 1))
    nodes[1] = node("b", memory=worker + server)
    assert place(work, SPEC, there, nodes, (0, 1), mesh(*nodes)) is None
    assert limits(nodes)[1] == worker + server
