"""The whole of it under virtual time and faults: what each consistency promises, exactly-once, and that it learns."""

from __future__ import annotations

import numpy as np
import pytest

from p2pnn.job.spec import Optimizer
from p2pnn.ps.consistency import Settings, consistency
from p2pnn.ps.decisions import Take
from p2pnn.ps.messages import Answer, Push, Worker
from p2pnn.ps.port import Port
from p2pnn.ps.shard import Shard
from p2pnn.ps.sharding import POLICIES, Sharding, cut
from p2pnn.ps.space import Flat, Space
from p2pnn.ps.state import State
from p2pnn.train.optimizers import Updater
from p2pnn.train.rates import rate
from tests.ps.models import mlp
from tests.ps.network import NONE, STORM, Faults, Network

SPACE = Space.of(mlp(9, 6))
SGD = Optimizer("sgd", 1.0, schedule="constant")


def start(space: Space = SPACE) -> Flat:
    return np.random.default_rng(1).standard_normal(space.size, np.float32)


def pull_towards(worker: int, step: int, parameters: Flat) -> Flat:
    """A gradient that depends on everything: noise by (worker, step), and the parameters."""
    noise = np.random.default_rng([worker, step]).standard_normal(parameters.size, np.float32)
    return (parameters + noise) * np.float32(0.25)


def one_process(optimizer: Optimizer, workers: int, steps: int) -> Flat:
    """Steps of as many micro-batches, each parameter's gradient summed in their order, updated parameter by parameter."""
    w, updater = start(), Updater(optimizer)
    slots = {name: np.zeros_like(w) for name in updater.slots}
    for step in range(steps):
        gradients = [pull_towards(worker, step, w) for worker in range(workers)]
        for e in SPACE.entries:
            run = slice(e.start, e.stop)
            total = gradients[0][run].copy()
            for gradient in gradients[1:]:
                np.add(total, gradient[run], out=total)
            state = {name: slot[run] for name, slot in slots.items()}
            lr = rate(optimizer, step, steps)
            updater.update(w[run], total, state, rate=lr, step=step, decay=e.decay)
    return w


@pytest.mark.parametrize("kind", ["sgd", "nesterov", "adagrad", "adamw"])
@pytest.mark.parametrize(("policy", "shards"), [("equal", 1), ("equal", 4), ("greedy", 3), ("round-robin", 2)])
@pytest.mark.parametrize("faults", [NONE, STORM], ids=["calm", "storm"])
def test_sync_equals_one_process_bit_for_bit(kind: str, policy: str, shards: int, faults: Faults) -> None:
    optimizer = Optimizer(kind, 0.05, weight_decay=0.01, schedule="cosine")
    expected = one_process(optimizer, 3, 12)
    network = Network(
        shards,
        cut(SPACE, shards, policy),
        start(),
        optimizer,
        Settings(consistency("sync")),
        3,
        pull_towards,
        steps=12,
        faults=faults,
        slow={1: 3.0},
    )
    network.run()
    assert network.values().tobytes() == expected.tobytes()
    assert (network.fired > 0) == (faults is STORM)
    assert all(shard.report().version == 12 for shard in network.shards)


def counting(shards: int) -> Sharding:
    return cut(SPACE, shards)


def one_hot(steps: int) -> tuple[int, int]:
    """Elements from one push's to the next's, and per worker's."""
    return 1, steps


