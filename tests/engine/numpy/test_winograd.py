from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from p2pnn.engine.base import Context
from p2pnn.engine.numpy.engine import NumpyEngine
from p2pnn.engine.numpy.geometry import Geometry
from p2pnn.engine.numpy.winograd import WinogradConvolution
from tests.engine.numpy.build import Build, Run, batch
from tests.engine.numpy.checks import check_graph_gradient
from tests.engine.numpy.methods import SHAPES, check_blocks


@pytest.mark.parametrize("name", ["plain", "pads", "odd", "wide"])
def test_blocks_of_any_size_give_one_result(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_blocks(name, WinogradConvolution, monkeypatch)


@pytest.mark.parametrize("pads", [(0, 0, 0, 0), (1, 1, 1, 1), (2, 0, 1, 2)])
@pytest.mark.parametrize("size", [3, 4, 7])
def test_gradients_are_right_where_the_engine_chooses_it(size: int, pads: tuple[int, ...]) -> None:
    b = Build()
    x = b.op("Add", b.input(32, size, size + 1), b.parameter(32, size, size + 1))
    y = b.conv(x, 32, 3, pads=pads)
    graph = b.graph({"y": y}, [b.op("MeanSquaredError", y, b.input(*b.known[y].shape[1:]))])
    kernel = Run(graph, [0] * len(graph.ops), rows=1).programs[0]._plan.forward[1].kernel  # type: ignore[attr-defined]
    assert isinstance(kernel._method, WinogradConvolution)
    check_graph_gradient(graph)


def test_it_loses_no_more_than_two_bits_of_a_float32() -> None:
    """Its worst error over outputs is compared with that of adding up as many products in any order."""
    b = Build()
    y = b.conv(b.input(64, 12, 12), 64, 3, pads=(1, 1, 1, 1), bias=False)
    graph = b.graph({"y": y})
    made = []
    for dtype in (np.float32, np.float64):
        run = Run(graph, [0], rows=2, mode="predict", engine=NumpyEngine(dtype))
        run.load(0, batch(graph, 2))
        run.programs[0].forward(0, Context(1, 0, 0, 2), run.values[0])
        made.append(run.values[0][y].astype(np.float64))
    error, size = np.abs(made[0] - made[1]).max(), np.abs(made[1]).max()
    assert 0 < error / size < 4 * np.finfo(np.float32).eps


@pytest.mark.parametrize(
    ("attributes", "kernel", "fits"),
    [
        ({}, (3, 3), True),
        ({"pads": (2, 2, 2, 2)}, (3, 3), True),
        ({"pads": (3, 0, 0, 0)}, (3, 3), False),
        ({"strides": (1, 2)}, (3, 3), False),
        ({"dilations": (2, 1)}, (3, 3), False),
        ({"group": 2}, (3, 3), False),
        ({}, (3, 5), False),
    ],
)
def test_which_convolutions_it_is_for(attributes: dict[str, Any], kernel: tuple[int, int], fits: bool) -> None:
    plain = {"strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1), "group": 1, **attributes}
    assert WinogradConvolution.fits(Geometry(1, 9, 9, 4, 7, 7, 4, kernel, **plain)) is fits


def test_the_shapes_here_are_those_of_stride_one() -> None:
    assert not any({"strides", "dilations", "group"} & set(SHAPES[name]) for name in ("plain", "pads", "odd", "wide"))
