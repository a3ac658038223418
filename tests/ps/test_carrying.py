"""A whole state on its way to a learner: what it is made of, bytes of any cut, and what is none."""

from __future__ import annotations

import random

import numpy as np
import pytest

from p2pnn.errors import RemoteProtocolError
from p2pnn.ps.carrying import pack, unpack
from p2pnn.ps.decisions import Close, Draw, Grant, Leave, Rest, Serve, Take
from p2pnn.ps.messages import Refusal, Worker
from p2pnn.ps.state import State
from p2pnn.replication.leases import LeaseTable, Wish
from tests.ps.test_state import A, B, C, Slotted, state_of, take


def busy() -> tuple[State, Slotted]:
    """Two rounds, the first with a refused push; then an open one, with marks that not all have drawn."""
    state, slots = state_of("sync", "adam")
    state.apply(B, 1, Take(0, 0, "NOT_FINITE"), 0.0)
    for mark, passed in ((1, True), (2, False)):
        for number in (1, 2, 3):
            state.apply(None, 0, Draw(number, mark, passed), 0.0)
        state.apply(None, 0, Serve(mark), 0.0)
    for sequence, workers in ((1, (A, C)), (2, (C, B, A))):
        for worker in workers:
            take(state, slots, worker, sequence, sequence - 1, -1.5)
        state.apply(None, 0, Close(), 0.0)
    state.apply(None, 0, Draw(1, 3, True), 0.0)
    state.apply(None, 0, Draw(2, 3, False), 0.0)
    state.apply(None, 0, Serve(3), 0.0)
    take(state, slots, C, 3, 2, -3.0)
    state.apply(A, 3, Take(2, 0, "RUNAWAY"), 0.0)
    return state, slots


@pytest.mark.parametrize("piece", [1, 7, 64, 1 << 20])
def test_a_learner_becomes_what_was_packed_and_goes_on_alike(piece: int) -> None:
    state, slots = busy()
    data = b"".join(bytes(one) for one in pack(state))
    learner, places = state_of("sync", "adam")
    unpack(learner, [data[at : at + piece] for at in range(0, len(data), piece)])
    assert (learner.round, learner.out, learner.written) == ({C: 3}, {A}, state.written)
    assert (places.slot(2, 1).view(np.float32) == -3.0).all()
    assert learner.roster[B].refusal is None
    assert learner.roster[A].refusal is Refusal.RUNAWAY
    assert [learner.taken(w) for w in (A, B, C)] == [3, 2, 3]
    assert learner.marks.positions() == state.marks.positions()
    assert len({state.marks.marked, state.marks.open, state.marks.server}) == 3, "so that none is taken for another"
    assert b"".join(map(bytes, pack(learner))) == data
    assert (learner.guard.refused, learner.guard.in_a_row) == (state.guard.refused, state.guard.in_a_row)
    assert [learner.roster.number(w) for w in (A, B, C)] == [1, 2, 3]
    for one, its in ((state, slots), (learner, places)):
        take(one, its, B, 3, 2, -2.0)
        one.apply(None, 0, Close(), 0.0)
    assert learner.versions.number == state.versions.number == 3
    for name, array in state.arrays.items():
        assert array.tobytes() == learner.arrays[name].tobytes()
    assert b"".join(map(bytes, pack(learner))) == b"".join(map(bytes, pack(state)))


def test_what_was_packed_stays_as_it_was() -> None:
    state, slots = busy()
    pieces = pack(state)
    before = [bytes(one) for one in pieces]
    take(state, slots, B, 3, 2)
    slots.put(C, 3, 9.0)
    state.apply(None, 0, Close(), 0.0)
    assert [bytes(one) for one in pieces] == before


def test_what_is_no_state_of_this_shard_is_refused_and_changes_nothing() -> None:
    data = b"".join(bytes(one) for one in pack(busy()[0]))
    dice = random.Random(1)
    wrong = [b"", b"\x00", data[:-1], data + b"\x00", b"\xff" * 4 + data[4:], data[:4] + b"\xc1" + data[5:]]
    wrong += [data[: dice.randrange(len(data))] for _ in range(20)]
    for bytes_ in wrong:
        learner, _ = state_of("sync", "adam")
        with pytest.raises(RemoteProtocolError, match="no state of the shard"):
            unpack(learner, [bytes_])
        assert learner.versions.number == 0
        assert not learner.arrays["parameters"].any()


def test_a_state_of_other_workers_is_refused_and_changes_nothing() -> None:
    state, _ = state_of("ssp:1")
    state.leases = LeaseTable(10, 2)
    state.apply(None, 0, Grant(1, Wish(1, (), 0, 2, 10)), 0.0)
    state.roster.set((A, B, Worker(C.node, C.incarnation + 1)))
    learner, _ = state_of("ssp:1")
    learner.leases = LeaseTable(10, 2)
    before = b"".join(map(bytes, pack(learner)))
    with pytest.raises(RemoteProtocolError, match="of other workers"):
        unpack(learner, pack(state))
    assert b"".join(map(bytes, pack(learner))) == before


def test_leases_and_who_is_gone_or_rests_travel_with_it() -> None:
    state, slots = state_of("ssp:1")
    learner, _ = state_of("ssp:1")
    state.leases, learner.leases = LeaseTable(10, 2), LeaseTable(10, 2)
    take(state, slots, A, 1, 0)
    for decision in (Grant(1, Wish(1, (), 0, 2, 10)), Grant(2, Wish(1, (), 0, 2, 10)), Leave(1), Rest(2, 0)):
        state.apply(None, 0, decision, 0.0)
    data = b"".join(bytes(one) for one in pack(state))
    unpack(learner, [data])
    assert learner.gone == {A}
    assert learner.roster[B].is_resting
    assert learner.leases.held(2) == state.leases.held(2) != ()
    assert learner.leases.coverage(0) == state.leases.coverage(0)
    assert learner.marks.positions() == state.marks.positions()
    assert [learner.clock, learner.training] == [state.clock, [B, C]]
    for other in (None, LeaseTable(10, 3)):
        wrong, _ = state_of("ssp:1")
        wrong.leases = other
        with pytest.raises(RemoteProtocolError):
            unpack(wrong, [data])
        assert wrong.versions.number == 0