@pytest.mark.parametrize("how", ["async", "ssp:0", "ssp:2", "sync"])
@pytest.mark.parametrize("seed", range(12))
def test_every_acknowledged_push_counts_exactly_once(how: str, seed: int) -> None:
    """Push number t of worker w takes 1 from element t · W + w, at rate 1, in every shard: it reads exactly 1."""
    workers, steps = 4, 20
    size = SPACE.size
    assert workers * steps <= size

    def compute(worker: int, step: int, parameters: Flat) -> Flat:
        gradient = np.zeros(size, np.float32)
        gradient[step * workers + worker] = -1.0
        return gradient

    network = Network(
        seed,
        cut(SPACE, 3, POLICIES[seed % 3]),
        np.zeros(size, np.float32),
        SGD,
        Settings(consistency(how)),
        workers,
        compute,
        steps=steps,
        faults=STORM,
        slow={seed % workers: 4.0},
    )
    network.run()
    assert network.fired > 20
    expected = np.zeros(size, np.float32)
    expected[: workers * steps] = 1.0
    assert np.array_equal(network.values(), expected)


@pytest.mark.parametrize("bound", [0, 1, 3])
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("faults", [NONE, STORM], ids=["calm", "storm"])
def test_no_push_is_based_on_a_clock_more_than_the_bound_behind(bound: int, seed: int, faults: Faults) -> None:
    """Each worker counts in an element of its own, in each shard, so the values themselves say what they hold."""
    workers, steps, shards = 4, 15, 2
    size = SPACE.size
    sharding = cut(SPACE, shards)
    firsts = [shard.pieces[0].start for shard in sharding.shards]
    held: dict[tuple[int, int], int] = {}  # (shard, version) → the least count of any worker in it
    checked = spread = 0

    def compute(worker: int, step: int, parameters: Flat) -> Flat:
        gradient = np.zeros(size, np.float32)
        for first in firsts:
            gradient[first + worker] = -1.0
        return gradient

    def on_answer(shard: int, answer: Answer) -> None:
        if answer.values is not None:
            counts = answer.values.data.view(np.float32)[:workers]
            held[shard, answer.values.version] = int(counts.min())
            assert answer.values.clock == counts.min()

    def on_push(shard: int, push: Push) -> None:
        nonlocal checked, spread
        clock = push.sequence - 1
        assert clock - held[shard, push.based_on] <= bound
        checked += 1
        spread = max(spread, clock - held[shard, push.based_on])

    network = Network(
        seed,
        sharding,
        np.zeros(size, np.float32),
        SGD,
        Settings(consistency(f"ssp:{bound}")),
        workers,
        compute,
        steps=steps,
        faults=faults,
        slow={0: 6.0},
        on_push=on_push,
        on_answer=on_answer,
    )
    network.run()
    assert checked >= workers * steps * shards
    assert spread == bound  # the bound was reached, so it was tested
    assert not any(replica.refusals for replica in network.replicas) or faults is STORM


def test_backup_workers_do_not_wait_for_the_slowest() -> None:
    taken: dict[int, int] = {}

    def compute(worker: int, step: int, parameters: Flat) -> Flat:
        taken[worker] = taken.get(worker, 0) + 1
        return np.full(parameters.size, -0.5, np.float32)  # the mean over the two that make a step

    def after(backup: int) -> tuple[float, Network]:
        network = Network(
            5,
            counting(2),
            np.zeros(SPACE.size, np.float32),
            SGD,
            Settings(consistency("sync", backup)),
            3,
            compute,
            steps=200,
            slow={2: 20.0},
        )
        network.run(lambda: all(shard.report().version >= 30 for shard in network.shards))
        return network.now, network

    waiting, _ = after(0)
    hasty, network = after(1)
    assert hasty < waiting / 4
    for shard in network.shards:
        assert np.array_equal(
            shard.arrays["parameters"], np.full_like(shard.arrays["parameters"], shard.report().version)
        )


