"""What kernels work in: the method and the blocks of convolutions as the engine takes them, and the order of sizes."""

from __future__ import annotations

import pytest

from p2pnn.engine.numpy import convolution, kernel
from p2pnn.engine.numpy.convolution import prefers_bands
from p2pnn.engine.numpy.geometry import Geometry
from p2pnn.model.graph import Op
from p2pnn.plan import scratch


@pytest.mark.parametrize(
    ("training", "shape", "size", "strides", "pads", "outputs"),
    [
        (True, (1, 28, 28), 5, 1, 0, 6),
        (True, (3, 14, 14), 3, 1, 1, 8),
        (True, (16, 16, 16), 3, 2, 1, 32),
        (False, (6, 12, 12), 5, 1, 2, 16),
        (True, (64, 8, 8), 3, 1, 1, 64),
    ],
)
def test_convolutions_run_by_the_method_that_the_engine_chooses(
    training: bool, shape: tuple[int, int, int], size: int, strides: int, pads: int, outputs: int
) -> None:
    extent = (shape[1] + 2 * pads - size) // strides + 1
    numbers = (4, shape[1], shape[2], shape[0], extent, extent, outputs)
    sides = ((size, size), (strides, strides), (pads,) * 4, (1, 1), 1)
    assert scratch.bands(scratch.Window(*numbers, *sides), training) == prefers_bands(
        Geometry(*numbers, *sides), training
    )


def test_blocks_are_as_large_as_the_engine_makes_them() -> None:
    assert scratch.BLOCK_BYTES == kernel.BLOCK_BYTES
    assert scratch.BANDED_ELEMENTS_MAX == convolution.BANDED_ELEMENTS_MAX


def test_training_a_convolution_takes_more_room_than_running_it() -> None:
    op = Op("Conv", "c", ("x", "w"), ("y",), {"strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1), "group": 1})
    shapes = [(4, 1, 28, 28), (6, 1, 5, 5)]
    run = scratch.room(op, shapes, (4, 6, 24, 24), (False, False), training=False)
    train = scratch.room(op, shapes, (4, 6, 24, 24), (False, True), training=True)
    matrix = 4 * 5 * 28 * 24 * 6
    assert run.own == train.own == matrix
    assert train.scratch - run.scratch == 2 * matrix
