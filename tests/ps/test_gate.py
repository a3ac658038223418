"""The gates: what an honest peer sends comes in, once and to its place, and nothing else does."""

from __future__ import annotations

import random

import msgspec
import pytest

from p2pnn.job.plan import Replica
from p2pnn.ps.consistency import Settings
from p2pnn.ps.gate import PushGate, ValuesGate
from p2pnn.ps.layout import LANDINGS, WINDOW, ServerLayout, WorkerLayout
from p2pnn.ps.sharding import cut, cut_segments
from p2pnn.ps.space import Space
from tests.ps.models import mlp
from tests.ps.network import plan_of

SHARDING = cut(Space.of(mlp(300, 200, inputs=100)), 2)
PARTS = len(SHARDING.shards[0].parts)
SIZE = 4 * SHARDING.shards[0].parts[0].size
PLAN = plan_of(3, 2)  # nodes 0, 1, 2 are workers, 3 and 4 have a shard each
assert PARTS > 1


def push_gate() -> tuple[PushGate, ServerLayout]:
    layout = ServerLayout.of(SHARDING, [0], Settings(), 3)
    return PushGate(PLAN, layout), layout


@pytest.mark.parametrize(
    ("worker", "node", "shard", "sequence", "part", "nbytes", "words"),
    [
        (1, 1, 0, 1, 0, SIZE, ""),
        (1, 1, 0, WINDOW, 0, SIZE, ""),
        (1, 1, 1, 1, 0, SIZE, "part 0 of push 1 of worker 1 to shard 1 is not for this node"),
        (1, 1, 7, 1, 0, SIZE, "is not for this node"),
        (1, 2, 0, 1, 0, SIZE, "came from node 2 of the plan"),
        (3, 3, 0, 1, 0, SIZE, "came from node 3"),
        (-1, 2, 0, 1, 0, SIZE, "came from node 2"),
        (1, 1, 0, 0, 0, SIZE, "outside the window 1 … 2"),
        (1, 1, 0, -1, 0, SIZE, "outside the window 1 … 2"),
        (1, 1, 0, 3, 0, SIZE, "outside the window 1 … 2"),
        (1, 1, 0, 1, PARTS, SIZE, f"is none of the {PARTS} parts"),
        (1, 1, 0, 1, -1, SIZE, "is none of the"),
        (1, 1, 0, 1, 0, SIZE - 4, f"has {SIZE - 4:,} bytes instead of {SIZE:,}"),
    ],
)
def test_who_may_push_what(
    worker: int, node: int, shard: int, sequence: int, part: int, nbytes: int, words: str
) -> None:
    gate, _ = push_gate()
    said = gate.refusal(worker, node, shard, sequence, part, nbytes)
    assert words in said
    assert bool(said) == bool(words)
    assert gate.is_misfit(worker, node, shard, part, nbytes) == ("instead of" in words)


def test_a_part_comes_in_once_and_again_only_where_it_broke() -> None:
    gate, layout = push_gate()
    assert not gate.is_known(0, 1, 1, 0)
    assert gate.take(0, 1, 1, 0) == layout.slot(0, 1, 1, 0)
    assert "coming in already" in gate.refusal(1, 1, 0, 1, 0, SIZE)
    gate.broken(0, 1, 1, 0)
    assert gate.refusal(1, 1, 0, 1, 0, SIZE) == ""
    assert not gate.is_known(0, 1, 1, 0)
    gate.take(0, 1, 1, 0)
    gate.received(0, 1, 1, 0)
    assert gate.refusal(1, 1, 0, 1, 0, SIZE) == ""
    assert gate.is_known(0, 1, 1, 0)
    assert not gate.is_known(0, 1, 1, 1)
    assert not gate.is_known(0, 2, 1, 0)
    assert not gate.is_known(0, 1, 2, 0)