@pytest.mark.parametrize("how", ["async", "sync", "ssp:1"])
def test_workers_leave_and_come_while_it_runs(how: str) -> None:
    """One of four dies; a generation later the others go on, and everything acknowledged is there once."""
    workers, steps = 4, 20
    size = SPACE.size

    def compute(worker: int, step: int, parameters: Flat) -> Flat:
        gradient = np.zeros(size, np.float32)
        gradient[step * workers + worker] = -1.0
        return gradient

    network = Network(
        3,
        counting(2),
        np.zeros(size, np.float32),
        SGD,
        Settings(consistency(how)),
        workers,
        compute,
        steps=steps,
        faults=STORM,
    )
    network.run(lambda: network.replicas[3].step >= 4)
    network.stop(3)
    network.lose(3)
    network.run()
    found = network.values()[: workers * steps].reshape(steps, workers)
    if how == "sync":  # three gradients made with the scale of four, until workers hear of it
        assert (found[:, :3] > 0).all()
    else:
        assert (found[:, :3] == 1).all()
        assert set(np.unique(found[:, 3])) <= {0.0, 1.0}
        assert (found[:2, 3] == 1).all()  # all but the two that may have been under way


def softmax_problem() -> tuple[Space, np.ndarray, np.ndarray]:
    """Five clusters in eight dimensions, and a space of one dense layer."""
    random = np.random.default_rng(7)
    centres = random.standard_normal((5, 8)) * 1.5
    labels = random.integers(0, 5, 2000)
    return Space.of(mlp()), centres[labels] + random.standard_normal((2000, 8)), labels


class Softmax:
    """Softmax regression on it: mini-batches of 50 by (worker, step), loss and accuracy over everything."""

    def __init__(self) -> None:
        self.space, self.x, self.labels = softmax_problem()

    def scores(self, parameters: Flat, rows: np.ndarray) -> np.ndarray:
        views = self.space.views(parameters)
        scores = self.x[rows] @ views["head/weight"].T.astype(np.float64) + views["head/bias"]
        scores -= scores.max(axis=1, keepdims=True)
        return np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)

    def gradient(self, worker: int, step: int, parameters: Flat, scale: float = 1.0) -> Flat:
        rows = np.random.default_rng([worker, step]).integers(0, len(self.x), 50)
        errors = self.scores(parameters, rows)
        errors[np.arange(50), self.labels[rows]] -= 1
        errors *= scale / 50
        arrays = {
            "head/weight": (errors.T @ self.x[rows]).astype(np.float32),
            "head/bias": errors.sum(0).astype(np.float32),
        }
        return self.space.join(arrays)

    def accuracy(self, parameters: Flat) -> float:
        return float((self.scores(parameters, np.arange(len(self.x))).argmax(1) == self.labels).mean())

    def loss(self, parameters: Flat) -> float:
        every = np.arange(len(self.x))
        return float(-np.log(self.scores(parameters, every)[every, self.labels]).mean())

    def train(
        self,
        settings: Settings,
        optimizer: Optimizer,
        workers: int,
        steps: int,
        inner: Optimizer | None = None,
        faults: Faults = Faults(doubled=0.02, lost=0.02),  # noqa: B008
    ) -> Network:
        network = Network(
            2,
            cut(self.space, 2),
            np.zeros(self.space.size, np.float32),
            optimizer,
            settings,
            workers,
            self.gradient,
            steps=steps,
            inner=inner,
            faults=faults,
        )
        network.run()
        return network


ADAGRAD = Optimizer("adagrad", 0.1, schedule="constant")


@pytest.fixture(scope="module")
def alone() -> tuple[Softmax, float, float]:
    """The problem, and what one worker reaches in 320 steps: (loss, accuracy)."""
    problem = Softmax()
    values = problem.train(Settings(), ADAGRAD, 1, 320).values()
    return problem, problem.loss(values), problem.accuracy(values)


def test_downpour_with_adagrad_learns_as_one_worker_does(alone: tuple[Softmax, float, float]) -> None:
    problem, loss, accuracy = alone
    settings = Settings(n_push=2, n_fetch=2, local_rate=0.02, warm_start=10)
    network = problem.train(settings, ADAGRAD, 4, 160, faults=NONE)  # twice the mini-batches, each push of two
    assert problem.loss(network.values()) < loss * 1.05
    assert problem.accuracy(network.values()) > accuracy - 0.01
    staleness = network.shards[0].report().staleness
    assert staleness.total == 4 * 80
    assert 0 < staleness.mean < 16


