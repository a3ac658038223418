from __future__ import annotations

import numpy as np
import pytest

from p2pnn.engine.base import Context
from p2pnn.engine.numpy import normalization
from tests.engine.numpy.build import Build, Run, batch, fill
from tests.engine.numpy.cases import cases_of
from tests.engine.numpy.checks import ROWS, check_forward, check_gradient


@pytest.mark.parametrize("name", cases_of(normalization))
def test_gradients(name: str) -> None:
    check_gradient(name)


@pytest.mark.parametrize("name", cases_of(normalization, forward=True))
def test_forward(name: str) -> None:
    check_forward(name)


def test_batch_normalization_in_training_uses_and_reports_the_batch() -> None:
    b = Build()
    y = b.norm(b.input(4, 5, 6))
    graph = b.graph({}, [b.op("MeanSquaredError", y, b.input(4, 5, 6))])
    run = Run(graph, [0, 1], rows=ROWS)
    held = {**fill(run.engine, graph, run.tensors[0])}
    data = batch(graph, ROWS)
    run.load(0, data)
    run.programs[0].forward(0, Context(1, 0, 0, ROWS), run.values[0])
    x = data["input0"].astype(np.float64)
    mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3))
    shape = (1, 4, 1, 1)
    expected = (x - mean.reshape(shape)) / np.sqrt(variance.reshape(shape) + 1e-5)
    expected = expected * held["parameter0"].reshape(shape) + held["parameter1"].reshape(shape)
    value = next(v for v in graph.values if v.name == y)
    np.testing.assert_allclose(run.engine.export_value(value, run.values[0][y]), expected, rtol=1e-4, atol=1e-5)
    (statistics,) = run.tensors[0].statistics[0]
    np.testing.assert_allclose(statistics, [mean, variance], rtol=1e-5, atol=1e-6)
    run.end_step()
    folded = 0.9 * held["state0"] + 0.1 * mean, 0.9 * held["state1"] + 0.1 * variance
    np.testing.assert_allclose([run.state["state0"], run.state["state1"]], folded, rtol=1e-5)
    assert not run.tensors[0].statistics
