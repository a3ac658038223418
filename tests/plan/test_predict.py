"""The event model: sums on one node, never absurd on several, and the same floats every time."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from p2pnn.job.spec import JobSpec, Optimizer
from p2pnn.plan.cost import Workload, seconds
from p2pnn.plan.pins import groups
from p2pnn.plan.predict import CROWDING, DAEMON_S, predict

from .builder import branched, job, mesh, mlp, node, split


def test_one_node_takes_the_sum_of_its_work() -> None:
    work = Workload(job(mlp(50, 50)))
    spent = seconds(work, node("a"))
    feed = sum(spent.feed.values())
    assert feed > 0
    expected = 4 * (float((spent.forward + spent.backward).sum()) + 2 * spent.dispatch + feed) + float(
        spent.updating(0).sum()
    )
    played = predict(work, [0] * work.count, [node("a")], {}, 2)
    assert played.step_s == pytest.approx(expected)
    assert played.samples_per_s == pytest.approx(64 / expected)
    assert played.busy == pytest.approx((1.0,))


def test_an_evaluation_is_forward_only() -> None:
    work = Workload(job(mlp(50, 50), kind="evaluate", test=split(1000)))
    spent = seconds(work, node("a"))
    assert not spent.backward.any()
    played = predict(work, [0] * work.count, [node("a")], {}, 1)
    assert work.micro_batches == 63  # 1000 rows in 16s
    assert played.step_s == pytest.approx(63 * (float(spent.forward.sum()) + spent.dispatch + sum(spent.feed.values())))


def test_two_equal_stages_with_free_links_share_the_work() -> None:
    graph = mlp(*[512] * 7, features=512)
    work = Workload(job(graph, micro_batches=16, batch_size=1024))
    nodes = [node("a"), node("b")]
    half = [0 if i < 8 else 1 for i in range(work.count)]
    one = predict(work, [0] * work.count, [node("a")], {}, 3)
    two = predict(work, half, nodes, mesh(*nodes, bytes_per_s=1e12, latency_s=0.0), 3)
    assert 0.5 < two.step_s / one.step_s < 0.72
    assert all(0.7 < b <= 1.0 for b in two.busy)


def test_two_nodes_on_one_core_are_no_faster_than_one() -> None:
    work = Workload(job(mlp(*[512] * 7, features=512), micro_batches=8))
    nodes = [node(n, machine="pc", cores=1) for n in "ab"]
    half = [0 if i < 8 else 1 for i in range(work.count)]
    one = predict(work, [0] * work.count, nodes[:1], {}, 3)
    assert predict(work, half, nodes, mesh(*nodes), 3).step_s >= one.step_s * 0.999


@pytest.mark.parametrize("stages", [2, 3, 4])
def test_more_frames_are_never_slower_on_a_chain(stages: int) -> None:
    """Within a twentieth: with more tasks to choose from, greedy list scheduling can lose a little (Graham 1969)."""
    work = Workload(job(mlp(*[200] * 7, features=200), micro_batches=8))
    nodes = [node(n, s) for n, s in zip("abcd", (1.0, 0.5, 2.0, 1.0), strict=True)][:stages]
    chain = [min(stages - 1, i * stages // (work.count - 3)) for i in range(work.count)]
    times = [predict(work, chain, nodes, mesh(*nodes), frames).step_s for frames in range(1, 9)]
    assert all(b <= a * 1.05 for a, b in pairwise(times))
    assert times[-1] < times[0]


def test_a_slower_link_is_never_faster() -> None:
    work = Workload(job(mlp(*[200] * 7, features=200), micro_batches=8))
    nodes = [node(n) for n in "abc"]
    chain = [min(2, i * 3 // (work.count - 3)) for i in range(work.count)]
    rates = [1e10, 1e9, 1e8, 1e7, 1e6]
    times = [predict(work, chain, nodes, mesh(*nodes, bytes_per_s=r), 4).step_s for r in rates]
    assert all(b >= a * 0.99 for a, b in pairwise(times))  # list scheduling gains a little by chance (Graham 1969)
    late = predict(work, chain, nodes, mesh(*nodes, latency_s=0.05), 4).step_s
    assert late > times[1] + 0.1


def test_clipping_makes_all_nodes_wait_for_all() -> None:
    def step_s(clip: float) -> float:
        spec = job(mlp(*[200] * 5, features=200))
        work = Workload(replace(spec, optimizer=replace(spec.optimizer, clip_norm=clip)))
        chain = [0 if i < 4 else 1 for i in range(work.count)]
        return predict(work, chain, nodes, mesh(*nodes, latency_s=0.01), 3).step_s

    nodes = [node("a"), node("b")]
    assert step_s(1.0) > step_s(0.0) + 0.005


def test_a_daemon_needs_a_core_for_every_tensor() -> None:
    work = Workload(job(mlp(50, 50, 50), micro_batches=8))
    chain = [0 if i < 4 else 1 for i in range(work.count)]
    times = []
    for cores in (1, 4):
        nodes = [node(n, machine="pc", cores=cores) for n in "ab"]
        times.append(predict(work, chain, nodes, mesh(*nodes), 3).step_s)
    transfers = 2 * 8  # there and back; one core works on each at both ends
    assert times[0] > times[1]
    assert times[0] > transfers * 2 * DAEMON_S


def test_nodes_on_one_machine_slow_each_other_down() -> None:
    work = Workload(job(mlp(*[512] * 7, features=512), micro_batches=8))
    half = [0 if i < 8 else 1 for i in range(work.count)]

    def step_s(*machines: str) -> float:
        nodes = [node(n, machine=m, cores=8) for n, m in zip("ab", machines, strict=True)]
        return predict(work, half, nodes, mesh(*nodes), 3).step_s

    assert step_s("pc", "laptop") * 1.02 < step_s("pc", "pc") < step_s("pc", "laptop") * CROWDING


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), nodes=st.integers(1, 4), frames=st.integers(1, 4), trains=st.booleans())
def test_any_assignment_ends_and_repeats(seed: int, nodes: int, frames: int, trains: bool) -> None:
    kind = "train" if trains else "predict"
    work = Workload(job(branched(blocks=2, extent=4), kind=kind, micro_batches=4, test=split(64)))
    dice = random.Random(seed)
    place = {i: n for g in groups(work.graph) for n in [dice.randrange(nodes)] for i in g}
    assignment = [place[i] for i in range(work.count)]
    chosen = [node(n, dice.choice([0.3, 1.0, 2.0])) for n in "abcd"[:nodes]]
    first = predict(work, assignment, chosen, mesh(*chosen), frames)
    assert first == predict(work, assignment, chosen, mesh(*chosen), frames)
    assert first.step_s > 0
    assert all(0.0 <= b <= 1.0 for b in first.busy)


def halves(spec: JobSpec) -> tuple[Workload, list[int]]:
    work = Workload(spec)
    return work, [0 if i < 8 else 1 for i in range(work.count)]


def test_in_flight_a_step_takes_as_long_as_its_slowest_node() -> None:
    """With links for nothing; each step of `sync` fills and drains the pipeline instead."""
    graph = mlp(*[512] * 7, features=512)
    work, half = halves(job(graph, micro_batches=1, schedule="async:2"))
    nodes = [node("a"), node("b", 0.5)]
    links = mesh(*nodes, bytes_per_s=1e12, latency_s=0.0)
    spent = seconds(work, nodes[1])
    mine = [i for i in range(work.count) if half[i]]
    slowest = (
        float((spent.forward + spent.backward + spent.updating(0))[mine].sum()) + 2 * spent.dispatch + spent.feed["y"]
    )
    played = predict(work, half, nodes, links, 2)
    assert slowest * 0.999 < played.step_s < slowest * 1.1
    assert played.busy[1] > 0.9
    sync, _ = halves(job(graph, micro_batches=4))
    assert played.step_s < predict(sync, half, nodes, links, 4).step_s


@pytest.mark.parametrize("count", [2, 3, 5, pytest.param(8, marks=pytest.mark.long), 16])
@pytest.mark.parametrize("machine", ["", "one"])
def test_in_flight_the_pace_is_that_of_a_long_run(count: int, machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However far nodes run ahead of each other at first; and no plan is faster than all cores together."""
    work = Workload(job(branched(16, 4), micro_batches=1, schedule=f"async:{count}"))
    nodes = [node(name, machine=machine, cores=2) for name in "abc"]
    thirds = [min(2, i * 3 // work.count) for i in range(work.count)]
    shuffled = [(i // 3) % 3 for i in range(work.count)]
    single = predict(work, [0] * work.count, nodes[:1], {}, 1)
    for cut in (thirds, shuffled):
        played = predict(work, cut, nodes, mesh(*nodes), count)
        assert played.samples_per_s < single.samples_per_s * (2.01 if machine else 3.01)
        with monkeypatch.context() as longer:
            longer.setattr("p2pnn.plan.predict.FLOW_STEPS", 200)
            assert played.step_s == pytest.approx(predict(work, cut, nodes, mesh(*nodes), count).step_s, rel=0.05)


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_one_in_flight_is_sync_with_one_micro_batch(clip_norm: float) -> None:
    graph, nodes = mlp(*[200] * 7, features=200), [node("a"), node("b")]
    clipping = Optimizer("momentum", clip_norm=clip_norm)
    one, half = halves(job(graph, micro_batches=1, schedule="async:1", optimizer=clipping))
    sync, _ = halves(job(graph, micro_batches=1, optimizer=clipping))
    assert predict(one, half, nodes, mesh(*nodes), 1).step_s == pytest.approx(
        predict(sync, half, nodes, mesh(*nodes), 1).step_s
    )


def test_more_in_flight_hide_slow_links() -> None:
    graph, nodes = mlp(*[200] * 7, features=200), [node("a"), node("b")]
    times = []
    for count in (1, 2, 4):
        work, half = halves(job(graph, micro_batches=1, schedule=f"async:{count}"))
        times.append(predict(work, half, nodes, mesh(*nodes, latency_s=0.002), count).step_s)
    assert times[0] > times[1] * 1.5 > times[2] * 1.5


def test_in_flight_no_node_waits_for_the_others_squares() -> None:
    def step_s(clip: float) -> float:
        spec = job(mlp(*[200] * 7, features=200), micro_batches=1, schedule="async:2")
        work, half = halves(replace(spec, optimizer=replace(spec.optimizer, clip_norm=clip)))
        return predict(work, half, nodes, mesh(*nodes, latency_s=0.01), 2).step_s

    nodes = [node("a"), node("b")]
    assert step_s(1.0) == step_s(0.0)
