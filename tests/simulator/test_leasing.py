"""Workers that train what is leased to them, and die: every batch is trained, and the coverage is what happened."""

from __future__ import annotations

from typing import Any

import pytest

from p2pnn.ps.decisions import Decision, Leave, Rest
from p2pnn.ps.messages import Worker
from p2pnn.ps.state import State
from p2pnn.replication.leases import LeaseTable, Table
from tests.simulator.leasing import play
from tests.support.marks import some

SEEDS = 10
ABLATION_SEEDS = 24


def test_every_batch_is_trained_whoever_dies_and_the_coverage_is_what_happened() -> None:
    played = [play(seed) for seed in range(1, SEEDS + 1)]
    assert [result.violation for _, result in played if result.violation] == []
    assert sum(len(leased.gone) for leased, _ in played) > 4
    assert sum(leased.marked for leased, _ in played) > 4 * SEEDS
    assert sum(leased.again for leased, _ in played) > 0, "a worker had trained what it could not say"


def _says_nothing_of_what_was_pushed(self: LeaseTable, worker: int, pushed: int, each: int = 1) -> None:
    _LOST(self, worker, 0, each)


def _keeps_what_the_dead_had(self: LeaseTable, worker: int) -> None:
    pass


def _stays_as_it_was(self: LeaseTable, table: Table) -> None:
    pass


def _says_only_what_the_last_wish_was_given(self: LeaseTable, worker: int, heard: int) -> bool:
    return self._table.workers[worker].given


def _nobody_rests(self: State, worker: Worker | None, sequence: int, decision: Decision, now: float) -> list[Worker]:
    return [] if isinstance(decision, Rest) else _APPLY(self, worker, sequence, decision, now)


def _the_dead_push_on(self: State, worker: Worker) -> None:
    _LEAVE(self, worker)
    self.gone.discard(worker)


def _nobody_leaves(self: State, worker: Worker | None, sequence: int, decision: Decision, now: float) -> list[Worker]:
    return [] if isinstance(decision, Leave) else _APPLY(self, worker, sequence, decision, now)


_LOST, _APPLY, _LEAVE = LeaseTable.lost, State.apply, State._leave

RULES: dict[str, tuple[Any, str, Any]] = {
    "what the lost had pushed counts": (LeaseTable, "lost", _says_nothing_of_what_was_pushed),
    "what the lost had is free": (LeaseTable, "_free", _keeps_what_the_dead_had),
    "leases travel with the state": (LeaseTable, "load", _stays_as_it_was),
    "a worker hears of all that it was given": (LeaseTable, "has_news", _says_only_what_the_last_wish_was_given),
    "who has nothing to train holds nobody back": (State, "apply", _nobody_rests),
    "who is lost pushes nothing": (State, "_leave", _the_dead_push_on),
    "who is lost is waited for no more": (State, "apply", _nobody_leaves),
}
"""Rule → what is put in its place."""


@pytest.mark.parametrize("without", some(RULES))
def test_every_rule_is_needed(without: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*RULES[without])
    for seed in range(1, ABLATION_SEEDS + 1):
        if play(seed)[1].violation:
            return
    pytest.fail(f"nothing happened in {ABLATION_SEEDS} seeds")
