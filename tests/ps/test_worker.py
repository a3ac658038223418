"""The replica: Algorithm 7.1 to the letter, what leaves when and first, local steps, and what it waits for."""

from __future__ import annotations

import numpy as np
import pytest

from p2pnn.errors import LocalProtocolError
from p2pnn.job.spec import Optimizer
from p2pnn.ps.consistency import Settings, consistency
from p2pnn.ps.messages import Answer, Refusal
from p2pnn.ps.optimizers import ShardOptimizer
from p2pnn.ps.outgoing import MarkNote, PullRequest, PushPart
from p2pnn.ps.shard import Shard
from p2pnn.ps.sharding import cut
from p2pnn.ps.space import Flat, Space
from p2pnn.ps.worker import Replica
from p2pnn.train.optimizers import combine
from tests.ps.models import mlp
from tests.ps.network import workers_named
from tests.ps.places import Places

SPACE = Space.of(mlp(6))
(A,) = workers_named(1)
ADAGRAD = Optimizer("adagrad", 0.1, schedule="constant")


def start() -> Flat:
    return np.random.default_rng(1).standard_normal(SPACE.size, np.float32)


def gradient(step: int, w: Flat) -> Flat:
    return w * np.float32(0.1) + np.random.default_rng(step).standard_normal(SPACE.size, np.float32)


class Pair:
    """One replica and its shards, with links that deliver at once, or when `deliver` is called."""

    def __init__(
        self, settings: Settings, optimizer: Optimizer = ADAGRAD, shards: int = 2, inner: Optimizer | None = None
    ) -> None:
        self.sharding = cut(SPACE, shards)
        self.places = [Places(shard, settings.push) for shard in self.sharding.shards]
        self.shards = [
            Shard(shard, values, optimizer, settings, [A], slot=places.slot)
            for shard, values, places in zip(
                self.sharding.shards, self.sharding.split(start()), self.places, strict=True
            )
        ]
        self.replica = Replica(A, self.sharding, settings, optimizer=inner)
        self.sent: list[PushPart | PullRequest | MarkNote] = []

    def deliver(self) -> None:
        while (message := self.replica.next_message(0.0)) is not None:
            self.sent.append(message)
            if isinstance(message, PushPart):
                self.places[message.shard].put(0, message.push, message.data)
                self.shards[message.shard].arrived(message.push, 0.0)
            elif isinstance(message, PullRequest):
                self.shards[message.shard].pull(message.pull, 0.0)
            else:
                for shard in self.shards:
                    shard.mark(message.mark.worker, message.mark.sequence, 0.0)
            self.replica.sent(message)
        for index, shard in enumerate(self.shards):
            while shard.work(0.0):
                pass
            while (answer := shard.next_answer(0.0)) is not None:
                self.give(index, answer)
                shard.answer_sent(answer, 0.0)

    def give(self, index: int, answer: Answer) -> None:
        place = self.replica.place(index, answer)
        if place is not None:
            assert answer.values is not None
            place[:] = answer.values.data
        self.replica.answered(index, answer, 0.0, took_values=place is not None)

    def finish_step(self) -> None:
        replica = self.replica
        replica.gradient[:] = gradient(replica.step, replica.parameters)
        for entry in reversed(SPACE.entries):
            replica.gradient_ready(entry.name, 0.0)
        replica.end_step(0.0)

    def values(self) -> Flat:
        return self.sharding.join([shard.arrays["parameters"] for shard in self.shards])


