from __future__ import annotations

import numpy as np
import pytest

from p2pnn.engine.base import Context
from p2pnn.engine.numpy import reduction
from tests.engine.numpy.build import Build, Run
from tests.engine.numpy.cases import cases_of
from tests.engine.numpy.checks import check_forward, check_gradient


@pytest.mark.parametrize("name", cases_of(reduction))
def test_gradients(name: str) -> None:
    if not name.startswith("ArgMax"):
        check_gradient(name)


@pytest.mark.parametrize("name", cases_of(reduction, forward=True))
def test_forward(name: str) -> None:
    check_forward(name)


def test_equal_largest_ones_share_the_gradient() -> None:
    b = Build()
    y = b.op("ReduceMax", b.op("Add", b.input(4), b.parameter(4)), axes=(1,), keepdims=0)
    graph = b.graph({}, [b.op("MeanSquaredError", y, b.input())])
    run = Run(graph, [0] * len(graph.ops), rows=1)
    run.tensors[0].parameters["parameter0"][...] = (2, 1, 2, 2)
    run.load(0, {"input0": np.zeros((1, 4), np.float32), "input1": np.zeros(1, np.float32)})
    run.programs[0].forward(0, Context(0, 0, 0, 1), run.values[0])
    run.programs[0].backward(0, Context(0, 0, 0, 1), {}, index=0)
    np.testing.assert_allclose(run.end_step(1)["parameter0"], np.array([4, 0, 4, 4]) / 3, rtol=1e-6)
