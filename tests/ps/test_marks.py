"""Marks: alone, and under virtual time and faults with workers that have unequal numbers of batches."""

from __future__ import annotations

import numpy as np
import pytest

from p2pnn.job.spec import Optimizer
from p2pnn.ps.consistency import Settings, consistency
from p2pnn.ps.marks import Marks
from p2pnn.ps.sharding import POLICIES, cut
from p2pnn.ps.space import Flat, Space
from tests.ps.models import mlp
from tests.ps.network import NONE, STORM, Faults, Line, Network, workers_named

A, B, C = workers_named(3)
SPACE = Space.of(mlp(9, 6))
SIZE = SPACE.size
SGD = Optimizer("sgd", 1.0, schedule="constant")
WORKERS = 4
SCRIPT = (
    Line(10),
    Line(10, frozenset({0})),
    Line(17),
    Line(18, frozenset()),
    Line(18, frozenset({0})),
    Line(29),
    Line(30),
)
"""Evaluations, checkpoints that worker 0 writes, and one that nobody reads; of 10 batches two of four workers have one more."""

STEPS = 30


def test_a_mark_is_there_when_all_have_drawn_it_and_open_when_all_have_passed_it() -> None:
    marks = Marks([A, B])
    assert (marks.marked, marks.open) == (0, 0)
    assert not marks.draw(A, 3)
    assert marks.ahead == {A}
    assert marks.draw(B, 3)
    assert (marks.marked, marks.open, marks.ahead) == (3, 0, set())
    marks.served(3)
    assert not marks.passes(B, 3)
    assert marks.open == 0
    assert not marks.passes(A, 5)
    assert (marks.marked, marks.open, marks.ahead) == (3, 3, {A})
    assert not marks.draw(A, 4)  # an old one
    assert not marks.draw(C, 9)  # a stranger's
    assert marks.draw(B, 4)
    assert marks.marked == 4


def test_who_has_left_is_waited_for_no_more_and_who_comes_begins_where_all_are() -> None:
    marks = Marks([A, B])
    marks.passes(A, 7)
    marks.served(7)
    assert marks.set_workers([A])
    assert (marks.marked, marks.open) == (7, 7)
    assert not marks.set_workers([A, C])
    assert (marks.marked, marks.open, marks.ahead) == (7, 7, set())
    assert not marks.draw(A, 8)
    assert marks.draw(C, 8)


def one_for_each_batch(worker: int, batch: int, parameters: Flat) -> Flat:
    """Its push adds 1 to the element with its number: what the parameters hold can be read off them."""
    gradient = np.zeros(SIZE, np.float32)
    gradient[batch] = -1.0
    return gradient


def run(
    how: str, seed: int, faults: Faults = STORM, slow: dict[int, float] | None = None, **settings: object
) -> Network:
    outer = Optimizer("sgd", 1.0, schedule="constant")
    backup = settings.pop("backup", 0)
    network = Network(
        seed,
        cut(SPACE, 3, POLICIES[seed % 3]),
        np.zeros(SIZE, np.float32),
        SGD,
        Settings(consistency(how, backup), outer=outer, **settings),  # type: ignore[arg-type]
        WORKERS,
        one_for_each_batch,
        steps=STEPS,
        script=SCRIPT,
        inner=SGD,
        faults=faults,
        slow=slow or {seed % WORKERS: 5.0},
    )
    network.run()
    return network


def check(network: Network, how: str) -> None:
    for mark, line in enumerate(SCRIPT, 1):
        seen = [course.seen[mark] for n, course in enumerate(network.courses) if line.is_wanted_by(n)]
        saved = [shard[mark]["parameters"] for shard in network.saved]
        for parameters in [*seen, network.sharding.join(saved)]:
            found = parameters[: line.until]
            if how == "sync":
                assert (found == WORKERS).all(), mark
            elif how.startswith("local"):
                assert (found > 0).all(), mark  # 1 over the number of those who took part in its round
                assert parameters.tobytes() == network.sharding.join(saved).tobytes()
            else:
                assert (found == 1).all(), mark
            assert not parameters[line.until :].any(), mark


