"""Replicated shards under faults: no seed breaks a promise, and without any one of the rules a few seeds do."""

from __future__ import annotations

from typing import Any

import pytest

from p2pnn.job.assignment import decode as decode_assignment
from p2pnn.wire.codec import decode, encode
from tests.simulator.__main__ import main, play_shards, run_shard_seeds
from tests.simulator.shard_ablations import SHARD_RULES
from tests.simulator.shard_charter import VOTERS, CharteredShards, VoterHost
from tests.simulator.shard_seeds import STRIKES
from tests.simulator.shards import Parcel, Shards

SEEDS = 24
ABLATION_SEEDS = 200

SCRIPTED = "promotion when serving"
"""That it is needed shows no seed among thousands, where nobody comes into a start; `tests/replication/test_leading.py` does."""


def test_no_promise_is_broken() -> None:
    results = run_shard_seeds(range(1, SEEDS + 1))
    assert [result.violation for result in results if result.violation] == []
    fired = {name for result in results for name in result.fired}
    assert set(STRIKES) <= fired, "every fault fired somewhere"
    assert sum(result.acknowledged for result in results) > 50 * SEEDS
    assert sum(result.configurations for result in results) > 5 * SEEDS
    assert sum(result.transfers for result in results) > SEEDS / 2
    assert sum(result.promotions for result in results) > SEEDS / 3
    assert sum(result.is_lost for result in results) < SEEDS / 3


@pytest.mark.parametrize("without", [rule for rule in SHARD_RULES if rule != SCRIPTED])
def test_every_rule_is_needed(without: str) -> None:
    for result in play_shards(range(1, 1 + ABLATION_SEEDS), without):
        report = result.violation
        is_standstill = "within" in report.splitlines()[0] or "under way" in report.splitlines()[0] if report else True
        if not is_standstill:
            assert report.endswith(f'./run sim --shards --seed {result.seed} --without "{without}"')
            return
    pytest.fail(f"without {without} nothing happened in {ABLATION_SEEDS} seeds")


def test_every_message_passes_the_wire() -> None:
    def through(message: Any) -> Any:
        return Parcel(decode(encode(message.message)), message.body) if isinstance(message, Parcel) else message

    result = Shards(5, through=through).run(("crash", "loss", "slow host"), 4.0)
    assert result.violation == ""
    assert result.acknowledged > 50


def test_the_charter_itself_decides() -> None:
    shards = CharteredShards(4, manager=VoterHost)
    shards.whims = 0.05
    shards.lost_after_s, shards.sees_deaths = 2.0, True
    result = shards.run(("crash", "partition", "freeze"), 5.0)
    assert result.violation == ""
    assert not result.is_lost
    assert result.configurations > 2
    assert result.acknowledged > 50
    voters = [shards.world.hosts[node].core for node in VOTERS]
    charters = [voter.consensus.charter for voter in voters if isinstance(voter, VoterHost)]
    assert shards.assignment in [decode_assignment(charter.work) for charter in charters if charter is not None]


def test_a_quiet_shard_keeps_its_configuration() -> None:
    """No fault, no change: what does not disturb training must not happen."""
    shards = Shards(6)
    shards.world.run(20.0)
    assert shards.ledger.configurations == 1
    assert shards.ledger.acknowledged > 500


@pytest.mark.parametrize("seed", range(1, 9))
def test_a_killed_primary_costs_less_than_two_seconds(seed: int) -> None:
    shards = Shards(seed)
    ledger, world = shards.ledger, shards.world
    world.run(2.0)
    world.crash(shards.replicas[0])
    before = ledger.acknowledged
    assert world.run_until(lambda: ledger.acknowledged > before + 6, 2.0), "more than were under way"
    assert world.run_until(shards.is_whole, 5.0)
    assert shards.plan.nodes[shards.assignment.gone[0]].node == shards.replicas[0]


def test_the_command_tells_what_it_did(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--shards", "--seeds", "2", "--seed", "1", "--processes", "1"]) == 0
    told = capsys.readouterr().out
    for word in ("seeds", "fired", "lost", "updates", "resumed", "violations  0"):
        assert word in told
    assert main(["--shards", "--seed", "2", "--without", "all in sync hold it"]) == 0
    assert './run sim --shards --seed 2 --without "all in sync hold it"' in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--shards", "--without", "rule 4"])
    assert "is no rule" in capsys.readouterr().err


@pytest.mark.long
def test_many_seeds() -> None:
    assert main(["--shards", "--seeds", "20000"]) == 0