@pytest.mark.parametrize("compression", ["bf16", "int8"])
def test_compressed_both_ways_it_reaches_the_same(alone: tuple[Softmax, float, float], compression: str) -> None:
    problem, _, _ = alone
    plain = problem.train(Settings(), ADAGRAD, 4, 80)
    network = problem.train(Settings(push=compression, pull=compression), ADAGRAD, 4, 80)
    assert abs(problem.loss(network.values()) - problem.loss(plain.values())) < 0.01
    assert problem.accuracy(network.values()) >= problem.accuracy(plain.values()) - 0.002
    # whole arrays go out first, and again where an answer was lost
    ratio = sum(s.report().received_bytes for s in plain.shards) / sum(
        s.report().received_bytes for s in network.shards
    )
    assert ratio == pytest.approx(2.0 if compression == "bf16" else 4 * 22.5 / 26.5, rel=0.1)


def test_local_steps_reach_the_same_with_an_eighth_of_the_bytes(alone: tuple[Softmax, float, float]) -> None:
    problem, _, accuracy = alone
    every = problem.train(Settings(consistency("sync")), Optimizer("sgd", 0.05, schedule="constant"), 4, 80)
    inner = Optimizer("adamw", 0.02, schedule="constant")
    local = problem.train(Settings(consistency("local:8")), ADAGRAD, 4, 80, inner)
    assert all(shard.report().version == 10 for shard in local.shards)
    assert problem.accuracy(local.values()) > accuracy - 0.005
    ratio = sum(s.report().received_bytes for s in every.shards) / sum(s.report().received_bytes for s in local.shards)
    assert ratio == pytest.approx(8.0, rel=0.1)


def broken(monkeypatch: pytest.MonkeyPatch, rule: str) -> None:
    """Switch off one rule."""
    if rule == "a push that comes again is known":
        monkeypatch.setattr("p2pnn.ps.shard.Shard.arrived", _arrives_anew)
    elif rule == "only values that are waited for are taken":
        monkeypatch.setattr("p2pnn.ps.port.Port._is_wanted", lambda self, answer: answer.values is not None)
    elif rule == "a version that is read is not written":
        monkeypatch.setattr("p2pnn.ps.versions.Versions.next", lambda self: 1 - self._newest)
    elif rule == "gradients are summed in the order of workers":
        monkeypatch.setattr("p2pnn.ps.state.State._take", _take_in_order_of_arrival)
    elif rule == "a body is kept until it is acknowledged":
        monkeypatch.setattr("p2pnn.ps.port.Port._reclaim", _reclaim_too_early)


def _arrives_anew(self: Shard, push: Push, now: float) -> None:
    member = self._roster.get(push.worker)
    if member is not None and push.sequence == member.sequence:
        member.sequence -= 1  # as if it had not been logged
    _ARRIVED(self, push, now)


def _take_in_order_of_arrival(self: State, worker: Worker, sequence: int, take: Take, now: float) -> list[Worker]:
    decided = _TAKE(self, worker, sequence, take, now)
    self.roster.workers = (*self.round, *(w for w in self.roster.workers if w not in self.round))
    return decided


def _reclaim_too_early(self: Port) -> None:
    _RECLAIM(self)
    if len(self._bodies) < 2:
        self._bodies.extend(push.body for push in self._outgoing)


_ARRIVED, _TAKE, _RECLAIM = Shard.arrived, State._take, Port._reclaim


