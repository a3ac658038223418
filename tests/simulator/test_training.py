"""Workers train on a replicated shard whose processes die: pushes count once, and each kind of consistency holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from p2pnn.job.spec import Optimizer
from p2pnn.ps import carrying
from p2pnn.ps.replicated import Taken
from p2pnn.ps.space import Flat
from p2pnn.ps.state import State
from p2pnn.ps.withheld import Withheld
from p2pnn.replication.peers import Peer
from p2pnn.replication.replica import Replica
from p2pnn.train.optimizers import Updater
from p2pnn.train.rates import rate
from tests.simulator.__main__ import main
from tests.simulator.shard_ablations import SHARD_RULES
from tests.simulator.training import SIZE, Training, play
from tests.support.marks import some

SEEDS = 12
ABLATION_SEEDS = 60


def test_no_promise_is_broken() -> None:
    """Exactly once, bounds, marks and logs, in storms; see `Training`."""
    played = [play(seed) for seed in range(1, SEEDS + 1)]
    assert [result.violation for _, result in played if result.violation] == []
    assert sum(result.acknowledged for _, result in played) > 50 * SEEDS
    assert sum(result.configurations for _, result in played) > 4 * SEEDS
    assert sum(result.transfers for _, result in played) > SEEDS / 4
    assert sum(result.promotions for _, result in played) > SEEDS / 4
    assert sum(training.marked for training, _ in played) > SEEDS
    assert sum(result.is_lost for _, result in played) < SEEDS / 2
    assert {training.settings.consistency.kind for training, _ in played} == {"async", "ssp", "sync"}


def pull_towards(worker: int, step: int, parameters: Flat) -> Flat:
    """A gradient that depends on everything: noise by (worker, step), and the parameters."""
    noise = np.random.default_rng([worker, step]).standard_normal(parameters.size, np.float32)
    return (parameters + noise) * np.float32(0.25)


def one_process(optimizer: Optimizer, initial: Flat, workers: int, steps: int) -> Flat:
    w, updater = initial.copy(), Updater(optimizer)
    slots = {name: np.zeros_like(w) for name in updater.slots}
    for step in range(steps):
        total = pull_towards(0, step, w)
        for worker in range(1, workers):
            total = total + pull_towards(worker, step, w)
        updater.update(w, total, slots, rate=rate(optimizer, step, 0), step=step, decay=False)
    return w


@pytest.mark.parametrize("seed", range(1, 5))
@pytest.mark.parametrize("kind", ["nesterov", "adam"])
def test_sync_has_the_bits_of_one_process_though_primaries_die(kind: str, seed: int) -> None:
    optimizer = Optimizer(kind, 0.05, schedule="constant")
    initial = np.random.default_rng(seed).standard_normal(SIZE, np.float32)
    training = Training(
        seed, copies=4, workers=3, how="sync", compute=pull_towards, initial=initial, optimizer=optimizer
    )
    world, ledger = training.world, training.ledger
    for _ in range(3):
        before = ledger.acknowledged
        assert world.run_until(lambda before=before: ledger.acknowledged > before + 15, 5.0)  # type: ignore[misc]
        assert world.run_until(training.is_whole, 10.0)
        assert ledger.configuration is not None
        world.crash(ledger.configuration.primary.id)
    before = ledger.acknowledged
    assert world.run_until(lambda: ledger.acknowledged > before + 15, 5.0)
    assert world.run_until(training.is_whole, 10.0)
    training.pushing = False
    assert world.run_until(training._is_quiet, 5.0)
    assert ledger.configuration is not None
    for member in ledger.configuration.in_sync:
        state = world.hosts[member.id].core.shard.state  # type: ignore[union-attr]
        assert state.versions.number >= 20
        expected = one_process(optimizer, initial, 3, state.versions.number)
        assert state.versions.newest.tobytes() == expected.tobytes()


@pytest.mark.parametrize("how", ["async", "ssp:2", "sync"])
@pytest.mark.parametrize("seed", range(1, 4))
def test_a_killed_primary_costs_less_than_two_seconds(how: str, seed: int) -> None:
    training = Training(seed, how=how, workers=3, slow={0: 3.0}, mark_every=20)
    ledger, world = training.ledger, training.world
    assert world.run_until(lambda: ledger.acknowledged > 60, 5.0)
    world.crash(training.replicas[0])
    before = ledger.acknowledged
    assert world.run_until(lambda: ledger.acknowledged > before + 12, 2.0), "more than were under way"
    assert world.run_until(training.is_whole, 8.0)
    if how == "ssp:2":
        assert training.spread == 2, "the bound was reached, so it was tested"
    assert world.run_until(lambda: training.marked >= 2, 10.0)
    assert training.full == 0, "who is in sync has a slot for every push"


def test_a_quiet_shard_needs_no_more_slots_than_it_has() -> None:
    training = Training(3, how="async", workers=4)
    training.world.run(3.0)
    assert (training.ledger.configurations, training.full) == (1, 0)
    assert training.ledger.acknowledged > 400


def _release_all(self: Withheld) -> None:
    for worker in list(self._held):
        self.let_go(worker)


def _load_nobody(state: State, head: Any, refusals: Any) -> None:
    for one in head.workers:
        one.sequence = 0
    _LOAD(state, head, refusals)


def _unpack_without_round(state: State, pieces: Any) -> None:
    _UNPACK(state, pieces)
    state.round.clear()


def _nothing_is_taken(self: Taken, worker: int) -> int:
    return 0


def _everything_comes_in(*about: Any) -> str:
    return ""


_LOAD, _UNPACK = carrying._load_workers, carrying.unpack

RULES: dict[str, tuple[str, Any]] = {
    "a bound holds answers back after a failover": ("p2pnn.ps.withheld.Withheld._release_held", _release_all),
    "who has pushed what travels with the state": ("p2pnn.ps.carrying._load_workers", _load_nobody),
    "an open round travels with the state": ("p2pnn.ps.replicated.unpack", _unpack_without_round),
    "the log knows what the state knows": ("p2pnn.ps.replicated.Taken.last", _nothing_is_taken),
}
"""Rule → what is put in its place. Those of replication are switched off in `test_shards`, and some here as well."""

TOO = ("generations", "all in sync hold it", "promotion when synced", "whole updates", "re-sync first")


@pytest.mark.parametrize("without", some(RULES))
def test_every_rule_is_needed(without: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*RULES[without])
    assert_caught(Replica)


class SendsAll(Replica):
    def has_place(self, peer: Peer, worker: int, sequence: int) -> bool:
        return True


def test_a_slot_is_free_only_when_its_push_is_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    """A primary keeps to that, and so does the gate where one does not."""
    monkeypatch.setattr("p2pnn.ps.gate.PushGate.refusal", _everything_comes_in)
    assert_caught(SendsAll)


@pytest.mark.parametrize("without", some(TOO, 1))
def test_rules_of_replication_are_needed_here_too(without: str) -> None:
    assert_caught(SHARD_RULES[without].replica)


def assert_caught(replica: type[Replica]) -> None:
    """A few seeds break a promise, which is more than that nothing moves."""
    for seed in range(1, ABLATION_SEEDS + 1):
        report = play(seed, replica)[1].violation
        reason = report.splitlines()[0] if report else "within"
        if "within" not in reason and "under way" not in reason:
            return
    pytest.fail(f"nothing happened in {ABLATION_SEEDS} seeds")


def test_the_command_tells_what_it_did(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--training", "--seeds", "2", "--seed", "1", "--processes", "1"]) == 0
    told = capsys.readouterr().out
    for word in ("seeds", "fired", "updates", "states", "violations  0"):
        assert word in told
    assert main(["--training", "--seed", "1", "--without", "all in sync hold it"]) == 0
    assert './run sim --training --seed 1 --without "all in sync hold it"' in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--training", "--shards"])
    assert "not allowed with argument" in capsys.readouterr().err


@pytest.mark.long
def test_many_seeds() -> None:
    assert main(["--training", "--seeds", "2000"]) == 0
