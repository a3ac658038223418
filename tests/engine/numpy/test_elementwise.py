from __future__ import annotations

import hashlib

import numpy as np
import pytest

from p2pnn.engine.base import Context
from p2pnn.engine.numpy import elementwise
from tests.engine.numpy.build import Build, Run
from tests.engine.numpy.cases import cases_of
from tests.engine.numpy.checks import ROWS, check_forward, check_gradient


@pytest.mark.parametrize("name", cases_of(elementwise))
def test_gradients(name: str) -> None:
    check_gradient(name)


@pytest.mark.parametrize("name", cases_of(elementwise, forward=True))
def test_forward(name: str) -> None:
    check_forward(name)


def test_dropout_keeps_the_mean_and_draws_by_step_micro_batch_and_op() -> None:
    b = Build()
    x = b.input(40, 50)
    first, second = b.op("Dropout", x, ratio=0.25), b.op("Dropout", x, ratio=0.25)
    graph = b.graph({}, [b.op("MeanSquaredError", v, b.input(40, 50)) for v in (first, second)])
    run = Run(graph, [0, 1, 2, 3], rows=ROWS)
    run.values[0][x][...] = 1
    masks = []
    for context in (Context(1, 0, 0, ROWS), Context(1, 0, 1, ROWS), Context(1, 1, 0, ROWS), Context(2, 0, 0, ROWS)):
        for program, name in zip(run.programs, (first, second), strict=False):
            program.forward(0, context, run.values[0])
            masks.append(run.values[0][name].copy())
            assert set(np.unique(masks[-1])) == {0, np.float32(1 / 0.75)}
            assert abs(masks[-1].mean() - 1) < 0.05
    assert len({mask.tobytes() for mask in masks}) == len(masks)
    run.programs[0].forward(0, Context(1, 0, 0, ROWS), run.values[0])
    np.testing.assert_array_equal(run.values[0][first], masks[0])


def test_dice_draw_what_a_generator_of_that_key_draws_whatever_was_drawn_before() -> None:
    dice = elementwise.Dice(9)
    for context in (Context(1, 2, 3, ROWS), Context(5, 6, 7, ROWS), Context(1, 2, 3, ROWS)):
        text = f"dropout {context.seed} {context.step} {context.micro_batch} 9"
        key = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")
        fresh = np.random.Generator(np.random.Philox(key=key)).random(77, np.float32)
        np.testing.assert_array_equal(dice.keyed(context).random(77, np.float32), fresh)