@pytest.mark.parametrize(("n_fetch", "n_push"), [(1, 1), (2, 2), (3, 2), (2, 3), (5, 1), (1, 4)])
@pytest.mark.parametrize("local_rate", [0.0, 0.05])
def test_downpour_is_algorithm_7_1(n_fetch: int, n_push: int, local_rate: float) -> None:
    """Dean et al. 2012, Algorithm 7.1, written out; what was fetched takes its place before the next step at the latest."""
    pair = Pair(Settings(n_fetch=n_fetch, n_push=n_push, local_rate=local_rate))
    server, optimizer = start(), ShardOptimizer(ADAGRAD, SPACE.size, SPACE.decay)
    parameters, accrued, updates = server.copy(), np.zeros(SPACE.size, np.float32), 0
    fetched: Flat | None = None
    pair.deliver()
    for step in range(24):
        assert pair.replica.begin_step(0.0)
        if step % n_fetch == 0 and (step == 0 or (step - 1) % n_push == 0):
            parameters = server.copy()  # with the push before, or at the start
            fetched = None
        elif fetched is not None:
            parameters, fetched = fetched, None
        if step % n_fetch == 0 and step and (step - 1) % n_push:
            fetched = server.copy()
        pair.deliver()
        assert np.array_equal(pair.replica.parameters, parameters), step
        g = gradient(step, parameters)
        accrued = accrued + g
        if local_rate:
            combine(-local_rate, g, 1.0, parameters)
        if step % n_push == 0:
            optimizer.apply(server, accrued, update=updates, rate=0.1)
            updates += 1
            accrued = np.zeros_like(accrued)
        pair.finish_step()
        pair.deliver()
        assert pair.values().tobytes() == server.tobytes(), step
    assert pair.shards[0].report().version == updates


def test_fetches_and_pushes_do_not_hold_up_steps_until_the_window_is_full() -> None:
    pair = Pair(Settings(local_rate=0.1))
    pair.deliver()
    for _ in range(2):
        assert pair.replica.begin_step(0.0)
        pair.finish_step()
    assert not pair.replica.begin_step(0.0)  # two pushes are unacknowledged
    assert pair.replica.unacknowledged == 4
    pair.deliver()
    assert pair.replica.begin_step(0.0)


def test_a_part_leaves_as_soon_as_its_gradients_exist_and_the_first_needed_first() -> None:
    sharding = cut(SPACE, 4, "round-robin")  # one parameter each
    replica = Replica(A, sharding, Settings())
    while (message := replica.next_message(0.0)) is not None:
        assert isinstance(message, PullRequest)
        shard = Shard(
            sharding.shards[message.shard],
            np.zeros(sharding.shards[message.shard].size, np.float32),
            ADAGRAD,
            Settings(),
            [A],
            slot=Places(sharding.shards[message.shard]).slot,
        )
        shard.pull(message.pull, 0.0)
        answer = shard.next_answer(0.0)
        assert answer is not None
        assert replica.place(message.shard, answer) is not None
        replica.answered(message.shard, answer, 0.0, took_values=True)
    assert replica.begin_step(0.0)
    assert replica.next_message(0.0) is None
    names = [entry.name for entry in SPACE.entries]
    replica.gradient_ready(names[3], 0.0)
    message = replica.next_message(0.0)
    assert isinstance(message, PushPart)
    assert message.shard == 3
    for name in (names[2], names[1], names[0]):
        replica.gradient_ready(name, 0.0)
    order = []
    while isinstance(message := replica.next_message(0.0, {0, 2}), PushPart):
        order.append(message.shard)
    assert order == [0, 2]
    message = replica.next_message(0.0)
    assert isinstance(message, PushPart)
    assert message.shard == 1
    replica.end_step(0.0)


@pytest.mark.parametrize("how", ["sync", "ssp:2"])
def test_where_pushes_are_waited_for_a_step_begins_with_their_values(how: str) -> None:
    pair = Pair(Settings(consistency(how)))
    assert not pair.replica.begin_step(0.0)
    pair.deliver()
    for step in range(5):
        assert pair.replica.begin_step(0.0)
        assert np.array_equal(pair.replica.parameters, pair.values())
        pair.finish_step()
        assert not pair.replica.begin_step(0.0)
        pair.deliver()
        assert pair.shards[1].report().version == step + 1
    assert sum(isinstance(message, PullRequest) for message in pair.sent) == 2  # only at the start


