"""What holds answers back, and what lets them go."""

from __future__ import annotations

import itertools

import numpy as np

from p2pnn.ps.answers import Answers, Due
from p2pnn.ps.consistency import Settings, consistency
from p2pnn.ps.decisions import Draw, Leave, Rest, Return, Take
from p2pnn.ps.messages import Worker
from p2pnn.ps.withheld import Withheld
from tests.ps.test_state import A, B, C, state_of


class Holder:
    def __init__(self, how: str = "async", **more: object) -> None:
        self.state, self.slots = state_of(how, **more)
        settings = Settings(consistency(how), **more)  # type: ignore[arg-type]
        self.answers = Answers(
            self.state.versions, "float32", lambda: self.state.clock, lambda n: np.zeros(n, np.uint8)
        )
        self.withheld = Withheld(self.state, settings, self.answers)

    def push(self, worker: Worker, sequence: int, clock: int = 0) -> None:
        self.slots.put(worker, sequence, 0.0)
        self.state.apply(worker, sequence, Take(self.state.versions.number, clock), 0.0)
        self.withheld.pushed(Due(worker, sequence, fetch=False))

    def released(self) -> list[Worker]:
        self.withheld.release()
        found = list(itertools.takewhile(lambda one: one is not None, (self.answers.next(0) for _ in range(9))))
        return [answer.worker for answer in found if answer is not None]


def test_a_bound_holds_back_who_is_ahead() -> None:
    holder = Holder("ssp:0")
    holder.push(A, 1)
    assert holder.released() == []
    assert A in holder.withheld
    holder.push(B, 1)
    holder.push(C, 1)
    assert sorted(holder.released()) == [A, B, C]
    assert A not in holder.withheld


def test_values_alone_are_held_back_from_who_is_ahead_as_well() -> None:
    """It has its answer, without values, and would compute from values that are too old."""
    holder = Holder("ssp:0")
    holder.push(A, 1)
    holder.withheld.pulled(Due(A, request=1, fetch=False), 0)
    assert holder.released() == []
    holder.push(B, 1)
    holder.push(C, 1)
    assert sorted(holder.released()) == [A, A, B, C]


def test_who_returns_from_a_rest_waits_until_the_shard_knows() -> None:
    holder = Holder("ssp:0")
    holder.state.apply(None, 0, Rest(1, 0), 0.0)
    holder.withheld.pulled(Due(A, request=1, fetch=False, returns=1), 0)
    assert holder.released() == []
    holder.state.apply(None, 0, Return(1, 1), 0.0)
    assert holder.released() == [A]


def test_a_mark_holds_back_what_was_asked_for_at_it() -> None:
    holder = Holder()
    holder.withheld.pulled(Due(A, request=1, fetch=False), 4)
    for number in (1, 2):
        holder.state.apply(None, 0, Draw(number, 4, True), 0.0)
    assert holder.released() == []
    holder.state.apply(None, 0, Leave(3), 0.0)
    assert holder.released() == [A]


def test_a_warm_start_holds_back_all_but_the_first_that_is_left() -> None:
    holder = Holder(warm_start=2)
    for worker in (A, B, C):
        holder.withheld.pulled(Due(worker, request=1, fetch=False), 0)
    assert holder.released() == [A]
    holder.state.apply(None, 0, Leave(1), 0.0)
    assert holder.released() == [B]
    holder.push(B, 1)
    holder.push(B, 2)
    assert holder.released() == [B, C]


def test_who_asks_again_who_is_gone_and_another_process() -> None:
    holder = Holder(warm_start=9)
    holder.withheld.pulled(Due(B, request=1, fetch=False), 0)
    holder.withheld.pulled(Due(B, request=2, fetch=False), 7)
    assert B not in holder.withheld
    holder.withheld.pulled(Due(C, request=1, fetch=False), 0)
    holder.withheld.drop(C)
    holder.withheld.let_go(C)
    assert holder.released() == []
    holder.withheld.pulled(Due(C, request=2, fetch=False), 0)
    holder.withheld.clear()
    assert C not in holder.withheld
