"""From a loss to what the job goes on from; how a supervisor does it is in test_supervisor."""

from __future__ import annotations

from itertools import count
from typing import Any

import msgspec

from p2pnn.job import actions
from p2pnn.job.checkpoint import Manifest, Part
from p2pnn.job.ledger import Ledger
from p2pnn.job.records import KEPT_CHECKPOINTS
from p2pnn.job.recovery import ANSWER_S, LINK_S, MAKE_S, Attempts, Lost, Recovery, taken_back, told
from p2pnn.job.spec import DataParallel
from p2pnn.types import BlobId, JobId
from tests.job.test_supervisor import NAMES, NODES, make_plan, make_record, make_spec

A, B, C = NODES
LIVING = {A: "a", C: "c"}


class Bench:
    """b of a, b and c is lost."""

    def __init__(self, away: dict[Any, str] | None = None, limit: int | None = None, **changes: Any) -> None:
        history = tuple(
            {"epoch": float(n), "step": 10.0 * n, "validation_accuracy": value}
            for n, value in ((1, 0.5), (2, 0.9), (3, 0.7))
        )
        fields = {"state": "recovering", "plan": make_plan(NODES), "history": history, **changes}
        self.spec = make_spec(monitor="accuracy", epochs=9)
        self.ledger = Ledger(make_record(self.spec, **fields), dict(LIVING))
        lost = Lost("b is lost", 5, 3, "", 30, 1.0, limit)
        self.recovery = Recovery(self.ledger, self.spec, lost, away or {}, 2.0, count(7))
        self.requests: dict[Any, int] = {}

    def take(self) -> list[Any]:
        found = []
        while (action := self.ledger.next_action()) is not None:
            found.append(action)
            if isinstance(action, actions.AskCuts):
                self.requests[action.node] = action.request
        return found

    def answer(self, held: dict[Any, list[tuple[int, int]]], reached: int = 33, now: float = 2.1) -> list[Any]:
        for node in held:
            self.recovery.cuts(node, self.requests[node], reached, held[node], now)
        return self.take()

    def make(self, asked: list[Any], now: float = 2.2) -> None:
        for action in asked:
            assert isinstance(action, actions.MakePart)
            part = Part(BlobId(f"{action.index:064d}"), 4, bytes(32))
            self.recovery.made(action.node, action.request, part, now)


WHOLE = {A: [(0, 32), (0, 30), (2, 30), (2, 32)], C: [(2, 30), (1, 30), (1, 32)]}


def test_the_newest_whole_cut_becomes_a_checkpoint() -> None:
    bench = Bench()
    asked = bench.take()
    assert [(a.node, a.generation) for a in asked] == [(A, 5), (C, 5)]
    wanted = bench.answer(WHOLE)
    assert {(a.index, a.step) for a in wanted} == {(0, 32), (1, 32), (2, 32)}
    assert not bench.recovery.finished
    bench.make(wanted)
    assert bench.recovery.finished
    found = bench.recovery.manifest
    assert found is not None
    assert (found.step, found.epoch, found.best_epoch, found.best_value) == (32, 3, 2, 0.9)
    assert [part.blob for part in found.parts] == [BlobId(f"{n:064d}") for n in range(3)]
    assert bench.recovery.lost.reached == 33


def test_an_answer_to_another_question_is_none_to_this_one() -> None:
    bench = Bench()
    bench.take()
    bench.recovery.cuts(A, bench.requests[A] - 1, 99, [(index, 99) for index in range(3)], 2.1)
    assert {a.step for a in bench.answer(WHOLE)} == {32}
    assert bench.recovery.lost.reached == 33


def test_no_more_checkpoints_are_kept_than_a_run_keeps() -> None:
    earlier = tuple(Manifest(JobId("toy-1"), BlobId("5" * 64), 10 * n, n, ()) for n in (1, 2, 3))
    bench = Bench(checkpoints=earlier)
    cut = Manifest(JobId("toy-1"), BlobId("5" * 64), 35, 3, ())
    taken_back(bench.ledger, cut)
    assert [found.step for found in bench.ledger.record.checkpoints] == [20, 30, 35]
    assert len(bench.ledger.record.checkpoints) == KEPT_CHECKPOINTS


def test_a_cut_at_an_epochs_end_is_before_its_evaluation_and_the_best_value_is_that_of_then() -> None:
    bench = Bench(limit=30)
    bench.take()
    bench.make(bench.answer(WHOLE))
    found = bench.recovery.manifest
    assert found is not None
    assert (found.step, found.epoch, found.best_epoch, found.best_value) == (30, 2, 2, 0.9)
    taken_back(bench.ledger, found)
    assert [entry["epoch"] for entry in bench.ledger.record.history] == [1, 2]


def test_a_checkpoint_that_is_newer_is_gone_on_from() -> None:
    manifest = Manifest(JobId("toy-1"), BlobId("5" * 64), 32, 3, ())
    bench = Bench(checkpoints=(manifest,))
    bench.take()
    assert bench.answer(WHOLE) == []
    assert bench.recovery.finished
    assert bench.recovery.manifest is None


