"""The ways to run a job, compared: in figures, in the first line, and for `auto`."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from p2pnn import plan as planner
from p2pnn.job.plan import Plan, Predicted
from p2pnn.model.graph import Graph
from p2pnn.plan.describe import rate
from p2pnn.plan.profile import Profile

from .builder import job, mesh, mlp, node
from .dealt import ABC, dealt

BIG = mlp(1000, 1000, 1000)


def made(graph: Graph, nodes: list[Profile] = ABC, bytes_per_s: float = 1e9, **data: Any) -> Plan:
    pieces = data.pop("micro_batches", 1)
    return planner.plan(dealt(graph, micro_batches=pieces, **data), nodes, mesh(*nodes, bytes_per_s=bytes_per_s))


def rates(plan: Plan) -> dict[str, float]:
    return {found.way: found.samples_per_s for found in plan.predicted}


def test_a_plan_of_the_model_is_as_ever_and_compares_nothing() -> None:
    spec = job(BIG)
    plan = planner.plan(spec, ABC, mesh(*ABC))
    assert (plan.predicted, plan.replicas, plan.shards) == ((), (), ())


def test_all_three_ways_are_predicted() -> None:
    plan = made(BIG)
    assert list(rates(plan)) == ["single", "model", "data"]
    assert [found.nodes for found in plan.predicted] == [("a",), ("a", "b", "c"), ("a", "b", "c")]
    assert rates(plan)["data"] == plan.samples_per_s
    assert rates(plan)["single"] == plan.best_single_samples_per_s
    assert plan.best_single_node == "a"
    assert planner.best(plan.predicted).way == "data"
    assert plan.reasons[0].startswith("one node ")
    assert plan.reasons[0].endswith(" times as fast as a alone")


def test_the_model_is_compared_as_it_would_be_cut() -> None:
    """With its usual four micro-batches, though a worker has one."""
    alone = planner.plan(job(BIG, micro_batches=4), ABC, mesh(*ABC), spread=False)
    assert rates(made(BIG))["model"] == pytest.approx(alone.samples_per_s)


def test_a_model_that_cannot_be_cut_is_not_compared() -> None:
    assert list(rates(made(mlp()))) == ["single", "data"]
    assert list(rates(made(BIG, [node("a")]))) == ["single", "data"]


@pytest.mark.parametrize(
    ("bytes_per_s", "given", "flags", "changes"),
    [
        (3e7, {}, "--push-compression bf16 --pull-compression bf16", {"push": "bf16", "pull": "bf16"}),
        (1e7, {}, "--push-every 4 --fetch-every 4", {"n_push": 4, "n_fetch": 4}),
        (
            5e6,
            {},
            "--push-every 4 --fetch-every 4 --push-compression bf16 --pull-compression bf16",
            {"n_push": 4, "n_fetch": 4, "push": "bf16", "pull": "bf16"},
        ),
        (1e8, {"consistency": "sync"}, "--consistency async", {"consistency": "async"}),
        (
            1e7,
            {"consistency": "sync"},
            "--consistency async --push-every 4 --fetch-every 4",
            {"consistency": "async", "n_push": 4, "n_fetch": 4},
        ),
        (5e7, {"workers": 2, "shards": 1}, "--workers and --shards left away", {"workers": 0, "shards": 0}),
        (
            5e6,
            {"workers": 2, "shards": 1},
            "--push-every 4 --fetch-every 4 --push-compression bf16 --pull-compression bf16 with --workers and --shards left "
            "away",
            {"n_push": 4, "n_fetch": 4, "push": "bf16", "pull": "bf16", "workers": 0, "shards": 0},
        ),
    ],
)
def test_where_it_loses_it_names_the_least_change_that_wins_and_that_does_win(
    bytes_per_s: float, given: dict[str, Any], flags: str, changes: dict[str, Any]
) -> None:
    given = {"micro_batches": 4 if given.get("consistency") == "sync" else 1, **given}
    plan = made(BIG, bytes_per_s=bytes_per_s, **given)
    assert planner.best(plan.predicted).way != "data"
    assert ": slower than a alone, because the link of " in plan.reasons[0]
    assert f"; {flags} would win (" in plan.reasons[0]
    better = made(BIG, bytes_per_s=bytes_per_s, **(given | changes))
    assert better.samples_per_s > better.best_single_samples_per_s
    assert plan.reasons[0].endswith(f" would win ({rate(better.samples_per_s)})")


@pytest.mark.parametrize("parallel", ["data", "hybrid"])
def test_a_plan_that_is_not_compared_is_the_same_and_says_nothing_of_what_was_not_tried(parallel: str) -> None:
    """As it is made for a job that runs, which keeps its way."""
    nodes, links = [*ABC, node("d")], mesh(*ABC, node("d"), bytes_per_s=3e7)
    spec = msgspec.structs.replace(dealt(BIG, segments=0 if parallel == "hybrid" else 1), parallel=parallel)
    full, plain = (planner.plan(spec, nodes, links, compared=compared) for compared in (True, False))
    assert (plain.nodes, plain.replicas, plain.shards) == (full.nodes, full.replicas, full.shards)
    assert [found.way for found in plain.predicted] == ["single", parallel]
    assert {found.way for found in full.predicted} > {"single", "model", parallel}
    assert not any("would" in reason for reason in plain.reasons[:1]), plain.reasons


def test_where_nothing_wins_it_says_that() -> None:
    plan = made(mlp(8), bytes_per_s=1e3)
    assert plan.reasons[0].endswith("; no other setting of it would win here, --parallel model --nodes 1 does")


def test_a_slow_node_is_named_where_the_others_are_faster_without_it() -> None:
    nodes = [node("a"), node("b", 0.45), node("c")]
    plan = made(BIG, nodes, bytes_per_s=1e12, consistency="ssp:2")
    without = made(BIG, nodes, bytes_per_s=1e12, consistency="ssp:2", workers=2)
    assert len(plan.replicas) == 3
    words = f"--workers 2 would reach {rate(without.samples_per_s)} samples/s: all workers wait for the slowest node"
    assert plan.reasons[1] == words
    for other in (without, made(BIG, bytes_per_s=1e12, consistency="ssp:2")):
        assert not any("--workers" in reason for reason in other.reasons)


def test_of_leased_batches_a_slow_node_takes_fewer_and_nobody_waits_for_it() -> None:
    nodes = [node("a"), node("b", 0.05), node("c")]
    plan, without = (made(BIG, nodes, bytes_per_s=1e12, **workers) for workers in ({}, {"workers": 2}))
    assert plan.samples_per_s > without.samples_per_s
    assert not any("--workers" in reason for reason in plan.reasons)
    assert any("each worker computes all the time" in reason and "longest on b" in reason for reason in plan.reasons)


def test_a_much_slower_node_that_makes_it_lose_is_left_out_first() -> None:
    plan = made(BIG, [node("a"), node("b", 0.05), node("c")], bytes_per_s=1e12, consistency="ssp:2")
    assert "; --workers 2 would win (" in plan.reasons[0]


@pytest.mark.parametrize(
    "given",
    [
        {"consistency": "sync", "backup": 1, "micro_batches": 3},
        {"staleness_max": 9, "local_rate": 0.1, "warm_start": 5},
    ],
)
def test_settings_of_one_kind_do_not_hide_another(given: dict[str, Any]) -> None:
    """Backup goes with sync alone, a bound with async alone: what is tried instead is tried without them."""
    plan = made(BIG, bytes_per_s=2.5e6, batch_size=96, **given)
    assert "; --consistency local:8" in plan.reasons[0]


@pytest.mark.parametrize(
    ("rated", "way"),
    [
        ({"single": 100.0, "model": 90.0, "data": 80.0}, "single"),
        ({"single": 100.0, "model": 120.0, "data": 80.0}, "model"),
        ({"single": 100.0, "model": 120.0, "data": 300.0}, "data"),
        ({"single": 100.0, "model": 103.0, "data": 104.0}, "single"),
        ({"model": 100.0, "data": 104.0}, "model"),
        ({"data": 1.0}, "data"),
    ],
)
def test_the_best_way_is_clearly_faster_than_plainer_ones(rated: dict[str, float], way: str) -> None:
    predicted = [Predicted(name, ("a",), rate) for name, rate in rated.items()]
    assert planner.best(predicted).way == way


def test_the_comparison_travels() -> None:
    plan = made(BIG)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(plan), type=Plan) == plan
    assert msgspec.to_builtins(plan)["predicted"][0]["way"] == "single"