def test_local_steps_push_their_difference() -> None:
    inner = Optimizer("adamw", 0.01, weight_decay=0.1, schedule="constant")
    outer = Optimizer("nesterov", 0.7, 0.9, schedule="constant")
    pair = Pair(Settings(consistency("local:3"), outer=outer), inner=inner)
    pair.deliver()
    w, theirs = start(), ShardOptimizer(inner, SPACE.size, SPACE.decay)
    server, v = start(), np.zeros(SPACE.size)
    for step in range(12):
        assert pair.replica.begin_step(0.0)
        assert np.array_equal(pair.replica.parameters, w)
        theirs.apply(w, gradient(step, w), update=step, rate=0.01)
        pair.finish_step()
        pair.deliver()
        if step % 3 == 2:
            delta = (server - w).astype(np.float64)
            v = 0.9 * v + delta
            np.testing.assert_allclose(pair.values(), server - 0.7 * (delta + 0.9 * v), atol=1e-6)
            server = pair.values()
            w = server.copy()
    assert sum(isinstance(message, PushPart) for message in pair.sent) == 2 * 4


def test_what_is_lost_with_a_link_is_sent_again_under_the_same_number() -> None:
    pair = Pair(Settings(consistency("sync")))
    pair.deliver()
    assert pair.replica.begin_step(0.0)
    pair.finish_step()
    lost = []
    while (message := pair.replica.next_message(0.0)) is not None:
        assert isinstance(message, PushPart)
        lost.append(message.push.sequence)
        pair.replica.sent(message)
    for shard in (0, 1):
        pair.replica.broken(shard, 0.0)
    pair.deliver()
    assert lost == [1, 1]
    assert [s.report().version for s in pair.shards] == [1, 1]
    assert pair.replica.begin_step(0.0)


def test_a_worker_that_was_set_aside_ends() -> None:
    pair = Pair(Settings())
    pair.deliver()
    pair.replica.answered(0, Answer(A, 0, 0, refusal=Refusal.SET_ASIDE), 0.0, took_values=False)
    assert pair.replica.ended is Refusal.SET_ASIDE
    assert not pair.replica.begin_step(0.0)
    assert pair.replica.refusals[Refusal.SET_ASIDE] == 1


def test_steps_out_of_order_are_bugs_and_said_so() -> None:
    pair = Pair(Settings())
    with pytest.raises(LocalProtocolError, match="not awaited"):
        pair.replica.gradient_ready("fc0/weight", 0.0)
    pair.deliver()
    assert pair.replica.begin_step(0.0)
    with pytest.raises(LocalProtocolError, match="step 0 has not ended"):
        pair.replica.begin_step(0.0)
    with pytest.raises(LocalProtocolError, match=r"ends without gradients of .'fc0/bias'"):
        pair.replica.end_step(0.0)
    pair.replica.gradient_ready("fc0/weight", 0.0)
    with pytest.raises(LocalProtocolError, match="'fc0/weight' is not awaited"):
        pair.replica.gradient_ready("fc0/weight", 0.0)
    with pytest.raises(LocalProtocolError, match="local:H needs"):
        Replica(A, pair.sharding, Settings(consistency("local:2")))


def step(pair: Pair) -> None:
    assert pair.replica.begin_step(0.0)
    pair.finish_step()


