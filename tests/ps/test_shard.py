"""One shard by hand: who is answered what and when, exactly once, and how it goes on from a checkpoint."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from p2pnn.job.spec import Optimizer
from p2pnn.ps.compression import codec
from p2pnn.ps.consistency import Settings, consistency
from p2pnn.ps.guard import Guard
from p2pnn.ps.messages import Answer, Pull, Push, Refusal, Worker
from p2pnn.ps.shard import Shard
from p2pnn.ps.sharding import cut
from p2pnn.ps.space import Flat, Space
from p2pnn.train.optimizers import combine
from tests.ps.models import mlp
from tests.ps.network import workers_named
from tests.ps.places import Places

(RANGE,) = cut(Space.of(mlp()), 1).shards
SIZE = RANGE.size
A, B, C = workers_named(3)
SGD = Optimizer("sgd", 1.0, schedule="constant")
ONES = np.ones(SIZE, np.float32)


class Held(Shard):
    """A shard with slots of its own."""

    places: Places
    numbers: tuple[Worker, ...]


def shard_of(
    how: str = "async",
    workers: tuple[Worker, ...] = (A, B),
    *,
    backup: int = 0,
    guard: Guard | None = None,
    optimizer: Optimizer = SGD,
    **settings: object,
) -> Held:
    made = Settings(consistency(how, backup), **settings)  # type: ignore[arg-type]
    places = Places(RANGE, made.push)
    shard = Held(RANGE, np.zeros(SIZE, np.float32), optimizer, made, workers, slot=places.slot, guard=guard)
    shard.places, shard.numbers = places, workers
    return shard


def header(worker: Worker, sequence: int, based_on: int, *, clock: int = 0, generation: int = 0, **more: int) -> Push:
    return Push(worker, generation, sequence, 0, 4 * SIZE, based_on, clock, **more)  # type: ignore[arg-type]


def push(shard: Held, head: Push, gradient: Flat | None = -ONES) -> None:
    """None: its bytes are not received, because it is known."""
    assert len(RANGE.parts) == 1
    if gradient is not None and head.worker in shard.numbers:
        shard.places.put(shard.numbers.index(head.worker), head, gradient.view(np.uint8))
    shard.arrived(head, 0.0)


def answers(shard: Shard) -> list[Answer]:
    """All that it has to say now, sent at once."""
    while shard.work(1.0):
        pass
    found = []
    while (answer := shard.next_answer(1.0)) is not None:
        found.append(answer)
        shard.answer_sent(answer, 1.0)
    return found


def parameter(shard: Shard) -> float:
    values = shard.arrays["parameters"]
    assert (values == values[0]).all()
    return float(values[0])


def test_a_push_is_applied_and_answered_with_fresh_values() -> None:
    shard = shard_of()
    push(shard, header(A, 1, 0))
    assert shard.work(1.0)
    answer = shard.next_answer(1.0)
    assert answer is not None
    assert answer.values is not None
    assert (answer.worker, answer.sequence, answer.refusal, answer.log_number) == (A, 1, None, 1)
    assert (answer.values.version, answer.values.data.view(np.float32)[0]) == (1, 1.0)
    push(shard, header(B, 1, 0))
    shard.work(1.0)
    assert answer.values.data.view(np.float32)[0] == 2.0  # async reads live memory


def test_a_push_that_comes_again_is_answered_again_and_not_applied() -> None:
    shard = shard_of()
    for _ in range(3):
        push(shard, header(A, 1, 0))
        (answer,) = answers(shard)
        assert (answer.sequence, answer.refusal, answer.log_number) == (1, None, 1)
        assert answer.values is not None
        assert parameter(shard) == 1.0
    push(shard, header(A, 2, 1))
    answers(shard)
    push(shard, header(A, 1, 0), None)
    assert answers(shard) == []  # it has gone on long ago
    assert parameter(shard) == 2.0


def test_a_push_that_comes_again_while_it_waits_or_is_read_changes_nothing() -> None:
    shard = shard_of("sync")
    push(shard, header(A, 1, 0))
    assert answers(shard) == []
    push(shard, header(A, 1, 0))  # the same bytes into the same place
    push(shard, header(B, 1, 0), -2 * ONES)
    assert [a.worker for a in answers(shard)] == [A, B]
    assert parameter(shard) == 3.0
    assert shard.report().received_bytes == 2 * 4 * SIZE


def test_the_second_push_of_a_window_waits_for_the_first() -> None:
    shard = shard_of()
    push(shard, header(A, 2, 0), -5 * ONES)
    assert answers(shard) == []
    assert shard.acknowledged(A) == 0
    push(shard, header(A, 1, 0))
    assert [a.sequence for a in answers(shard)] == [2]  # acknowledges both
    assert parameter(shard) == 6.0
    assert (shard.acknowledged(A), shard.acknowledged(C)) == (2, 0)


def test_slots_hold_what_was_pushed_after_a_round() -> None:
    """The daemon may still write the same bytes into them."""
    shard = shard_of("sync")
    for worker in (A, B):
        push(shard, header(worker, 1, 0))
    answers(shard)
    for number in (0, 1):
        assert (shard.places.slot(number, 1).view(np.float32) == -1.0).all()


def test_refusals_of_what_is_not_even_taken_in() -> None:
    shard = shard_of()
    for head, why in [
        (header(C, 1, 0), Refusal.UNKNOWN),
        (header(A, 1, 0, generation=2), Refusal.STALE_GENERATION),
        (header(A, 3, 0), Refusal.GAP),
        (Push(A, 0, 1, 0, 4 * SIZE - 4, 0), Refusal.SHAPE),
    ]:
        push(shard, head)
        (answer,) = answers(shard)
        assert (answer.refusal, answer.sequence, answer.values) == (why, 0, None)
    assert shard.report().refused == {(A, Refusal.STALE_GENERATION): 1, (A, Refusal.SHAPE): 1}
    push(shard, header(A, 1, 0))
    assert answers(shard)[0].refusal is None


def test_bad_gradients_are_refused_counted_and_their_worker_is_set_aside() -> None:
    shard = shard_of(guard=Guard(strikes=2))
    push(shard, header(A, 1, 0))
    answers(shard)
    bad = ONES.copy()
    bad[3] = np.nan
    for sequence in (1, 2):
        push(shard, header(B, sequence, 1), bad)
        (answer,) = answers(shard)
        assert (answer.refusal, answer.sequence) == (Refusal.NOT_FINITE, sequence)
    assert parameter(shard) == 1.0
    report = shard.report()
    assert (report.set_aside, report.refused, report.taken) == ({B}, {(B, Refusal.NOT_FINITE): 2}, {A: 1, B: 0})
    push(shard, header(B, 3, 1))
    assert answers(shard)[0].refusal is Refusal.SET_ASIDE
    push(shard, header(B, 2, 1))
    push(shard, header(A, 2, 1))
    assert answers(shard)[-1].refusal is None


def test_what_is_based_on_the_future_or_on_too_old_a_version() -> None:
    shard = shard_of(staleness_max=2)
    push(shard, header(A, 1, 5))
    assert answers(shard)[0].refusal is Refusal.AHEAD
    for sequence in range(2, 5):
        push(shard, header(A, sequence, shard.report().version))
        answers(shard)
    push(shard, header(B, 1, 0))
    found = answers(shard)
    assert found[-1].refusal is Refusal.TOO_STALE
    assert parameter(shard) == 3.0


def test_a_pull_of_nobody_or_of_another_generation_is_answered_without_values() -> None:
    shard = shard_of()
    shard.pull(Pull(C, 0, 1), 0.0)
    shard.pull(Pull(A, 1, 4), 0.0)
    found = [(a.worker, a.request, a.refusal, a.values) for a in answers(shard)]
    assert found == [(C, 1, Refusal.UNKNOWN, None), (A, 4, Refusal.STALE_GENERATION, None)]


def test_staleness_is_measured_and_scales_the_rate() -> None:
    shard = shard_of(scale_by_staleness=True)
    for sequence in range(1, 5):
        push(shard, header(A, sequence, 0))
        answers(shard)
    assert shard.report().staleness.counts == {0: 1, 1: 1, 2: 1, 3: 1}
    assert parameter(shard) == pytest.approx(1 + 1 + 1 / 2 + 1 / 3)


def test_warm_start_holds_the_others_back() -> None:
    shard = shard_of(warm_start=2)
    shard.pull(Pull(A, 0, 1), 0.0)
    shard.pull(Pull(B, 0, 1), 0.0)
    assert [a.worker for a in answers(shard)] == [A]
    push(shard, header(A, 1, 0))
    assert [a.worker for a in answers(shard)] == [A]
    push(shard, header(A, 2, 1))
    assert {(a.worker, a.request) for a in answers(shard)} == {(A, 0), (B, 1)}


def test_who_trains_alone_and_is_set_aside_leaves_the_warm_start_to_the_next() -> None:
    shard = shard_of(workers=(A, B, C), guard=Guard(strikes=1), warm_start=2)
    for worker in (B, C):
        shard.pull(Pull(worker, 0, 1), 0.0)
    push(shard, header(A, 1, 0), np.full(SIZE, np.nan, np.float32))
    assert {(a.worker, a.refusal) for a in answers(shard)} == {(A, Refusal.NOT_FINITE), (B, None)}
    for sequence in (1, 2):
        push(shard, header(B, sequence, sequence - 1))
    assert {(a.worker, a.request) for a in answers(shard)} == {(B, 0), (C, 1)}


def test_ssp_answers_when_the_slowest_is_near_enough() -> None:
    shard = shard_of("ssp:1")
    push(shard, header(A, 1, 0))
    assert [a.worker for a in answers(shard)] == [A]
    push(shard, header(A, 2, 1))
    assert answers(shard) == []
    assert parameter(shard) == 2.0  # applied at once; only the answer waits
    push(shard, header(A, 2, 1))
    assert answers(shard) == []  # nor is it answered because it comes again
    push(shard, header(B, 1, 0))
    assert {(a.worker, a.sequence) for a in answers(shard)} == {(A, 2), (B, 1)}
    push(shard, header(A, 3, 3, clock=0))  # it says that it has read an old version
    assert answers(shard) == []
    push(shard, header(B, 2, 3, clock=1))
    assert {(a.worker, a.refusal) for a in answers(shard)} == {(A, Refusal.TOO_STALE), (B, None)}


def test_ssp_goes_on_without_who_has_left() -> None:
    shard = shard_of("ssp:0")
    push(shard, header(A, 1, 0))
    assert answers(shard) == []
    shard.leave(B, 0.0)
    assert [a.worker for a in answers(shard)] == [A]


def test_an_update_waits_while_both_buffers_are_read() -> None:
    shard = shard_of("ssp:9")
    shard.pull(Pull(B, 0, 1), 0.0)
    slow = shard.next_answer(0.0)
    assert slow is not None
    assert slow.values is not None
    push(shard, header(A, 1, 0))
    assert shard.work(0.0)
    push(shard, header(A, 2, 1))
    assert not shard.work(0.0)
    assert slow.values.data.view(np.float32)[0] == 0.0
    shard.answer_sent(slow, 0.0)
    assert shard.work(0.0)


def test_a_round_sums_in_the_order_of_workers_whatever_the_order_of_arrival() -> None:
    random = np.random.default_rng(1)
    gradients = {w: random.standard_normal(SIZE, np.float32) * np.float32(10**i) for i, w in enumerate((A, B, C))}
    for order in itertools.permutations((A, B, C)):
        shard = shard_of("sync", (A, B, C))
        for worker in order:
            assert answers(shard) == []
            push(shard, header(worker, 1, 0), gradients[worker])
        assert [a.worker for a in answers(shard)] == [A, B, C]
        expected = np.zeros(SIZE, np.float32)
        combine(-1.0, (gradients[A] + gradients[B]) + gradients[C], 1.0, expected)
        assert shard.arrays["parameters"].tobytes() == expected.tobytes()


def test_a_round_makes_do_with_the_first_and_tells_the_late_one() -> None:
    shard = shard_of("sync", (A, B, C), backup=1)
    push(shard, header(C, 1, 0))
    push(shard, header(A, 1, 0))
    assert [a.worker for a in answers(shard)] == [A, C]
    push(shard, header(B, 1, 0))
    (late,) = answers(shard)
    assert (late.worker, late.refusal) == (B, Refusal.LATE)
    assert late.values is not None
    assert late.values.version == 1
    assert parameter(shard) == 2.0


def test_a_bad_gradient_leaves_its_round_to_the_others() -> None:
    shard = shard_of("sync", (A, B))
    push(shard, header(B, 1, 0), np.full(SIZE, np.inf, np.float32))
    assert answers(shard) == []
    push(shard, header(A, 1, 0), -ONES / 2)
    assert {(a.worker, a.refusal) for a in answers(shard)} == {(A, None), (B, Refusal.NOT_FINITE)}
    assert parameter(shard) == 1.0  # the half of two is the whole of one
    for worker, sequence in ((A, 2), (B, 2)):
        push(shard, header(worker, sequence, 1), np.full(SIZE, np.nan, np.float32))
    assert len(answers(shard)) == 2
    assert shard.report().version == 2  # a step that nobody could make is counted and left out
    assert parameter(shard) == 1.0


def test_a_second_push_into_one_round_is_not_taken() -> None:
    shard = shard_of("sync")
    push(shard, header(A, 1, 0))
    push(shard, header(A, 2, 0))
    assert answers(shard) == []
    push(shard, header(B, 1, 0))
    assert [(a.worker, a.sequence, a.refusal) for a in answers(shard)] == [(B, 1, None), (A, 2, Refusal.LATE)]
    assert parameter(shard) == 2.0


def test_local_differences_are_averaged_by_the_outer_optimizer() -> None:
    outer = Optimizer("sgd", 1.0, schedule="constant")
    shard = shard_of("local:4", outer=outer)
    push(shard, header(A, 1, 0), ONES * 3)
    push(shard, header(B, 1, 0), ONES)
    answers(shard)
    assert parameter(shard) == -2.0


@pytest.mark.parametrize("name", ["bf16", "int8"])
@pytest.mark.parametrize("how", ["async", "sync"])
def test_compressed_pushes_are_decoded_part_by_part(name: str, how: str) -> None:
    shard, compress = shard_of(how, push=name), codec(name)
    data = np.empty(compress.byte_count(SIZE), np.uint8)
    compress.encode(-ONES, data)
    for number, worker in enumerate((A, B)):
        head = Push(worker, 0, 1, 0, data.nbytes, 0)
        shard.places.put(number, head, data)
        shard.arrived(head, 0.0)
    answers(shard)
    assert parameter(shard) == pytest.approx(2.0)
    assert shard.report().received_bytes == 2 * data.nbytes


def test_it_goes_on_from_arrays_alone_with_workers_that_begin_anew() -> None:
    optimizer = Optimizer("adam", 0.1, schedule="constant")
    shard, other = shard_of(optimizer=optimizer), shard_of(optimizer=optimizer)
    push(shard, header(A, 1, 0), ONES)
    push(shard, header(A, 2, 1), -3 * ONES)
    answers(shard)
    other.resume(shard.arrays, shard.report().version)
    push(shard, header(A, 3, 2), ONES / 2)
    push(other, header(A, 1, 2), ONES / 2)
    assert [a.refusal for a in (*answers(shard), *answers(other))] == [None, None]
    assert shard.arrays["parameters"].tobytes() == other.arrays["parameters"].tobytes()
    assert other.report().version == 3


def drawn(shard: Shard, worker: Worker, mark: int) -> None:
    shard.pull(Pull(worker, 0, 1000 + mark, after=mark), 0.0)


def test_values_at_a_mark_are_sent_when_all_have_drawn_it_and_hold_no_push_behind_it() -> None:
    shard = shard_of()
    push(shard, header(A, 1, 0))
    answers(shard)
    drawn(shard, A, 4)
    assert answers(shard) == []
    assert not shard.is_marked(4)
    push(shard, header(B, 1, 0))
    answers(shard)
    drawn(shard, B, 4)
    assert shard.is_marked(4)
    found = answers(shard)
    assert [(a.worker, a.request, a.values and a.values.version) for a in found] == [(A, 1004, 2), (B, 1004, 2)]
    push(shard, header(A, 2, 2, mark=4))
    assert answers(shard) == []  # B has not got its values yet, as far as is known
    shard.pull(Pull(B, 0, 1004, after=4), 0.0)  # indeed, it asks again
    assert [a.values and a.values.version for a in answers(shard)] == [2]
    shard.mark(B, 4, 0.0)
    assert answers(shard) == []  # the server itself has something to do
    shard.served(4)
    assert [(a.worker, a.sequence) for a in answers(shard)] == [(A, 2)]
    assert parameter(shard) == 3.0


def test_a_push_says_by_itself_that_its_worker_has_drawn_a_mark() -> None:
    shard = shard_of()
    push(shard, header(A, 1, 0, mark=2))
    shard.served(2)
    assert answers(shard) == []
    push(shard, header(B, 1, 0, mark=2))
    assert [a.worker for a in answers(shard)] == [A, B]


def test_a_worker_that_has_drawn_a_mark_holds_nobody_back() -> None:
    shard = shard_of("ssp:0")
    push(shard, header(A, 1, 0))
    assert answers(shard) == []
    drawn(shard, B, 1)
    assert [a.worker for a in answers(shard)] == [A]
    drawn(shard, A, 1)
    found = answers(shard)
    assert [(a.worker, a.values and a.values.clock) for a in found] == [(B, 1), (A, 1)]  # B is not behind for that
    shard = shard_of("local:4", outer=SGD)
    push(shard, header(A, 1, 0))
    assert answers(shard) == []
    shard.mark(B, 1, 0.0)
    assert [a.worker for a in answers(shard)] == [A]
    shard = shard_of(warm_start=9)
    shard.pull(Pull(B, 0, 1), 0.0)
    assert answers(shard) == []
    shard.mark(A, 1, 0.0)
    assert [a.worker for a in answers(shard)] == [B]


def test_a_worker_that_was_set_aside_is_waited_for_at_no_mark() -> None:
    shard = shard_of(guard=Guard(strikes=1))
    drawn(shard, A, 1)
    push(shard, header(B, 1, 0), np.full(SIZE, np.nan, np.float32))
    assert {(a.worker, a.request) for a in answers(shard)} == {(B, 0), (A, 1001)}


def test_a_pull_that_was_overtaken_is_not_answered() -> None:
    shard = shard_of()
    shard.pull(Pull(A, 0, 2), 0.0)
    shard.pull(Pull(A, 0, 1), 0.0)
    assert [a.request for a in answers(shard)] == [2]


def test_who_is_gone_is_answered_nothing_and_waited_for_by_nobody() -> None:
    """Also of a warm start, in which the first worker that is left trains alone."""
    shard = shard_of("async", (A, B, C), warm_start=3)
    push(shard, header(A, 1, 0))
    assert [answer.worker for answer in answers(shard)] == [A]
    shard.pull(Pull(B, 0, 1), 0.0)
    shard.pull(Pull(C, 0, 1), 0.0)
    assert answers(shard) == []
    shard.leave(A, 0.0)
    shard.leave(A, 0.0)
    assert [answer.worker for answer in answers(shard)] == [B], "it is the first now"
    push(shard, header(A, 2, 1))
    shard.pull(Pull(A, 0, 1), 0.0)
    shard.rest(A, 5, 0.0)
    shard.mark(B, 9, 0.0)
    shard.pull(Pull(C, 0, 2, after=9), 0.0)
    assert [answer.worker for answer in answers(shard)] == [C]
    assert shard.is_marked(9)
    assert parameter(shard) == 1.0


def test_a_bound_waits_for_nobody_who_rests() -> None:
    shard = shard_of("ssp:0", (A, B))
    push(shard, header(A, 1, 0))
    assert answers(shard) == []
    shard.rest(B, 0, 0.0)
    assert [answer.worker for answer in answers(shard)] == [A]
    push(shard, header(A, 2, 1, clock=1))
    assert [answer.worker for answer in answers(shard)] == [A]
    shard.pull(Pull(B, 0, 1, returns=1), 0.0)
    assert [(a.worker, a.values.clock) for a in answers(shard) if a.values] == [(B, 2)]
    push(shard, header(B, 1, 2, clock=2))
    assert answers(shard) == [], "now A has to push for B to go on"
    push(shard, header(A, 3, 3, clock=2))
    assert {answer.worker: answer.refusal for answer in answers(shard)} == {A: None, B: None}
