from __future__ import annotations

import numpy as np
import pytest

from p2pnn.engine.base import Context
from p2pnn.engine.numpy import arithmetic
from tests.engine.numpy.build import Build, Run
from tests.engine.numpy.cases import cases_of, image, positive
from tests.engine.numpy.checks import check_forward, check_gradient, check_graph_gradient


@pytest.mark.parametrize("name", cases_of(arithmetic))
def test_gradients(name: str) -> None:
    check_gradient(name)


@pytest.mark.parametrize("kind", ["Add", "Sub", "Mul", "Div", "Pow", "Where"])
@pytest.mark.parametrize("first", [True, False])
def test_a_row_that_is_a_cube_does_not_hide_how_it_lies(kind: str, first: bool) -> None:
    """A parameter (1, n, n, n) lies as in ONNX, a value beside it channels last; with one row their shapes are the same."""
    b = Build()
    condition = [b.input(3, 3, 3, dtype="bool")] if kind == "Where" else []
    pair = [positive(b, image(b, 3, 3, 3)), b.parameter(1, 3, 3, 3)]
    if kind == "Div" and not first:
        pair[1] = b.op("Exp", b.op("Add", pair[1], b.input(3, 3, 3)))
    y = b.op(kind, *condition, *(pair if first and kind != "Pow" else pair[::-1] if kind != "Pow" else pair))
    graph = b.graph({"y": y}, [b.op("MeanSquaredError", y, b.input(3, 3, 3))])
    for rows in (1, 2):
        check_graph_gradient(graph, rows)


def test_the_gradient_of_a_power_is_that_of_torch_at_zero() -> None:
    base, exponent = [0.0, 0.0, 0.0, 2.0], [0.0, 1.0, 2.0, 0.0]
    b = Build()
    y = b.op("Pow", b.op("Add", b.input(4), b.parameter(4)), b.parameter(4))
    graph = b.graph({"y": y}, [b.op("MeanSquaredError", y, b.input(4))])
    run = Run(graph, [0] * len(graph.ops), rows=1)
    held = run.tensors[0].parameters
    held["parameter0"][...], held["parameter1"][...] = base, exponent
    run.load(0, {value.name: np.zeros((1, 4), np.float32) for value in graph.inputs})
    context = Context(1, 0, 0, 1, loss_scale=2.0)  # the mean's gradient is then y itself, for a target of 0
    run.programs[0].forward(0, context, run.values[0])
    run.programs[0].backward(0, context, {}, index=0)
    found = run.end_step()
    np.testing.assert_array_equal(found["parameter0"], [0.0, 0.0, 0.0, 0.0])
    np.testing.assert_allclose(found["parameter1"], [0.0, 0.0, 0.0, np.log(2.0)], rtol=1e-6)


@pytest.mark.parametrize("name", cases_of(arithmetic, forward=True))
def test_forward(name: str) -> None:
    check_forward(name)
