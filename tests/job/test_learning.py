"""Each reason is found, told once with names, and not told of a run that learns."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from p2pnn import nn
from p2pnn.job.learning import Learning, Streaks, rectifier
from p2pnn.job.script import Health, Progress, ShardReport
from p2pnn.job.spec import DataParallel, Dataset, JobSpec, Optimizer, Split
from tests.job.test_served import make_plan

BATCH = 10


def model() -> nn.Model:
    x, label = nn.Input("x", (6,)), nn.Input("label", (), dtype="int64")
    h = nn.relu(nn.Linear(8, name="one")(x))
    h = nn.relu(nn.Dropout(0.1)(h), name="late")
    logits = nn.Linear(4, name="two")(h)
    return nn.Model(outputs={"p": nn.softmax(logits)}, loss=nn.cross_entropy(logits, label))


GRAPH = model().graph


def spec(steps_per_epoch: int = 40, **settings: Any) -> JobSpec:
    train = Split(Dataset("d", BATCH * steps_per_epoch, ()), 0, BATCH * steps_per_epoch)
    return JobSpec("n", GRAPH, {}, train=train, batch_size=BATCH, epochs=100, **settings)


def health(first: float = 2.3, **seen: Any) -> Health:
    return Health((first * 20 * BATCH, 20 * BATCH), **seen)


def losses(value: float, steps: int) -> Progress:
    return Progress(0, (value * steps * BATCH, steps * BATCH), {}, 0.1, 0.2, health=health())


def fed(learning: Learning, loss: Any, steps: int, every: int = 10, **seen: Any) -> list[str]:
    """What is said while the loss is loss(step), told every so many steps."""
    told: list[str] = []
    for step in range(every, steps + 1, every):
        message = losses(loss(step), every)
        message.health = health(**seen)
        told += learning.add("a", message, step, step / 100)
    return told


def test_a_loss_that_is_flat_from_the_first_step_is_told_after_an_epoch_and_once() -> None:
    noise = np.random.default_rng(1)
    for per_epoch, at in ((40, 200), (400, 400), (60_000, 1_000)):
        flat = lambda _: 2.303 + 0.003 * noise.standard_normal()  # noqa: E731
        learning = Learning(spec(per_epoch))
        assert fed(learning, flat, at - 10, first=2.303) == []
        [text] = learning.add("a", losses(2.303, 10), at, 9.0)
        assert text.startswith("not learning: the loss is 2.30")
        assert "as at the start (2.3)" in text
        assert fed(learning, flat, at + 500, first=2.303) == []


def test_the_text_says_what_the_loss_did() -> None:
    assert "since the learning rate is 0" in fed(Learning(spec(optimizer=Optimizer(rate=0))), lambda _: 2.3, 300)[0]
    assert "has risen from 2.3 to 40" in fed(Learning(spec()), lambda _: 40.0, 300)[0]


@pytest.mark.parametrize(
    "loss",
    [
        lambda step: 2.3 * 0.995**step,
        lambda step: 2.3 * (0.98 if step > 150 else 1),  # a plateau that ends within the limits
        lambda step: 0.4,  # learned within the first steps
    ],
)
def test_a_run_that_learns_is_left_alone(loss: Any) -> None:
    assert fed(Learning(spec()), loss, 3000) == []


def test_a_warm_up_with_hardly_a_rate_is_waited_for() -> None:
    slow = spec(optimizer=Optimizer(warmup_steps=500))
    assert fed(Learning(slow), lambda step: 2.3 if step < 650 else 2.0, 3000) == []
    assert fed(Learning(slow), lambda _: 2.3, 690) == []
    assert fed(Learning(slow), lambda _: 2.3, 700) != []


def test_a_run_that_began_elsewhere_may_be_as_good_as_it_gets() -> None:
    assert fed(Learning(spec(), step=400), lambda _: 2.3, 3000) == []
    assert fed(Learning(spec(initial=("b" * 64,))), lambda _: 2.3, 3000) == []


def test_one_message_may_hold_many_steps() -> None:
    """A fast run: what was learned within the first message is known from the first steps' own sum."""
    assert fed(Learning(spec()), lambda _: 0.2, 4000, every=1000) == []
    assert fed(Learning(spec()), lambda _: 2.3, 4000, every=1000) != []


def test_workers_that_leave_first_steps_out_hide_no_flat_loss() -> None:
    learning, told = Learning(data("sync", backup=1), make_plan(2)), []
    for step in range(10, 400, 10):
        message = losses(2.3, 10)
        message.health = Health((2.3 * 14 * BATCH, 14 * BATCH))
        told += learning.add("a", message, step, step / 100)
    assert len(told) == 1


