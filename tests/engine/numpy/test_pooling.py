from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from p2pnn.engine.base import Context
from p2pnn.engine.numpy import pooling
from p2pnn.engine.numpy.engine import NumpyEngine
from tests.engine.numpy.build import Build, Run
from tests.engine.numpy.cases import cases_of
from tests.engine.numpy.checks import check_forward, check_gradient


@pytest.mark.parametrize("name", cases_of(pooling))
def test_gradients(name: str) -> None:
    check_gradient(name)


@pytest.mark.parametrize("name", cases_of(pooling, forward=True))
def test_forward(name: str) -> None:
    check_forward(name)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("size", "stride", "pad"), [(2, 2, 0), (3, 2, 1), (3, 1, 1), (2, 3, 0)])
def test_among_equals_the_first_takes_the_whole_gradient(dtype: Any, size: int, stride: int, pad: int) -> None:
    b = Build()
    x = b.op("Add", b.input(2, 8, 8), b.parameter(2, 8, 8))
    y = b.op("MaxPool", x, kernel_shape=(size, size), strides=(stride, stride), pads=(pad,) * 4)
    graph = b.graph({"y": y}, [b.op("MeanSquaredError", y, b.input(*b.known[y].shape[1:]))])
    run = Run(graph, [0] * len(graph.ops), rows=2, engine=NumpyEngine(dtype))
    values, context = run.values[0], Context(1, 0, 0, 2)
    run.tensors[0].parameters["parameter0"].fill(0)
    places = np.random.default_rng(1).integers(-1, 2, values["input0"].shape)  # many equal ones
    values["input0"][...] = places
    values["input1"].fill(0)
    run.programs[0].forward(0, context, values)
    run.programs[0].backward(0, context, {}, index=0)
    made, shape = values["input0"], values["input1"].shape
    expected = np.zeros(made.shape, dtype)
    for n, row, column, c in np.ndindex(*shape):
        window = [
            (made[n, i, j, c], -j, -i)
            for i in range(row * stride - pad, row * stride - pad + size)
            for j in range(column * stride - pad, column * stride - pad + size)
            if 0 <= i < 8 and 0 <= j < 8
        ]
        highest, j, i = max(window)
        expected[n, -i, -j, c] += 2 * highest / np.prod(shape)
    found = run.end_step()["parameter0"]
    np.testing.assert_allclose(found, expected.sum(axis=0).transpose(2, 0, 1), rtol=1e-5, atol=1e-7)