def test_the_window_moves_with_what_is_decided() -> None:
    gate, _ = push_gate()
    gate.take(0, 1, 1, 0)
    gate.received(0, 1, 1, 0)
    gate.acknowledged(0, 1, 1)
    assert gate.refusal(1, 1, 0, 3, 0, SIZE) == ""
    assert not gate.is_known(0, 1, 3, 0)  # its slot was that of the first
    assert gate.refusal(1, 1, 0, 1, 0, SIZE) == ""
    assert gate.is_known(0, 1, 1, 0)  # its executor answers it again
    assert "outside the window 2 … 3" in gate.refusal(1, 1, 0, 4, 0, SIZE)
    assert "outside the window 1 … 2" in gate.refusal(2, 2, 0, 3, 0, SIZE)
    gate.acknowledged(0, 1, 0)  # an old answer
    assert gate.refusal(1, 1, 0, 3, 0, SIZE) == ""
    gate.acknowledged(0, 1, 1000)
    assert "outside the window 1001 … 1002" in gate.refusal(1, 1, 0, 1003, 0, SIZE)


def test_what_is_decided_while_a_double_of_it_comes_in_leaves_nothing_behind() -> None:
    gate, _ = push_gate()
    gate.take(0, 1, 1, 0)
    gate.acknowledged(0, 1, 1)
    assert "coming in already" in gate.refusal(1, 1, 0, 3, 0, SIZE)  # into the same place
    gate.received(0, 1, 1, 0)
    assert gate.refusal(1, 1, 0, 3, 0, SIZE) == ""
    assert not gate.is_known(0, 1, 3, 0)


@pytest.mark.parametrize("seed", range(20))
def test_no_place_is_written_by_two_or_before_it_is_free(seed: int) -> None:
    """Parts of any push, whole, broken and doubled, against a list of what lies where."""
    dice, (gate, layout) = random.Random(seed), push_gate()
    decided, coming, holds = 0, {}, {}
    taken = 0
    for _ in range(2000):
        act = dice.random()
        if act < 0.6:
            sequence, part = dice.randint(max(1, decided - 2), decided + 4), dice.randrange(PARTS)
            size = layout.slots[0].parts[part][1]
            if gate.refusal(1, 1, 0, sequence, part, size) or gate.is_known(0, 1, sequence, part):
                continue
            place = gate.take(0, 1, sequence, part)
            assert place not in coming
            assert holds.get(place, 0) <= decided  # what lay there is decided
            assert sequence > decided
            coming[place] = sequence, part
            taken += 1
        elif act < 0.9 and coming:
            place = dice.choice(list(coming))
            sequence, part = coming.pop(place)
            if dice.random() < 0.3:
                gate.broken(0, 1, sequence, part)
            else:
                gate.received(0, 1, sequence, part)
                holds[place] = sequence
        elif all(holds.get(layout.slot(0, 1, decided + 1, part), 0) == decided + 1 for part in range(PARTS)):
            decided += 1
            gate.acknowledged(0, 1, decided)
    assert decided > 20
    assert taken > PARTS * decided