def test_streaks_take_looks_and_steps() -> None:
    quick, long, moved = Streaks(), Streaks(), Streaks()
    for look in range(30):
        quick.look(1, rests=True, step=look // 3)
        long.look(1, rests=True, step=10 * look)
        moved.look(1, rests=look != 27, step=10 * look)
        if look < 4:
            assert not long.lasting()
    assert quick.lasting() == {}
    assert long.lasting() == {1: 0}
    assert moved.lasting() == {}


def test_zero_gradients_are_named_once() -> None:
    learning = Learning(spec())
    still = losses(2.3, 10)
    still.health = health(still={0: 3, 1: 3, 2: 4, 99: 1})
    [text] = learning.add("a", still, 40, 1.0)
    assert "zero gradients: those of one/weight, one/bias, two/weight have been zero since step 5" in text
    assert learning.add("a", still, 50, 1.2) == []
    still.health = health(still={0: 3, 1: 3, 2: 4, 3: 4})
    assert "those of two/bias" in learning.add("a", still, 60, 1.4)[0]


def test_zero_gradients_of_a_run_that_has_learned_are_no_finding() -> None:
    learning = Learning(spec())
    assert fed(learning, lambda _: 0.3, 100) == []
    done = losses(1e-6, 10)
    done.health = health(still={0: 150, 1: 150, 2: 150, 3: 150})
    assert learning.add("a", done, 400, 5.0) == []


def test_a_gradient_that_is_zero_on_one_worker_only_is_no_finding() -> None:
    learning = Learning(data(), make_plan(2))
    for node, wanted in (("a", 0), ("b", 1)):
        message = losses(2.3, 5)
        message.health = health(still={3: 1})
        assert len(learning.add(node, message, 50, 1.0)) == wanted


def test_zero_gradients_on_all_workers_that_are_left_are_named_and_what_a_lost_one_saw_is_not() -> None:
    learning = Learning(data(), make_plan(3))
    for node in "abc":
        message = losses(2.3, 5)
        message.health = health(dead={0: 4} if node == "c" else {}, not_finite=3 if node == "c" else -1)
        if node == "c":
            learning.without("c")
        assert learning.add(node, message, 50, 1.0) == []
    still = losses(2.3, 5)
    still.health = health(still={3: 1})
    assert learning.add("a", still, 60, 2.0) == []
    [text] = learning.add("b", still, 60, 2.0)
    assert "zero gradients: those of two/bias" in text
    late = Learning(data(), make_plan(3))
    for node, moves in (("c", True), ("a", False), ("b", False)):
        still.health = health(still={} if moves else {3: 1})
        assert late.add(node, still, 60, 2.0) == [], "c's moves"
    late.without("c")
    still.health = health(still={3: 1})
    assert "two/bias" in late.add("a", still, 70, 3.0)[0]


def test_the_first_steps_of_a_lost_worker_still_say_what_the_loss_was_at_the_start() -> None:
    learning, told = Learning(data(), make_plan(3)), []
    for node in "abc":
        message = losses(2.3, 0)
        message.health = Health((2.3 * 7 * BATCH, 7 * BATCH))
        learning.add(node, message, 20, 0.2)
    for node in "bc":
        learning.without(node)
    for step in range(40, 400, 10):
        told += learning.add("a", Progress(step, (2.3 * 10 * BATCH, 10 * BATCH), {}, 0.1, 0.2), step, step / 100)
    [text] = told
    assert text.startswith("not learning: the loss is 2.3")


def test_dead_activations_name_the_rectifier_and_its_layer() -> None:
    relus = [number for number, op in enumerate(GRAPH.ops) if op.kind == "Relu"]
    assert [rectifier(GRAPH, op) for op in relus] == ["relu_1 behind one", "late behind one"]
    learning, message = Learning(spec()), losses(2.3, 10)
    message.health = health(dead={relus[0]: 7})
    [text] = learning.add("a", message, 40, 1.0)
    assert "dead activations: all outputs of relu_1 behind one have been zero since step 8" in text
    assert learning.add("a", message, 50, 1.0) == []


# workers


def data(consistency: str = "async", **settings: Any) -> JobSpec:
    return spec(parallel="data", data=DataParallel(consistency, **settings))


def served(
    learning: Learning,
    now: float,
    taken: dict[int, int],
    refused: tuple[tuple[int, str, int], ...] = (),
    aside: tuple[int, ...] = (),
    zeros: tuple[dict[int, int], dict[int, int]] = ({}, {}),
) -> list[str]:
    """What is said after both shards have told."""
    told: list[str] = []
    for shard, few in enumerate(zeros):
        report = ShardReport(shard, sum(taken.values()), {}, taken, refused, aside, 0, 0, 0, few)
        told += learning.add("a", Progress(0, (0.0, 0), {}, 0.1, 0.2, served=(report,)), 1, now)
    return told


def test_workers_that_all_contribute_are_left_alone() -> None:
    learning = Learning(data(), make_plan(3))
    for push in range(400):
        both = {0: min(push, 3), 1: push}, {2: 30}  # sometimes nothing for one shard
        assert served(learning, push / 10, {0: push, 1: push + 2, 2: push // 4}, zeros=both) == []


def test_a_worker_whose_pushes_are_zero_is_named() -> None:
    learning = Learning(data(), make_plan(3))
    for push in range(20):
        assert served(learning, push, dict.fromkeys(range(3), push), zeros=({2: push}, {2: push})) == []
    [text] = served(learning, 21, dict.fromkeys(range(3), 21), zeros=({2: 21}, {2: 20}))
    assert text.startswith("worker c contributes nothing: its last 20 pushes were all zero")
    assert served(learning, 22, dict.fromkeys(range(3), 22), zeros=({2: 22}, {2: 22})) == []


def test_zero_pushes_of_everybody_speak_against_nobody() -> None:
    all_of_them = dict.fromkeys(range(3), 60)
    assert served(Learning(data(), make_plan(3)), 9.0, all_of_them, zeros=(all_of_them, all_of_them)) == []


def test_a_worker_that_gets_nowhere_is_named_with_why() -> None:
    silent, refused = Learning(data(), make_plan(3)), Learning(data(staleness_max=2), make_plan(3))
    for learning, whys in ((silent, ()), (refused, ((2, "TOO_STALE", 30),))):
        told = []
        for push in range(0, 120, 5):
            told += served(learning, push / 10, {0: push, 1: push, 2: min(push, 5)}, whys if push > 5 else ())
        [text] = told
        assert text.startswith("worker c contributes nothing: ")
        assert ("30 of its pushes were refused since" in text) == (learning is refused)
        assert ("based on parameters that are too old" in text) == (learning is refused)
        assert ("it is stuck, or very slow" in text) == (learning is silent)


def test_nothing_is_expected_of_a_worker_that_takes_part_no_more() -> None:
    learning = Learning(data(), make_plan(3))
    assert served(learning, 0.0, dict.fromkeys(range(3), 5)) == []
    learning.without("c")
    for push in range(5, 400, 5):
        assert served(learning, push / 10, {0: push, 1: push, 2: 5}) == []
    told = []
    for push in range(400, 600, 5):
        told += served(learning, push / 10, {0: push, 1: 400, 2: 5})
    [text] = told
    assert text.startswith("worker b contributes nothing: none came while the others made ")


def test_a_warm_start_makes_nobody_idle() -> None:
    learning = Learning(data(warm_start=1000), make_plan(3))
    for push in range(0, 1100, 10):
        assert served(learning, push / 10, {0: push, 1: 0, 2: 0}) == []
    for push in range(10, 200, 10):
        assert served(learning, 110 + push / 10, {0: 1100 + push, 1: push, 2: push}) == []


def test_a_worker_that_is_set_aside_is_told_with_its_reasons() -> None:
    learning = Learning(data(), make_plan(3))
    [text] = served(learning, 1.0, {0: 30, 1: 5, 2: 30}, ((1, "NOT_FINITE", 2), (1, "RUNAWAY", 1)), (1,))
    assert text == (
        "worker b is set aside, and the run goes on without it: its pushes were refused (NaN or infinite elements, far larger"
        " than those before)"
    )
    for push in range(400):
        assert served(learning, push, {0: push, 1: 5, 2: push}, ((1, "SET_ASIDE", 9),), (1,)) == []


def test_a_worker_whose_loss_is_no_number_is_named() -> None:
    learning, message = Learning(data(), make_plan(2)), Progress(3, (0.0, 0), {}, 0.1, 0.2)
    message.health = health(not_finite=2)
    [text] = learning.add("b", message, 3, 1.0)
    assert text.startswith("the loss on node b is NaN or infinite since step 3;")
    assert learning.add("b", message, 3, 1.0) == []


def test_what_a_hostile_node_tells_does_not_end_the_coordinator() -> None:
    learning = Learning(data(), make_plan(2))
    odd = Progress(-5, (math.nan, -3), {}, 0.0, 0.0)
    odd.health = Health((math.inf, 1 << 40), {-1: -9, 1 << 60: 2}, {-7: 1, 1 << 60: 3}, 1 << 60)
    odd.served = (ShardReport(7, -1, {}, {9: 4, -2: 1}, ((5, "NEW_WORD", -1),), (77,), 0, 0, 0, {-4: 3}),)
    for now in range(5):
        learning.add("b", odd, 10, float(now))
