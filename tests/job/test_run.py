"""Details of the script that the supervisor's simulated runs do not show."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest

from p2pnn.job.actions import Order, Publish
from p2pnn.job.checkpoint import Part
from p2pnn.job.ledger import Ledger
from p2pnn.job.pace import AHEAD, FIRST_PIECE_STEPS
from p2pnn.job.run import Run
from p2pnn.job.script import Checkpoint, Done, Evaluate, Finish, Progress, Sample, Train
from p2pnn.job.snapshots import FIRST_STEPS
from p2pnn.job.spec import JobSpec
from p2pnn.job.watch import Watch
from tests.job.test_sampling import job, scores
from tests.job.test_supervisor import NAMES, NODES, make_plan, make_record, make_spec


class Bench:
    def __init__(self, spec: JobSpec) -> None:
        self.ends: list[tuple[str, str]] = []
        self.ledger = Ledger(make_record(spec, state="preparing", plan=make_plan(NODES[:2])), dict(NAMES))
        self.run = Run(self.ledger, spec, lambda event, reason: self.ends.append((event, reason)), Watch(), 0.0)
        self.run.assign(NODES[:2])
        self.events: list[Publish] = []
        self.run.start(0.0)

    def orders(self) -> list[object]:
        """The commands since the last call."""
        found = []
        while (action := self.ledger.next_action()) is not None:
            if isinstance(action, Order):
                found += action.commands
            if isinstance(action, Publish):
                self.events.append(action)
        return found

    def answer(self, sequence: int, now: float, result: bytes = b"", error: str = "") -> None:
        for node in NODES[:2]:
            self.run.report(node, Done(sequence, result, error), now)


def test_pieces_grow_with_the_speed_so_that_each_takes_half_a_second() -> None:
    bench = Bench(make_spec(train=msgspec.structs.replace(make_spec().train, stop=80), batch_size=1, micro_batches=1))  # type: ignore[type-var]
    assert bench.orders() == [Train(number, number * FIRST_PIECE_STEPS, FIRST_STEPS) for number in range(1, AHEAD + 1)]
    bench.answer(1, 0.1)  # 4 steps in 0.1 s: 40 a second
    assert bench.orders() == [Train(AHEAD + 1, AHEAD * FIRST_PIECE_STEPS + 20, FIRST_STEPS)]


def test_checkpoints_come_at_their_steps_and_never_twice_at_an_epochs_end() -> None:
    bench = Bench(make_spec(checkpoint_steps=5, validation=None, epochs=1))
    orders: list[object] = bench.orders()
    part = msgspec.msgpack.encode(Part("6" * 64, 1, bytes(32)))  # type: ignore[arg-type]
    now = 0.0
    for sequence in range(1, 8):
        now += 0.1
        bench.answer(sequence, now, part if isinstance(orders[sequence - 1], Checkpoint) else b"")
        orders += bench.orders()
        if sequence == len(orders):
            break
    before = [a for a, b in pairwise(orders) if isinstance(b, Checkpoint)]
    assert [o.until_step for o in before if isinstance(o, Train)] == [5, 10]


def test_no_periodic_checkpoint_is_begun_while_one_is_being_copied() -> None:
    bench = Bench(make_spec(checkpoint_steps=2, validation=None, epochs=1, batch_size=4))
    part = msgspec.msgpack.encode(Part("6" * 64, 1, bytes(32)))  # type: ignore[arg-type]
    orders: list[object] = bench.orders()
    for sequence in range(1, 40):  # nobody ever answers for the copies
        if sequence > len(orders):
            break
        bench.answer(sequence, 0.1 * sequence, part if isinstance(orders[sequence - 1], Checkpoint) else b"")
        orders += bench.orders()
    steps = [o.until_step for o in orders if isinstance(o, Train)]
    assert steps[-1] == 20
    # those granted before the first was written, and that of the epoch's end
    assert 1 < sum(isinstance(o, Checkpoint) for o in orders) <= AHEAD + 2


def test_an_answer_that_is_overtaken_takes_no_step_back() -> None:
    bench = Bench(make_spec())
    bench.orders()
    bench.answer(2, 0.1)
    assert bench.run.step == 8
    bench.answer(1, 0.2)
    assert bench.run.step == 8


def test_answers_to_nothing_are_ignored_and_unreadable_ones_are_raised() -> None:
    bench = Bench(make_spec(kind="evaluate", train=None, validation=None))
    assert bench.orders() == [Evaluate(1, "test")]
    bench.answer(99, 0.1)
    assert bench.orders() == []
    bench.run.report(NODES[0], Done(1), 0.2)
    with pytest.raises(msgspec.MsgspecError):
        bench.run.report(NODES[1], Done(1, b"\xc1"), 0.3)


def test_progress_names_the_epoch_and_never_one_after_the_last() -> None:
    bench = Bench(make_spec(epochs=1))
    bench.run.report(NODES[0], Progress(1, (2.0, 4), {}, 0.1, 0.2), 1.0)
    bench.orders()
    progress = [e.fields for e in bench.events if e.kind == "progress"]
    assert [(p["epoch"], p["epochs"], p["loss"]) for p in progress] == [(1, 1, 0.5)]


def test_a_text_grows_by_one_token_per_answer() -> None:
    bench = Bench(job(prompt=(1,), length=2, temperature=0.0))
    assert bench.orders() == [Sample(1, (1,))]
    bench.run.report(NODES[0], Done(1, scores(0.1, 0.2, 0.7)), 0.1)  # one node has the scores
    assert bench.orders() == []
    bench.run.report(NODES[1], Done(1), 0.2)
    assert bench.orders() == [Sample(2, (1, 2))]
    bench.answer(2, 0.3, scores(0.7, 0.2, 0.1))
    assert bench.orders() == [Finish()]
    assert bench.ends == [("gathered", "")]
    assert [e.fields["tokens"] for e in bench.events if e.kind == "tokens"] == [[2], [0]]


def test_scores_that_are_none_fail_the_text() -> None:
    bench = Bench(job())
    bench.orders()
    bench.answer(1, 0.1, scores(float("nan"), 0, 0))
    assert [event for event, _ in bench.ends] == ["fail"]
    assert "NaN" in bench.ends[0][1]
    other = Bench(job())
    other.orders()
    with pytest.raises(msgspec.MsgspecError):
        other.answer(1, 0.1)  # no node had them
