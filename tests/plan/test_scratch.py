"""What kernels work in: the method and the blocks of convolutions as the engine takes them, and the order of sizes."""

from __future__ import annotations

import pytest

from p2pnn.engine.numpy import attention, banded, convolution, erf, gather, kernel, winograd
from p2pnn.engine.numpy.banded import BandedConvolution, tiling
from p2pnn.engine.numpy.convolution import method_of
from p2pnn.engine.numpy.geometry import Geometry
from p2pnn.engine.numpy.winograd import WinogradConvolution
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
        (True, (16, 14, 14), 5, 1, 0, 32),
        (False, (3, 32, 32), 3, 1, 1, 16),
        (True, (64, 28, 28), 5, 1, 2, 64),
        (True, (64, 28, 28), 1, 1, 0, 64),
        (True, (64, 28, 28), 1, 2, 0, 64),
        (True, (64, 8, 8), 3, 1, 3, 64),
    ],
)
def test_convolutions_run_by_the_method_that_the_engine_chooses(
    training: bool, shape: tuple[int, int, int], size: int, strides: int, pads: int, outputs: int
) -> None:
    extent = (shape[1] + 2 * pads - size) // strides + 1
    numbers = (4, shape[1], shape[2], shape[0], extent, extent, outputs)
    sides = ((size, size), (strides, strides), (pads,) * 4, (1, 1), 1)
    window, geometry = scratch.Window(*numbers, *sides), Geometry(*numbers, *sides)
    method = method_of(geometry, training)
    assert scratch.tiled(window) is (method is WinogradConvolution)
    assert scratch.bands(window, training) == (tiling(geometry, training)[1] if method is BandedConvolution else 0)


def test_blocks_are_as_large_as_the_engine_makes_them() -> None:
    assert scratch.BLOCK_BYTES == kernel.BLOCK_BYTES
    assert scratch.QUERIES == attention.QUERIES
    assert scratch.ERF_BLOCK == erf.BLOCK
    assert scratch.ONE_HOT_ROWS_MAX == gather.ONE_HOT_ROWS_MAX
    assert scratch.BANDED_ELEMENTS_MAX == convolution.BANDED_ELEMENTS_MAX
    assert scratch.BANDED_ACROSS_MAX == banded.ACROSS_MAX
    assert scratch.TILED_BLOCK_BYTES == winograd.BLOCK_BYTES


def test_training_a_convolution_takes_more_room_than_running_it() -> None:
    op = Op("Conv", "c", ("x", "w"), ("y",), {"strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1), "group": 1})
    shapes = [(4, 1, 28, 28), (6, 1, 5, 5)]
    run = scratch.room(op, shapes, (4, 6, 24, 24), (False, False), training=False)
    train = scratch.room(op, shapes, (4, 6, 24, 24), (False, True), training=True)
    across = scratch.bands(scratch.Window.of(op, shapes, (4, 6, 24, 24)), False)
    matrix = 4 * 5 * (across + 4) * across * 6
    assert 1 < across < 24
    assert run.own == train.own == matrix
    assert train.scratch - run.scratch == 2 * matrix