def test_who_does_not_answer_or_cannot_write_is_done_without() -> None:
    bench = Bench()
    bench.take()
    bench.recovery.cuts(A, bench.requests[A], 33, [(0, 32), (1, 32), (2, 32)], 2.1)
    assert bench.take() == []
    assert bench.recovery.get_timer() == 2.0 + ANSWER_S
    bench.recovery.handle_timer(2.0 + ANSWER_S)
    wanted = bench.take()
    assert {a.node for a in wanted} == {A}
    bench.recovery.made(C, wanted[0].request, None, 4.1)  # nobody asked C
    assert bench.recovery.get_timer() == 4.0 + MAKE_S
    bench.recovery.made(A, wanted[0].request, None, 4.2)
    assert bench.recovery.finished
    assert bench.recovery.manifest is None


def test_a_holder_that_is_lost_while_it_writes_is_chosen_around() -> None:
    bench = Bench()
    bench.take()
    wanted = bench.answer({A: [(0, 32), (1, 32), (2, 32)], C: [(2, 30), (1, 30), (0, 30)]})
    assert {a.step for a in wanted} == {32}
    bench.recovery.member_lost(A, "its link broke", 2.3)
    assert {(a.node, a.step) for a in bench.take()} == {(C, 30)}


def test_a_node_that_may_come_back_is_waited_for_unless_nothing_of_it_is_needed() -> None:
    bench = Bench(away={B: "its link broke"})
    bench.take()
    bench.make(bench.answer(WHOLE))
    assert not bench.recovery.finished, "it may be there for the plan"
    bench.recovery.member_gone(B, 2.3)
    assert bench.recovery.finished
    bench = Bench(away={B: "its link broke"})
    bench.take()
    assert bench.answer({A: [(0, 32)], C: [(2, 32)]}) == []
    bench.recovery.member_joined(B, 2.4)
    (again,) = bench.take()
    assert again.node == B
    assert {a.index for a in bench.answer({B: [(1, 32)]})} == {0, 1, 2}
    bench = Bench(away={B: "its link broke"})
    bench.take()
    bench.answer({A: [], C: []})
    assert bench.recovery.get_timer() == 2.0 + LINK_S
    bench.recovery.handle_timer(2.0 + LINK_S)
    assert bench.recovery.finished


def test_what_is_taken_back_is_all_that_came_after() -> None:
    early, late = (Manifest(JobId("toy-1"), BlobId("5" * 64), 10 * n, n, ()) for n in (1, 2))
    bench = Bench(checkpoints=(early, late), best=late, stopped_early=True)
    taken_back(bench.ledger, early)
    record = bench.ledger.record
    assert (record.checkpoints, record.best, record.step, record.epoch) == ((early,), None, 10, 1)
    assert (len(record.history), record.results, record.stopped_early) == (1, (), False)
    taken_back(bench.ledger, None)
    assert (bench.ledger.record.checkpoints, bench.ledger.record.history) == ((), ())


def test_what_is_told_says_what_it_cost() -> None:
    lost = Lost("node b is lost (reset)", 5, 3, "", 483, 1.0)
    spec = make_spec()
    found = told(lost, spec, ["a", "c"], 480, 1.94)
    assert found["text"] == "node b is lost (reset): went on from step 480 over a, c after 0.9 s; 3 steps redone"
    assert (found["redone"], found["seconds"], found["step"]) == (3, 0.94, 480)
    lost.least = True  # of a data-parallel run, whose workers are not asked
    assert told(lost, spec, ["a"], 480, 1.94)["text"].endswith("; at least 3 steps redone")
    assert told(lost, spec, ["a"], 483, 1.94)["text"].endswith("; what was trained since then is redone")
    text = told(lost, msgspec.structs.replace(spec, kind="evaluate"), ["a"], 0, 2.0)["text"]
    assert text == "node b is lost (reset): went on over a after 1.0 s"
    assert set(NAMES) == set(NODES)


def test_of_two_that_do_not_reach_each_other_twice_one_is_shunned_and_never_the_coordinator() -> None:
    attempts = Attempts(0)
    attempts.apart(B, C, A)
    assert attempts.shunned == frozenset(), "the link may be back"
    attempts.apart(C, B, A)
    assert attempts.shunned == {C}
    attempts = Attempts(0)
    for _ in range(2):
        attempts.apart(B, A, A)
    assert attempts.shunned == {B}
    attempts = Attempts(0)
    attempts.apart(B, C, A)
    attempts.apart(A, C, A)
    assert attempts.shunned == frozenset(), "another pair"


def test_a_data_parallel_run_takes_no_cuts_and_asks_for_none() -> None:
    bench = Bench()
    bench.take()
    spec = msgspec.structs.replace(bench.spec, parallel="data", data=DataParallel())
    recovery = Recovery(bench.ledger, spec, Lost("b is lost", 5, 3, "", 30, 1.0), {B: "its link broke"}, 2.0, count(7))
    assert bench.take() == []
    assert not recovery.finished, "the node may be back soon"
    recovery.member_joined(B, 2.1)
    assert bench.take() == []
    assert recovery.finished
    assert recovery.manifest is None