@pytest.mark.parametrize(
    "rule",
    ["", "only values that are waited for are taken", "gradients are summed in the order of workers"],
)
def test_without_each_rule_some_seed_breaks_the_bits_of_sync(monkeypatch: pytest.MonkeyPatch, rule: str) -> None:
    optimizer = Optimizer("sgd", 0.05, schedule="constant")
    expected = one_process(optimizer, 3, 12)
    broken(monkeypatch, rule)
    caught = 0
    for seed in range(10):
        if caught:
            break
        settings = Settings(consistency("sync"))
        network = Network(
            seed, cut(SPACE, 2), start(), optimizer, settings, 3, pull_towards, steps=12, faults=STORM, slow={1: 3.0}
        )
        try:
            network.run()
        except AssertionError:
            caught += 1
        else:
            caught += network.values().tobytes() != expected.tobytes()
    assert bool(caught) == bool(rule)


@pytest.mark.parametrize("rule", ["", "a push that comes again is known", "a body is kept until it is acknowledged"])
def test_without_each_rule_some_seed_loses_or_doubles_a_push(monkeypatch: pytest.MonkeyPatch, rule: str) -> None:
    broken(monkeypatch, rule)
    workers, steps, caught = 3, 20, 0

    def compute(worker: int, step: int, parameters: Flat) -> Flat:
        gradient = np.zeros(SPACE.size, np.float32)
        gradient[step * workers + worker] = -1.0
        return gradient

    for seed in range(10):
        if caught:
            break
        network = Network(
            seed,
            cut(SPACE, 2),
            np.zeros(SPACE.size, np.float32),
            SGD,
            Settings(),
            workers,
            compute,
            steps=steps,
            faults=STORM,
        )
        try:
            network.run()
        except AssertionError:
            caught += 1
        else:
            caught += not (network.values()[: workers * steps] == 1).all()
    assert bool(caught) == bool(rule)


@pytest.mark.parametrize("rule", ["", "a version that is read is not written"])
def test_without_pinned_versions_values_change_while_they_are_sent(monkeypatch: pytest.MonkeyPatch, rule: str) -> None:
    broken(monkeypatch, rule)
    torn = 0

    def compute(worker: int, step: int, parameters: Flat) -> Flat:
        return np.full(SPACE.size, -1.0, np.float32)

    def on_answer(shard: int, answer: Answer) -> None:
        nonlocal torn
        if answer.values is not None:
            torn += not (answer.values.data.view(np.float32) == answer.values.version).all()

    for seed in range(5):
        settings = Settings(consistency("ssp:3"))
        zero = np.zeros(SPACE.size, np.float32)
        slow = Faults(leaving_s=0.05)
        Network(seed, cut(SPACE, 2), zero, SGD, settings, 6, compute, steps=20, on_answer=on_answer, faults=slow).run()
    assert bool(torn) == bool(rule)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2000))
def test_many_seeds(seed: int) -> None:
    """Exactly once with every kind, cut and compression of answers, hard faults, and a worker that dies."""
    workers, steps = 4, 20
    how, pull, dies = (
        ("async", "ssp:0", "ssp:2", "sync")[seed % 4],
        ("float32", "int8", "bf16")[seed // 4 % 3],
        seed % 5 == 0,
    )

    def compute(worker: int, step: int, parameters: Flat) -> Flat:
        gradient = np.zeros(SPACE.size, np.float32)
        gradient[step * workers + worker] = -1.0
        return gradient

    network = Network(
        seed,
        cut(SPACE, 1 + seed % 4, POLICIES[seed % 3]),
        np.zeros(SPACE.size, np.float32),
        SGD,
        Settings(consistency(how), pull=pull),
        workers,
        compute,
        steps=steps,
        faults=Faults(lost=0.08, doubled=0.15, broken=0.08, delay_s=0.08),
        slow={seed % workers: 5.0},
    )
    if dies:
        network.run(lambda: network.replicas[3].step >= 4)
        network.stop(3)
        network.lose(3)
    network.run()
    found = network.values()[: workers * steps].reshape(steps, workers)
    if how == "sync" and dies:  # one step may have been made with another scale
        assert (found[:, :3] > 0).all()
    else:
        assert (found[:, :3] == 1).all()
        assert dies or (found[:, 3] == 1).all()