def test_values_come_from_the_primary_into_a_lent_place_only() -> None:
    layout = WorkerLayout.of(SHARDING, Settings(pull="bf16"), 100)
    gate = ValuesGate(PLAN, layout)
    size = SHARDING.shards[1].byte_count
    assert gate.refusal(1, 4, size, whole=True) == ""
    assert gate.refusal(1, 4, size // 2, whole=False) == ""
    assert "instead of" in gate.refusal(1, 4, size, whole=False)
    assert "instead of" in gate.refusal(1, 4, size + 4, whole=True)
    assert "from node 3 of the plan instead of 4" in gate.refusal(1, 3, size, whole=True)
    for shard in (-1, 2):
        assert "which there is not" in gate.refusal(shard, 4, size, whole=True)
    assert gate.take(1, size) is None
    gate.lend(1)
    assert gate.take(0, size) is None
    assert gate.take(1, size // 2) == (layout.landing(1)[0], size // 2)
    assert gate.take(1, size) is None
    gate.broken(1)
    assert gate.take(1, size) == (layout.landing(1)[0], size)


def test_a_shards_landing_places_take_turns_also_where_values_break_off() -> None:
    layout = WorkerLayout.of(SHARDING, Settings(), 0)
    gate = ValuesGate(PLAN, layout)
    size = SHARDING.shards[0].byte_count
    places = [layout.landing(0, turn)[0] for turn in range(LANDINGS)]
    assert len(set(places)) == LANDINGS > 1
    for _ in range(LANDINGS + 1):  # once more than there are
        gate.lend(0)
    assert [gate.take(0, size) for _ in range(LANDINGS + 1)] == [*((place, size) for place in places), None]
    gate.lend(0)
    assert gate.take(0, size) == (places[0], size)
    gate.broken(0)
    assert gate.take(0, size) == (places[0], size)
    gate.lend(0)
    assert gate.take(0, size) == (places[1], size)


def test_where_values_are_not_compressed_none_are_differences() -> None:
    gate = ValuesGate(PLAN, WorkerLayout.of(SHARDING, Settings()))
    assert "instead of 0" in gate.refusal(0, 3, 4, whole=False)


def test_of_a_replica_only_the_node_with_the_layers_of_a_shard_speaks_to_it() -> None:
    space = Space.of(mlp(300, 200, inputs=100))
    names = [entry.name for entry in space.entries]
    sharding, _ = cut_segments(space, [names[:2], names[2:]], 2)
    plan = msgspec.structs.replace(plan_of(4, 2), replicas=(Replica((0, 1)), Replica((2, 3))))
    gate = PushGate(plan, ServerLayout.of(sharding, [0, 1], Settings(), 2))
    assert [[gate.speaker(shard, worker) for worker in (0, 1)] for shard in (0, 1)] == [[0, 2], [1, 3]]
    assert [gate.speaker(2, 0), gate.speaker(0, 2), gate.speaker(0, -1)] == [None, None, None]
    size = 4 * sharding.shards[1].parts[0].size
    assert gate.refusal(1, 3, 1, 1, 0, size) == ""
    assert "came from node 2 of the plan" in gate.refusal(1, 2, 1, 1, 0, size)


def test_a_backup_lets_in_what_its_primary_forwards_and_holds_twice_the_window() -> None:
    layout = ServerLayout.of(SHARDING, [0], Settings(), 3, copies=2)
    gate = PushGate(PLAN, layout)
    places = {gate.take(0, 1, sequence, 0) for sequence in range(1, 2 * WINDOW + 1)}
    assert len(places) == 2 * WINDOW
    for sequence in range(1, 2 * WINDOW + 1):
        gate.received(0, 1, sequence, 0)
    assert gate.refusal(1, None, 0, 2 * WINDOW, 0, SIZE) == ""
    assert "outside the window" in gate.refusal(1, None, 0, 2 * WINDOW + 1, 0, SIZE)
    assert "came from node" in gate.refusal(3, None, 0, 1, 0, SIZE)
    gate.acknowledged(0, 1, 1)
    assert gate.refusal(1, None, 0, 2 * WINDOW + 1, 0, SIZE) == ""
    assert gate.take(0, 1, 2 * WINDOW + 1, 0) == layout.slot(0, 1, 1, 0)


def test_values_come_from_another_primary_when_there_is_one() -> None:
    gate = ValuesGate(PLAN, WorkerLayout.of(SHARDING, Settings()))
    nbytes = SHARDING.shards[0].byte_count
    assert gate.refusal(0, 3, nbytes, True) == ""
    gate.assigned([4, 4])
    assert "instead of 4" in gate.refusal(0, 3, nbytes, True)
    assert gate.refusal(0, 4, nbytes, True) == ""


def test_what_a_worker_sent_yields_to_what_the_primary_forwards_and_never_the_other_way_round() -> None:
    gate, layout = push_gate()
    about = (0, 1, 1, 0)
    gate.take(*about)
    gate.received(*about)
    assert gate.refusal(1, None, 0, 1, 0, SIZE) == ""
    assert not gate.is_known(*about, forwarded=True), "its bytes come in"
    assert gate.take(*about) == layout.slot(*about)
    assert "coming in already" in gate.refusal(1, 1, 0, 1, 0, SIZE)
    gate.received(*about, forwarded=True)
    assert gate.is_known(*about)
    assert gate.is_known(*about, forwarded=True)
    gate.acknowledged(0, 1, 1)
    assert not gate.is_known(0, 1, 3, 0, forwarded=True), "its slot was that of the first"
