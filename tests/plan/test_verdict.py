"""A data-parallel plan in words."""

from __future__ import annotations

import pytest

from p2pnn.job.plan import Predicted
from p2pnn.plan import verdict
from p2pnn.plan.pace import Bound
from p2pnn.plan.profile import Profile
from p2pnn.plan.roles import Roles

from .builder import node


def test_roles() -> None:
    assert verdict.role(0, [1]) == "worker 0; shard 1"
    assert verdict.role(2, []) == "worker 2"
    assert verdict.role(-1, [0, 3]) == "shards 0, 3"


def test_durations() -> None:
    found = [verdict.duration(s) for s in (0.00112, 0.364, 0.9996, 3.77)]
    assert found == ["1.12 ms", "364 ms", "1 s", "3.77 s"]


def test_why() -> None:
    assert verdict.why(0.364, 1 / 3) == "364 ms of computing per step, its shards hold 33 % of the parameters"
    assert verdict.why(None, 0.5) == "its shards hold 50 % of the parameters"
    assert verdict.why(0.001, 0.0) == "1 ms of computing per step"


@pytest.mark.parametrize(
    ("batch_size", "pieces", "workers", "words"),
    [
        (64, 4, 3, "take 1 or 2 or 4 workers, or a --batch-size that 3 divides, with --micro-batches 3"),
        (96, 4, 3, "take 1 or 2 or 4 workers, or --micro-batches 3"),
        (96, 4, 6, "take 1 or 2 or 4 workers, or --micro-batches 6"),
        (96, 1, 2, "take 1 workers, or --micro-batches 2"),
    ],
)
def test_what_would_share_evenly(batch_size: int, pieces: int, workers: int, words: str) -> None:
    assert verdict.shareable(batch_size, pieces, workers) == words


SINGLE, MODEL = Predicted("single", ("a",), 410.0), Predicted("model", ("a", "b", "c"), 980.0)


def data(rate: float) -> Predicted:
    return Predicted("data", ("a", "b", "c", "d"), rate)


def test_the_first_line_compares() -> None:
    assert verdict.headline([SINGLE, MODEL, data(1150.0)], "x", "", "a") == (
        "one node 410 samples/s, model parallel 980 over 3 nodes, data parallel 1,150 over 4 nodes: 2.8 times as fast as a alone"
    )
    assert verdict.headline([data(1150.0)], "x", "", "") == (
        "no single node has room for it, data parallel 1,150 samples/s over 4 nodes"
    )


def test_the_first_line_says_when_it_loses_why_and_what_would_win() -> None:
    start = "one node 410 samples/s, model parallel 980 over 3 nodes, data parallel "
    assert verdict.headline([SINGLE, MODEL, data(900.0)], "the links are slow", "", "a") == (
        f"{start}900 over 4 nodes: slower than the model cut (--parallel model), because the links are slow"
    )
    assert verdict.headline(
        [SINGLE, MODEL, data(300.0)], "the links are slow", "--consistency local:8 would win (900)", "a"
    ) == (
        f"{start}300 over 4 nodes: slower than a alone, because the links are slow; --consistency local:8 would win (900)"
    )
    assert verdict.headline([SINGLE, data(300.0)], "the links are slow", "", "a").endswith(
        "because the links are slow; no other setting of it would win here, --parallel model --nodes 1 does"
    )
    assert verdict.headline([SINGLE, MODEL, data(300.0)], "the links are slow", "", "a").endswith(
        "; no other setting of it would win here, --parallel model does"
    ), "the cut that the same line calls faster"


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (Bound("link", 1, 0.39), "the link of b is busy for 390 ms with what is pushed and fetched per round"),
        (Bound("shards", 1, 0.39), "b computes for 390 ms per round on its shards"),
        (Bound("cores", 0, 0.39), "2 nodes share the 2 cores of one machine"),
        (Bound("trip", 0, 0.39), "the round trip between a and the shards takes longer than its computing"),
        (
            Bound("compute", 0, 0.39),
            "a is busy for 390 ms per round with its passes, its push and its fetch, and the others wait for it",
        ),
    ],
)
def test_what_a_round_waits_for(found: Bound, words: str) -> None:
    nodes: list[Profile] = [node("a", machine="m", cores=2), node("b", machine="m", cores=2)]
    assert verdict.bound(found, Roles(tuple(nodes), 2, (0,))) == words


def test_a_machine_of_one_node_has_two_cores_where_nobody_said() -> None:
    assert verdict.bound(Bound("cores", 0, 0.1), Roles((node("a"),), 1, (0,))) == "a has but 2 cores"
