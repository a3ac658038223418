"""A shard's state by hand: what entries make of it, and that it follows from them alone."""

from __future__ import annotations

import random

import numpy as np
import pytest

from p2pnn.job.spec import Optimizer
from p2pnn.ps.compression import Bytes
from p2pnn.ps.consistency import Settings, consistency
from p2pnn.ps.decisions import Close, Decision, Draw, Grant, Leave, Rest, Return, Serve, Strike, Take
from p2pnn.ps.guard import Guard
from p2pnn.ps.layout import Slots, part_sizes
from p2pnn.ps.messages import Refusal, Worker
from p2pnn.ps.sharding import cut
from p2pnn.ps.space import Space
from p2pnn.ps.state import State
from p2pnn.replication.leases import LeaseTable, Wish
from tests.ps.models import mlp
from tests.ps.network import workers_named

(RANGE,) = cut(Space.of(mlp()), 1).shards
SIZE = RANGE.size
A, B, C = WORKERS = workers_named(3)


class Slotted:
    """Slots that each state has for itself, with the same in them."""

    def __init__(self, window: int = 2) -> None:
        self.nbytes = Slots.of(part_sizes(RANGE, "float32"), 1).nbytes
        self.places: dict[tuple[int, int], Bytes] = {}
        self.window = window

    def slot(self, worker: int, number: int) -> Bytes:
        return self.places.setdefault((worker, number), np.zeros(self.nbytes, np.uint8))

    def put(self, worker: Worker, sequence: int, value: float) -> None:
        self.slot(WORKERS.index(worker), sequence % self.window).view(np.float32)[:] = value


def state_of(how: str = "async", optimizer: str = "sgd", **more: object) -> tuple[State, Slotted]:
    slots = Slotted()
    made = State(
        RANGE,
        np.zeros(SIZE, np.float32),
        Optimizer(optimizer, 1.0, schedule="constant"),
        Settings(consistency(how), **more),  # type: ignore[arg-type]
        WORKERS,
        slot=slots.slot,
        guard=Guard(strikes=2),
    )
    return made, slots


def take(
    state: State, slots: Slotted, worker: Worker, sequence: int, based_on: int, value: float = -1.0
) -> list[Worker]:
    slots.put(worker, sequence, value)
    return state.apply(worker, sequence, Take(based_on, 0), 0.0)


def test_a_push_is_an_update_and_known_from_then_on() -> None:
    state, slots = state_of()
    assert state.taken(A) == 0
    assert take(state, slots, A, 1, 0) == [A]
    assert (state.taken(A), state.roster[A].sequence, state.versions.number) == (1, 1, 1)
    assert (state.arrays["parameters"] == 1.0).all()
    assert (state.staleness.total, state.written) == (1, 0)


def test_pushes_of_a_round_have_their_place_and_are_decided_together() -> None:
    state, slots = state_of("sync")
    for worker, value in ((C, -4.0), (A, -1.0), (B, -2.0)):
        assert take(state, slots, worker, 1, 0, value) == []
        assert (state.taken(worker), state.roster[worker].sequence) == (1, 0)
    assert state.apply(None, 0, Close(), 0.0) == [A, B, C]
    assert (state.versions.number, state.roster[C].sequence, state.round, state.written) == (1, 1, {}, 1)
    assert (state.arrays["parameters"] == 7.0).all()
    assert take(state, slots, A, 2, 0) == [A]
    assert state.roster[A].refusal is Refusal.LATE
    assert state.age(A, 2, 0) is Refusal.AHEAD


def test_what_the_primary_refused_is_refused_and_waits_for_the_rounds_end() -> None:
    state, slots = state_of("sync")
    assert state.apply(A, 1, Take(0, 0, "NOT_FINITE"), 0.0) == [A]
    assert (state.roster[A].refusal, state.out, state.taken(A)) == (Refusal.NOT_FINITE, {A}, 1)
    take(state, slots, B, 1, 0)
    state.apply(None, 0, Close(), 0.0)
    assert state.out == set()
    assert (state.arrays["parameters"] == 3.0).all()  # the third of three is the whole of one
    state.apply(A, 2, Take(1, 0, "NOT_FINITE"), 0.0)
    assert state.guard.set_aside == {A}
    assert state.age(A, 1, 0) is Refusal.SET_ASIDE


def test_an_entry_waits_while_its_version_has_no_buffer() -> None:
    state, slots = state_of("sync")
    take(state, slots, A, 1, 0)
    state.apply(None, 0, Close(), 0.0)
    before = state.versions.pin()
    take(state, slots, A, 2, 1)
    state.apply(None, 0, Close(), 0.0)
    state.versions.pin()
    assert not state.can_apply(Close())
    assert state.can_apply(Take(0, 0))
    assert state.can_apply(Draw(1, 1, True))
    state.versions.unpin(before)
    assert state.can_apply(Close())


def test_marks_level_clocks_when_all_have_drawn_them() -> None:
    state, slots = state_of("ssp:3")
    take(state, slots, A, 1, 0)
    for number, passed in ((1, False), (2, True), (3, True), (9, True)):
        state.apply(None, 0, Draw(number, 5, passed), 0.0)
    assert [state.roster[w].clock for w in WORKERS] == [1, 1, 1]
    assert (state.marks.marked, state.marks.open) == (5, 0)
    state.apply(None, 0, Serve(5), 0.0)
    state.apply(None, 0, Draw(1, 5, True), 0.0)
    assert (state.marks.open, state.written) == (5, 6)