@pytest.mark.parametrize("how", ["async", "ssp:0", "ssp:2", "sync", "local:1", "local:2", "local:8"])
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("faults", [NONE, STORM], ids=["calm", "storm"])
def test_what_is_read_at_a_mark_holds_every_push_before_it_and_none_behind(how: str, seed: int, faults: Faults) -> None:
    network = run(how, seed, faults)
    check(network, how)
    assert (network.fired > 0) == (faults is STORM)


@pytest.mark.parametrize("n_push", [2, 3, 100])
def test_what_is_not_pushed_yet_is_pushed_before_a_mark(n_push: int) -> None:
    for seed in range(4):
        check(run("async", seed, n_push=n_push, n_fetch=n_push), "async")


@pytest.mark.parametrize("pull", ["int8", "bf16"])
def test_values_at_a_mark_are_whole_also_where_pulls_are_compressed(pull: str) -> None:
    for seed in range(4):
        check(run("async", seed, pull=pull), "async")


def test_with_backup_workers_all_see_the_same_at_a_mark() -> None:
    for seed in range(4):
        network = run("sync", seed, backup=1)
        for mark, line in enumerate(SCRIPT, 1):
            seen = {c.seen[mark].tobytes() for n, c in enumerate(network.courses) if line.is_wanted_by(n)}
            saved = network.sharding.join([shard[mark]["parameters"] for shard in network.saved])
            assert seen <= {saved.tobytes()}
            assert (saved[: line.until] > 0).all()
            assert not saved[line.until :].any()
        assert {shard.report().version for shard in network.shards} == {STEPS}


def test_a_first_worker_without_steps_does_not_hold_a_warm_start_up() -> None:
    for seed in range(4):
        check(run("async", seed, warm_start=20), "async")


@pytest.mark.parametrize("how", ["ssp:0", "ssp:1"])
def test_behind_a_mark_the_bound_holds_again(how: str) -> None:
    """Between two marks no worker pushes more than the bound ahead of the slowest that still has batches there."""
    bound = int(how[-1])
    for seed in range(6):
        network = run(how, seed, NONE, {1: 20.0})
        assert not any(replica.refusals for replica in network.replicas)
        assert all(shard.report().version == STEPS for shard in network.shards)
        assert all(shard.report().staleness.max <= WORKERS * (bound + 1) for shard in network.shards)


@pytest.mark.parametrize(
    "rule", ["", "what is behind a mark waits", "who is ahead holds nobody back", "clocks are levelled"]
)
def test_without_each_rule_some_seed_goes_wrong(monkeypatch: pytest.MonkeyPatch, rule: str) -> None:
    hows = ["async"]
    if rule == "what is behind a mark waits":
        monkeypatch.setattr("p2pnn.ps.marks.Marks._count", _all_is_open)
    elif rule == "who is ahead holds nobody back":
        monkeypatch.setattr("p2pnn.ps.marks.Marks.ahead", set())
        hows = ["local:2"]
    elif rule == "clocks are levelled":
        monkeypatch.setattr("p2pnn.ps.roster.Roster.level", lambda self: None)
        hows = ["ssp:0"]
    caught = 0
    for seed in range(10):
        if caught:
            break
        for how in hows:
            try:
                network = run(how, seed)
                check(network, how)
            except AssertionError:
                caught += 1
            else:
                caught += any(replica.refusals for replica in network.replicas) and how == "ssp:0"
    assert bool(caught) == bool(rule)


_COUNT = Marks._count


def _all_is_open(self: Marks) -> None:
    _COUNT(self)
    self.open = 1 << 30


def test_what_is_news_and_what_travels() -> None:
    marks = Marks([A, B])
    assert marks.is_news(A, 1, passed=False)
    marks.draw(A, 1)
    assert not marks.is_news(A, 1, passed=False)
    assert marks.is_news(A, 1, passed=True)
    assert not marks.is_news(C, 1, passed=True)
    marks.passes(A, 1)
    marks.passes(B, 1)
    marks.served(1)
    other = Marks([])
    other.load(*marks.positions(), marks.marked, marks.open, marks.server)
    assert (other.marked, other.open, other.server, other.positions()) == (1, 1, 1, marks.positions())
    assert other.draw(A, 2) is False
    assert other.ahead == {A}