def test_before_a_mark_what_was_accrued_is_pushed_and_acknowledged() -> None:
    pair = Pair(Settings(n_push=4, n_fetch=4))
    pair.deliver()
    for _ in range(3):  # pushes at step 0 only
        step(pair)
        pair.deliver()
    with pytest.raises(LocalProtocolError, match="the mark 5 comes before all that was pushed"):
        pair.replica.mark(5, 0.0)
    assert not pair.replica.settle(0.0)
    pair.deliver()
    assert pair.replica.settle(0.0)
    assert [s.report().version for s in pair.shards] == [2, 2]
    pair.replica.mark(5, 0.0, fetch=True)
    assert not pair.replica.settle(0.0)
    assert not pair.replica.begin_step(0.0)
    pair.deliver()
    assert pair.replica.has_values
    pair.replica.install()
    assert np.array_equal(pair.replica.parameters, pair.values())
    pair.deliver()
    assert isinstance(pair.sent[-1], MarkNote)
    assert all(shard.is_marked(5) for shard in pair.shards)
    with pytest.raises(LocalProtocolError, match="the mark 5 does not come after 5"):
        pair.replica.mark(5, 0.0)
    step(pair)
    step(pair)
    pushes = [message for message in pair.sent if isinstance(message, PushPart)]
    pair.deliver()
    later = [message for message in pair.sent if isinstance(message, PushPart)][len(pushes) :]
    assert {message.push.mark for message in pushes} == {0}
    assert {message.push.mark for message in later} == {5}
    assert [s.report().version for s in pair.shards] == [2, 2]  # the servers have not done their part
    for shard in pair.shards:
        shard.served(5)
    pair.deliver()
    assert [s.report().version for s in pair.shards] == [3, 3]


def test_a_mark_is_told_again_when_a_link_breaks_and_from_time_to_time() -> None:
    pair = Pair(Settings())
    pair.deliver()
    assert pair.replica.settle(0.0)
    pair.replica.mark(3, 0.0)
    first = pair.replica.next_message(0.0)
    assert isinstance(first, MarkNote)
    assert pair.replica.next_message(0.0) is None
    pair.replica.broken(1, 1.0)
    assert isinstance(pair.replica.next_message(1.0), MarkNote)
    at = pair.replica.get_timer()
    assert at is not None
    pair.replica.handle_timer(at)
    again = pair.replica.next_message(at)
    assert isinstance(again, MarkNote)
    assert again.mark == first.mark
    for shard in pair.shards:
        shard.served(3)
    pair.deliver()
    assert pair.replica.begin_step(at)
    pair.finish_step()
    pair.deliver()
    at = pair.replica.get_timer()
    assert at is not None
    pair.replica.handle_timer(at)
    assert pair.replica.next_message(at) is None, "a push behind it has told"
    assert pair.replica.get_timer() is None


@pytest.mark.parametrize("how", ["ssp:1", "local:2"])
def test_where_steps_wait_for_others_every_mark_brings_values(how: str) -> None:
    pair = Pair(Settings(consistency(how)), inner=ADAGRAD)
    pair.deliver()
    assert pair.replica.settle(0.0)
    pair.replica.mark(1, 0.0)
    assert not pair.replica.has_values
    pair.deliver()
    assert pair.replica.has_values


def test_local_steps_are_counted_from_the_last_push() -> None:
    inner = Optimizer("sgd", 0.1, schedule="constant")
    pair = Pair(Settings(consistency("local:3")), inner=inner)
    pair.deliver()
    pushed = []
    for _ in range(7):
        step(pair)
        if pair.replica.step == 4:
            assert not pair.replica.settle(0.0)
        pair.deliver()
        pushed.append(pair.shards[0].report().version)
    assert pushed == [0, 0, 1, 2, 2, 2, 3]


def test_a_worker_that_goes_on_from_a_checkpoint_counts_its_steps_on() -> None:
    pair = Pair(Settings(n_push=2, n_fetch=2))
    pair.replica = Replica(A, pair.sharding, Settings(n_push=2, n_fetch=2), step=5)
    assert not pair.replica.begin_step(0.0)
    pair.deliver()
    step(pair)
    pair.deliver()
    assert (pair.replica.step, pair.shards[0].report().version) == (6, 0)
    step(pair)
    pair.deliver()
    assert pair.shards[0].report().version == 1


def test_bodies_lie_where_they_are_told_to() -> None:
    made: list[int] = []

    def buffer(nbytes: int) -> np.ndarray:
        made.append(nbytes)
        return np.zeros(nbytes, np.uint8)

    sharding = cut(SPACE, 2)
    Replica(A, sharding, Settings(), buffer=buffer)
    assert sorted(made) == sorted(2 * [4 * shard.size for shard in sharding.shards])