def test_strikes_set_a_worker_aside() -> None:
    state, slots = state_of("sync")
    take(state, slots, B, 1, 0)
    for _ in range(2):
        state.apply(None, 0, Strike(state.roster.number(B), "SHAPE"), 0.0)
    assert (state.guard.set_aside, state.round) == ({B}, {})


@pytest.mark.parametrize("how", ["async", "ssp:1", "sync"])
@pytest.mark.parametrize("seed", range(6))
def test_equal_entries_make_equal_states(how: str, seed: int) -> None:
    dice = random.Random(seed)
    (one, slots), (other, others) = state_of(how, "adam"), state_of(how, "adam")
    for _ in range(120):
        worker = dice.choice(WORKERS)
        decision: Decision = dice.choice(
            (
                Take(max(0, one.versions.number - dice.choice((0, 0, 0, 1, -1))), one.clock, ""),
                Take(one.versions.number, one.clock, dice.choice(("", "", "NOT_FINITE"))),
                Draw(dice.randint(1, 3), dice.randint(1, 9), dice.random() < 0.5),
                Serve(dice.randint(1, 9)),
                *([Close()] if how == "sync" else []),
            )
        )
        sequence = one.taken(worker) + 1
        if isinstance(decision, Take):
            if worker in one.round:
                continue
            value = dice.random()
            for place in (slots, others):
                place.put(worker, sequence, value)
        decided = one.apply(worker, sequence, decision, 1.0)
        assert other.apply(worker, sequence, decision, 2.0) == decided
    assert one.versions.number == other.versions.number > 5
    for name, array in one.arrays.items():
        assert array.tobytes() == other.arrays[name].tobytes()
    assert (one.round, one.out, one.written) == (other.round, other.out, other.written)
    assert one.marks.positions() == other.marks.positions()


def test_who_is_gone_is_waited_for_no_more_and_what_it_had_is_free() -> None:
    state, slots = state_of("ssp:0")
    state.leases = LeaseTable(10, 1)
    state.apply(None, 0, Grant(1, Wish(1, (), 0, 3, 10)), 0.0)
    assert state.leases.held(1) == ((0, 2),)
    for worker in (A, B, C):
        take(state, slots, worker, 1, state.versions.number)
    take(state, slots, B, 2, 3)
    state.apply(None, 0, Draw(2, 4, True), 0.0)
    state.apply(None, 0, Draw(3, 4, True), 0.0)
    assert (state.clock, state.marks.marked) == (1, 0)
    state.apply(None, 0, Leave(1), 0.0)
    state.apply(None, 0, Leave(1), 0.0)
    assert (state.gone, state.training, state.marks.marked) == ({A}, [B, C], 4)
    assert state.leases.held(1) == ()
    assert state.leases.coverage(0).once == 1, "one of its two was pushed"
    version = state.versions.number
    assert take(state, slots, A, 2, version) == [A]
    assert (state.versions.number, state.roster[A].refusal) == (version, Refusal.UNKNOWN)
    state.apply(None, 0, Grant(1, Wish(2, (), 0, 3, 10)), 0.0)
    assert state.leases.held(1) == ()
    assert state.roster.number(C) == 3, "the others keep their numbers, and their slots"


def test_who_rests_holds_nobody_back_until_it_returns() -> None:
    state, slots = state_of("ssp:0")

    def pushes(worker: Worker, sequence: int, clock: int) -> Refusal | None:
        slots.put(worker, sequence, -1.0)
        state.apply(worker, sequence, Take(state.versions.number, clock), 0.0)
        return state.roster[worker].refusal

    assert [pushes(worker, 1, 0) for worker in (A, B, C)] == [None] * 3
    state.apply(None, 0, Rest(3, 1), 0.0)
    assert [pushes(worker, sequence, sequence - 1) for sequence in (2, 3) for worker in (A, B)] == [None] * 4
    assert state.clock == 3, "nobody waits for it"
    state.apply(None, 0, Return(3, 2), 0.0)
    assert (state.roster[C].clock, state.clock) == (3, 3), "it begins anew, and is waited for from then on"
    state.apply(None, 0, Rest(3, 1), 0.0)
    assert not state.roster[C].is_resting, "a late word of before"
    assert pushes(C, 2, 3) is None
    state.apply(None, 0, Return(3, 2), 0.0)
    assert (state.roster[C].clock, state.clock) == (4, 3)
    assert pushes(C, 3, 3) is Refusal.TOO_STALE


def test_who_returns_first_begins_where_the_foremost_was() -> None:
    state, slots = state_of("ssp:1")
    for worker, sequence, clock in ((A, 1, 0), (B, 1, 0), (C, 1, 0), (A, 2, 1)):
        slots.put(worker, sequence, -1.0)
        state.apply(worker, sequence, Take(state.versions.number, clock), 0.0)
    for number, pushes in ((1, 2), (2, 1), (3, 1)):
        state.apply(None, 0, Rest(number, pushes), 0.0)
    before = state.clock
    state.apply(None, 0, Return(3, 2), 0.0)
    state.apply(None, 0, Return(2, 2), 0.0)
    assert (before, state.clock, state.roster[B].clock) == (2, 2, 2), "the least clock never falls"


def test_who_quits_leaves_its_batches_to_others() -> None:
    state, _ = state_of()
    state.leases = LeaseTable(10, 1)
    state.apply(None, 0, Grant(1, Wish(1, (), 0, 3, 10)), 0.0)
    state.apply(None, 0, Grant(1, Wish(2, ((0, 1),), 1, 0, 10, quits=True)), 0.0)
    assert state.leases.held(1) == ()
    assert state.leases.has_quit(1)
    assert state.leases.coverage(0).once == 1
    assert state.gone == set()
