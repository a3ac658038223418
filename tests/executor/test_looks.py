"""What a process sees of its own gradients and activations, and what looking may cost."""

from __future__ import annotations

import numpy as np
import pytest

from p2pnn.executor.looks import COST_MAX, INTERVAL_S, SAMPLE, Looks, sample
from p2pnn.model.graph import Initializer, Parameter
from p2pnn.ps.allotment import Allotment

PARAMETERS = [Parameter(name, (4,), Initializer("constant")) for name in ("w", "b")]
ZERO, ONE = np.zeros(4, np.float32), np.ones(4, np.float32)


class Clock:
    """now: moves with each question, as if looking took so long."""

    def __init__(self, tick: float = 0.0) -> None:
        self.now, self.tick = 0.0, tick

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


def looks(clock: Clock, allotment: Allotment | None = None, step: int = 0, warmup_steps: int = 0) -> Looks:
    return Looks(PARAMETERS, allotment or Allotment(), step, warmup_steps, clock)


def test_only_what_is_zero_for_long_is_told() -> None:
    clock = Clock()
    found = looks(clock)
    for step in range(0, 60, 5):
        clock.now += 2 * INTERVAL_S
        look = found.forward(step, 3 * step)
        assert look is not None
        look(7, ZERO)
        look(8, ONE)
        assert found.forward(step, 3 * step) is not None, "the node's other segments, of the same micro-batch"
        assert found.forward(step, 3 * step + 1) is None
        assert found.wants(step)
        assert not found.wants(step + 1)
        found.gradient("w", ZERO)
        found.gradient("b", ONE if step == 20 else ZERO)
        found.done()
        health = found.health()
        assert (health.dead, health.still) == (({7: 0}, {0: 0}) if step >= 20 else ({}, {})) or step > 40
    assert health.dead == {7: 0}
    assert health.still == {0: 0, 1: 25}


def test_a_gradient_is_zero_only_if_all_of_it_is() -> None:
    clock = Clock()
    found, sparse = looks(clock), np.zeros((300, 1000), np.float32)
    sparse[17, 999] = 1e-30
    for step in range(0, 60, 5):
        clock.now += 1
        found.forward(step, step)
        found.gradient("w", sparse)
        found.gradient("b", np.zeros_like(sparse))
        found.done()
    assert found.health().still == {1: 0}


def test_a_weight_without_gradient_is_compared_with_itself_behind_the_warm_up() -> None:
    clock = Clock()
    found = looks(clock, warmup_steps=50)
    for step in range(0, 100, 5):
        clock.now += 1
        found.forward(step, step)
        found.weight("w", ONE)
        found.weight("b", ONE * step)
        found.done()
    assert found.health().still == {0: 55}


def test_looking_takes_its_share_of_the_time_and_no_more() -> None:
    clock = Clock(tick=0.01)
    found, spent = looks(clock), 0.0
    for step in range(20_000):
        clock.now += 0.02
        look = found.forward(step, step)
        if look is None:
            continue
        before = clock.now
        look(0, ONE)
        found.gradient("w", ONE)
        spent += clock.now - before
        found.done()
    assert 0 < spent / 2 < 1.1 * COST_MAX * clock.now, "half of the ticks lie before a look's beginning"
    quick = looks(Clock())
    assert quick.forward(0, 0) is not None
    quick.done()
    assert quick.forward(1, 1) is None, "nothing to see within so short a time"


def test_a_look_that_was_never_done_is_given_up() -> None:
    """A worker may leave steps out."""
    clock = Clock()
    found = looks(clock)
    assert found.forward(3, 3) is not None
    clock.now += 1
    assert found.forward(9, 9) is not None
    assert found.wants(9)
    assert not found.wants(3)


@pytest.mark.parametrize(
    ("allotment", "steps"), [(None, 20), (Allotment(3, 1), 20), (Allotment(3, 1, shared=False), 7)]
)
def test_the_first_steps_are_summed_apart(allotment: Allotment | None, steps: int) -> None:
    found = looks(Clock(), allotment, step=100)
    for step in range(100, 200):
        found.trained(step, 2.0, 4)
    assert found.health().begun == (2.0 * steps, 4 * steps)
    assert found.health().not_finite == -1


def test_a_loss_that_is_no_number_has_the_jobs_step() -> None:
    found = looks(Clock(), Allotment(3, 1, shared=False))
    assert found.trained(4, 0.0, 0, finite=False), "at once"
    assert not found.trained(5, 0.0, 0, finite=False)
    assert found.health().not_finite == 13


@pytest.mark.parametrize("shape", [(3,), (5, 7), (64, 12, 12, 32), (100_000, 3), (9, 4096), (2, 999_983)])
def test_a_sample_is_small_and_has_elements_of_each_channel(shape: tuple[int, ...]) -> None:
    array = np.zeros(shape, np.float32)
    array += np.arange(shape[-1], dtype=np.float32)
    found = sample(array)
    assert len(found) <= SAMPLE
    assert np.may_share_memory(found, array)
    assert len(set(found.tolist())) >= min(shape[-1], 0.4 * SAMPLE)
    turned = array.transpose(range(array.ndim)[::-1])
    assert np.may_share_memory(sample(turned), array)
