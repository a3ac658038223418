"""The DP against brute force over every cut and every order of nodes, for the objective that its docstring states."""

from __future__ import annotations

from itertools import combinations, pairwise, permutations
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnn.job.spec import Optimizer
from p2pnn.model.graph import Graph
from p2pnn.plan import partition
from p2pnn.plan.cost import Workload, limits, link, memory_bytes, seconds
from p2pnn.plan.partition import best_cuts, boundaries, crossing, range_memory, stages_max
from p2pnn.plan.profile import Link, Profile

from .builder import Net, branched, job, mesh, mlp, node

speeds = st.sampled_from([0.2, 0.5, 1.0, 1.7, 4.0])


def objective(work: Workload, profiles: list[Profile], links: dict, order: tuple[int, ...], ends: list[int]) -> float:
    """The formula of the module's docstring, term by term."""
    total, terms = 0.0, []
    pace = 1 if work.in_flight else work.micro_batches - 1
    forward, backward = crossing(work, range(work.count + 1))
    for stage, (n, (a, b)) in enumerate(zip(order, pairwise([0, *ends, work.count]), strict=True)):
        behind = len(order) - 1 - stage
        delay = -(-(work.in_flight - 1) * behind // (len(order) - 1)) if work.in_flight and behind else 0
        spent = seconds(work, profiles[n])
        c = float((spent.forward + spent.backward)[a:b].sum()) + 2 * spent.dispatch
        total += c
        terms.append(pace * c + float(spent.updating(delay)[a:b].sum()))
    for (source, target), b in zip(pairwise(order), ends, strict=True):
        there = link(links, profiles[source].node, profiles[target].node)
        back = link(links, profiles[target].node, profiles[source].node)
        total += forward[b] / there.bytes_per_s + there.latency_s * (forward[b] > 0)
        total += backward[b] / back.bytes_per_s + back.latency_s * (backward[b] > 0)
        terms.append(pace * max(forward[b] / there.bytes_per_s, backward[b] / back.bytes_per_s))
    return max(total / work.in_flight, *terms) if work.in_flight else total + max(terms)


def brute(work: Workload, profiles: list[Profile], links: dict, count: int, frames: int) -> float:
    best = inf
    legal = boundaries(work, {})
    for chosen in permutations(range(len(profiles)), count):
        room = limits([profiles[n] for n in chosen])
        for ends in combinations(legal, count - 1):
            stage = np.searchsorted(ends, np.arange(work.count), side="right")
            if any(not work.parameter_ops[stage == s].any() for s in range(count)):
                continue
            if all(memory_bytes(work, stage, s, frames) <= room[s] for s in range(count)):
                best = min(best, objective(work, profiles, links, chosen, list(ends)))
    return best


@settings(max_examples=40)
@given(st.data())
def test_the_dp_finds_what_brute_force_finds(data: st.DataObject) -> None:
    widths = data.draw(st.lists(st.sampled_from([4, 40, 300, 900]), min_size=2, max_size=4))
    chain = data.draw(st.booleans())
    graph = mlp(*widths) if chain else branched(blocks=1, extent=data.draw(st.sampled_from([4, 12])))
    settings = {"micro_batches": data.draw(st.sampled_from([1, 2, 8]))}
    if chain and data.draw(st.booleans()):
        kind = data.draw(st.sampled_from(["sgd", "adam"]))
        settings = {
            "micro_batches": 1,
            "schedule": f"async:{data.draw(st.integers(1, 4))}",
            "optimizer": Optimizer(kind),
        }
    work = Workload(job(graph, **settings))
    count = data.draw(st.integers(1, 3))
    whole = memory_bytes(work, [0] * work.count, 0, 2)
    fraction = st.sampled_from([0.3, 0.6, 0.9, 2.0])
    profiles = [node(n, data.draw(speeds), int(whole * data.draw(fraction))) for n in "abcd"[: max(2, count)]]
    rate = st.sampled_from([1e6, 1e8, 1e10])
    links = {
        (a.node, b.node): Link(data.draw(rate), data.draw(st.sampled_from([0.0, 1e-3])))
        for a in profiles
        for b in profiles
        if a is not b
    }
    cuts = best_cuts(work, profiles, links, count, 2, {})
    expected = brute(work, profiles, links, count, 2)
    assert (cuts[0].objective if cuts else inf) == pytest.approx(expected, rel=1e-9)
    for cut in cuts:
        ends = [int(np.searchsorted(cut.assignment, s)) for s in range(1, count)]
        assert objective(work, profiles, links, cut.nodes, ends) == pytest.approx(cut.objective, rel=1e-9)


@pytest.mark.parametrize("graph", [mlp(30, 60, 20), branched()], ids=["mlp", "branched"])
def test_memory_of_a_range_is_the_memory_of_that_assignment(graph: Graph) -> None:
    work = Workload(job(graph))
    edges = list(range(work.count + 1))
    matrix = range_memory(work, edges, 3, {})
    for a in edges:
        for b in edges[a + 1 :]:
            assignment = [1 if a <= i < b else 0 for i in range(work.count)]
            assert int(matrix[a, b]) == memory_bytes(work, assignment, 1, 3), (a, b)


def test_range_memory_with_pins_is_never_below_the_truth() -> None:
    work = Workload(job(branched()))
    left = next(i for i, op in enumerate(work.graph.ops) if op.name == "block0/left")
    profiles = [node("a"), node("b")]
    tight = memory_bytes(work, [0] * work.count, 0, 2) * 2 // 3
    profiles = [node("a", memory=tight), node("b", memory=tight)]
    for cut in best_cuts(work, profiles, mesh(*profiles), 2, 1, {left: 1}):
        assert all(memory_bytes(work, cut.assignment, s, 1) <= tight for s in (0, 1))
        assert cut.nodes[cut.assignment[left]] == 1


def test_a_faster_node_gets_more_of_the_work() -> None:
    work = Workload(job(mlp(*[400] * 9, features=400)))
    profiles = [node("a", 1.0), node("b", 3.0)]
    cut = best_cuts(work, profiles, mesh(*profiles, bytes_per_s=1e10), 2, 3, {})[0]
    flops = work.forward_flops + work.backward_flops
    share = {n: flops[np.array(cut.assignment) == s].sum() for s, n in enumerate(cut.nodes)}
    assert 2.0 < share[1] / share[0] < 5.0


def test_no_boundary_parts_ops_that_share_a_parameter() -> None:
    net = Net()
    h = net.dense("first", "x", 16)
    h = net.op("Relu", "relu", h)
    h = net.dense("again", h, 16, weight="first/weight")
    work = Workload(job(net.graph(net.dense("head", h, 10))))
    assert boundaries(work, {}) == [3]
    assert stages_max(work) == 2


def test_losses_and_metrics_stay_with_the_last_layer() -> None:
    work = Workload(job(mlp(20, 20)))
    head = max(i for i in range(work.count) if work.parameter_ops[i])
    assert max(boundaries(work, {})) == head
    assert boundaries(work, {})[0] == 1


def test_many_nodes_are_ordered_by_swaps_and_the_slow_link_is_avoided() -> None:
    work = Workload(job(mlp(*[100] * 8, features=100)))
    profiles = [node(n) for n in "abcdef"]
    links = mesh(*profiles, bytes_per_s=1e9)
    for p in profiles[:5]:  # f is far from everyone
        links[p.node, profiles[5].node] = links[profiles[5].node, p.node] = Link(1e5, 0.1)
    assert partition.ORDERS_MAX < 720
    cut = best_cuts(work, profiles, links, 5, 3, {})[0]
    assert 5 not in cut.nodes
    assert len(best_cuts(work, profiles, links, 6, 3, {})[0].nodes) == 6


def test_with_mini_batches_in_flight_balance_counts_more_than_bytes() -> None:
    """The least sum has the cut where fewest bytes cross; in flight, sending costs nothing while others compute."""
    graph = mlp(900, 900, 900, 30, 900, features=900)
    nodes = [node(n) for n in "ab"]
    links = mesh(*nodes, bytes_per_s=5e8)

    def stage_of(schedule: str) -> dict[str, int]:
        work = Workload(job(graph, micro_batches=1, schedule=schedule, optimizer=Optimizer("sgd")))
        (cut,) = best_cuts(work, nodes, links, 2, 3, {})
        return {op.name: n for op, n in zip(graph.ops, cut.assignment, strict=True)}

    assert stage_of("sync")["fc2"] == 0
    assert stage_of("sync")["fc4"] == 1
    assert stage_of("async:3")["fc1"] == 0
    assert stage_of("async:3")["fc2"] == 1


def test_what_a_late_stage_keeps_decides_whether_it_fits() -> None:
    graph = mlp(400, 400, features=400)
    work = Workload(job(graph, micro_batches=1, schedule="async:3", optimizer=Optimizer("sgd")))
    assert work.delays([0, 0, *[1] * (work.count - 2)]) == (2, 0)
    roomy = [node(n) for n in "ab"]
    (cut,) = best_cuts(work, roomy, mesh(*roomy), 2, 3, {})
    needs = [memory_bytes(work, cut.assignment, n, 3) for n in range(2)]
    for n in range(2):
        tight = [node(name, memory=need - (m == n)) for m, (name, need) in enumerate(zip("ab", needs, strict=True))]
        found = best_cuts(work, tight, mesh(*tight), 2, 3, {})
        assert all(other.nodes != cut.nodes or other.assignment != cut.assignment for other in found)
    exact = [node(name, memory=need + 1) for name, need in zip("ab", needs, strict=True)]
    assert best_cuts(work, exact, mesh(*exact), 2, 3, {}) == [cut]
