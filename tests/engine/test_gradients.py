"""Every kernel's gradient against central finite differences in float64.

The loss is Σ weights · output with random weights: the mean squared error to a target that makes its gradient random.
"""

from __future__ import annotations

import numpy as np
import pytest

from p2pnn.engine.base import Context
from p2pnn.engine.numpy.engine import NumpyEngine
from p2pnn.engine.numpy.table import KERNELS
from p2pnn.model import ops
from p2pnn.model.graph import Graph
from tests.engine.build import Array, Build, Run, fill

ROWS, SCALE = 3, 0.5


def image(b: Build, channels: int = 4, height: int = 7, width: int = 6) -> str:
    """A value of rank 4 through which gradients flow."""
    return b.op("Add", b.input(channels, height, width), b.parameter(channels, height, width))


def line(b: Build, features: int = 5) -> str:
    return b.op("Add", b.input(features), b.parameter(features))


def sequence(b: Build) -> str:
    return b.op("Add", b.input(4, 3), b.parameter(4, 3))


CASES = {
    "Relu": lambda b: b.op("Relu", image(b)),
    "Sigmoid": lambda b: b.op("Sigmoid", image(b)),
    "Tanh": lambda b: b.op("Tanh", line(b)),
    "Dropout": lambda b: b.op("Dropout", image(b), ratio=0.4),
    "Dropout none": lambda b: b.op("Dropout", line(b), ratio=0.0),
    "Softmax": lambda b: b.op("Softmax", line(b)),
    "Softmax channels": lambda b: b.op("Softmax", image(b), axis=1),
    "Softmax middle": lambda b: b.op("Softmax", sequence(b), axis=1),
    "Gemm": lambda b: b.linear(line(b), 4),
    "Gemm no bias": lambda b: b.op("Gemm", line(b), b.parameter(4, 5)),
    "MatMul weight": lambda b: b.op("MatMul", sequence(b), b.parameter(3, 2)),
    "MatMul rank 2": lambda b: b.op("MatMul", line(b), b.parameter(5, 2)),
    "MatMul left weight": lambda b: b.op("MatMul", b.parameter(6, 4), sequence(b)),
    "MatMul images": lambda b: b.op("MatMul", image(b, 2, 3, 4), image(b, 2, 4, 5)),
    "MatMul broadcast": lambda b: b.op("MatMul", image(b, 2, 3, 4), image(b, 1, 4, 5)),
    "MatMul image weight": lambda b: b.op("MatMul", image(b, 2, 3, 4), b.parameter(2, 4, 5)),
    "Conv": lambda b: b.conv(image(b), 5, 3),
    "Conv pads": lambda b: b.conv(image(b), 5, 3, pads=(1, 1, 1, 1)),
    "Conv uneven": lambda b: b.conv(image(b), 3, 3, pads=(2, 0, 1, 3), strides=(2, 1)),
    "Conv strides": lambda b: b.conv(image(b, 3, 8, 7), 2, 3, strides=(3, 2), pads=(1, 1, 1, 1)),
    "Conv dilations": lambda b: b.conv(image(b, 2, 9, 8), 3, 2, dilations=(3, 2), pads=(1, 2, 2, 1)),
    "Conv strides dilations": lambda b: b.conv(
        image(b, 2, 9, 9), 3, 3, dilations=(2, 3), strides=(2, 2), pads=(1, 2, 2, 1)
    ),
    "Conv groups": lambda b: b.conv(image(b), 6, 3, group=2, pads=(1, 1, 1, 1)),
    "Conv depthwise": lambda b: b.conv(image(b), 4, 3, group=4, strides=(2, 2), pads=(1, 1, 1, 1), bias=False),
    "Conv 1x1": lambda b: b.conv(image(b), 3, 1),
    "Conv 1x1 strides": lambda b: b.conv(image(b), 3, 1, strides=(2, 2)),
    "Conv wide stride": lambda b: b.conv(image(b, 2, 9, 9), 3, 2, strides=(4, 3)),
    "Conv banded": lambda b: b.conv(image(b, 1, 8, 7), 2, 3),
    "Conv many": lambda b: b.conv(image(b, 40, 6, 5), 9, 3, pads=(1, 1, 1, 1)),
    "MaxPool": lambda b: b.op("MaxPool", image(b), kernel_shape=(2, 2), strides=(2, 2)),
    "MaxPool overlapping": lambda b: b.op("MaxPool", image(b), kernel_shape=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1)),
    "MaxPool rows": lambda b: b.op("MaxPool", image(b), kernel_shape=(3, 1), strides=(3, 2)),
    "MaxPool apart": lambda b: b.op("MaxPool", image(b), kernel_shape=(2, 2), strides=(3, 4), pads=(1, 0, 0, 1)),
    "AveragePool": lambda b: b.op("AveragePool", image(b), kernel_shape=(2, 3), strides=(2, 1)),
    "AveragePool padding": lambda b: b.op(
        "AveragePool", image(b), kernel_shape=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1), count_include_pad=1
    ),
    "AveragePool valid": lambda b: b.op(
        "AveragePool", image(b), kernel_shape=(3, 3), strides=(2, 2), pads=(1, 0, 2, 1)
    ),
    "GlobalAveragePool": lambda b: b.op("GlobalAveragePool", image(b)),
    "BatchNormalization": lambda b: b.norm(image(b)),
    "BatchNormalization rank 2": lambda b: b.norm(line(b)),
    "BatchNormalization rank 3": lambda b: b.norm(sequence(b)),
    "BatchNormalization no gradient": lambda b: b.norm(b.input(4, 3, 3)),
    "Add": lambda b: b.op("Add", image(b), image(b)),
    "Add itself": lambda b: (lambda x: b.op("Add", x, x))(image(b)),
    "Add channels": lambda b: b.op("Add", image(b), b.parameter(4, 1, 1)),
    "Add column": lambda b: b.op("Add", b.parameter(7, 1), image(b)),
    "Add value": lambda b: b.op("Add", image(b, 1, 7, 6), image(b, 4, 1, 6)),
    "Add scalar": lambda b: b.op("Add", sequence(b), b.parameter(1)),
    "Sub": lambda b: b.op("Sub", sequence(b), sequence(b)),
    "Sub itself": lambda b: (lambda x: b.op("Sub", b.op("Tanh", x), x))(line(b)),
    "Sub row": lambda b: b.op("Sub", b.parameter(6), image(b)),
    "Mul": lambda b: b.op("Mul", image(b), image(b)),
    "Mul itself": lambda b: (lambda x: b.op("Mul", x, x))(sequence(b)),
    "Mul channels": lambda b: b.op("Mul", image(b), b.parameter(4, 1, 1)),
    "Mul whole": lambda b: b.op("Mul", image(b), b.parameter(4, 7, 6)),
    "Mul conv weight": lambda b: (lambda w: b.op("Mul", b.op("Conv", image(b, 2, 5, 5), w), w))(
        b.parameter(1, 2, 3, 3)
    ),
    "Concat": lambda b: b.op("Concat", image(b, 2, 3, 4), b.input(3, 3, 4), image(b, 1, 3, 4), axis=1),
    "Concat width": lambda b: b.op("Concat", image(b, 2, 3, 4), image(b, 2, 3, 1), axis=3),
    "Reshape": lambda b: b.op("Reshape", sequence(b), shape=(0, 2, 6)),
    "Reshape image": lambda b: b.op("Reshape", image(b), shape=(0, 6, 4, 7)),
    "Reshape to image": lambda b: b.op("Reshape", sequence(b), shape=(0, 2, 3, 2)),
    "Flatten": lambda b: b.op("Flatten", image(b)),
    "Transpose": lambda b: b.op("Transpose", image(b), perm=(0, 3, 1, 2)),
    "Transpose rank 3": lambda b: b.op("Transpose", sequence(b), perm=(0, 2, 1)),
    "ReduceMean": lambda b: b.op("ReduceMean", image(b), axes=(2, 3), keepdims=0),
    "ReduceMean one": lambda b: b.op("ReduceMean", image(b), axes=(2,), keepdims=0),
    "ReduceMean keep": lambda b: b.op("ReduceMean", image(b), axes=(1,), keepdims=1),
    "MeanSquaredError": image,
    "SoftmaxCrossEntropyLoss": None,
}
NO_GRADIENT = {"ArgMax", "Accuracy", "TopKAccuracy", "AbsoluteError", "SquaredError", "TokenLoss"}


def build(name: str) -> Graph:
    b = Build()
    case = CASES[name]
    if case is None:
        return b.classify(line(b, 10))
    y = case(b)
    target = b.input(*b.known[y].shape[1:])
    return b.graph({"y": y}, [b.op("MeanSquaredError", y, target)])


def test_every_kind_has_a_case_and_a_kernel() -> None:
    assert set(KERNELS) == set(ops.TABLE)
    assert {name.split()[0] for name in CASES} == set(ops.TABLE) - NO_GRADIENT


@pytest.mark.parametrize("name", CASES)
def test_gradient_is_that_of_finite_differences(name: str) -> None:
    graph = build(name)
    run = Run(graph, [0] * len(graph.ops), rows=ROWS, engine=NumpyEngine(np.float64))
    program, tensors, context = run.programs[0], run.tensors[0], Context(7, 3, 0, ROWS, SCALE)
    rng = np.random.default_rng(3)
    for array in tensors.parameters.values():
        array[...] = rng.standard_normal(array.shape)
    for value in graph.inputs:
        array = run.values[0][value.name]
        array[...] = rng.integers(0, 10, array.shape) if array.dtype == np.int64 else rng.standard_normal(array.shape)

    def loss() -> float:
        program.forward(0, context, run.values[0])
        return float(run.values[0][graph.losses[0]])

    loss()
    program.backward(0, context, {}, first=True)
    found = {name: array.copy() for name, array in run.engine.end_step(graph, tensors).items()}
    assert set(found) == {p.name for p in graph.parameters}
    for parameter, gradient in found.items():
        check(tensors.parameters[parameter], gradient, loss, rng)


def check(x: Array, gradient: Array, loss, rng: np.random.Generator, step: float = 1e-6) -> None:  # type: ignore[no-untyped-def]
    """Compare up to 12 partial derivatives, and one along a random direction in which every element counts."""
    before = x.copy()

    def slope(direction: Array) -> float:
        x[...] = before + step * direction
        up = loss()
        x[...] = before - step * direction
        down = loss()
        x[...] = before
        return (up - down) / (2 * step)

    scale = 1 + np.abs(gradient).max()
    for place in rng.choice(x.size, min(x.size, 12), replace=False):
        direction = np.zeros(x.size)
        direction[place] = 1
        direction = direction.reshape(x.shape)
        assert gradient.reshape(-1)[place] / SCALE == pytest.approx(slope(direction), abs=2e-7 * scale, rel=1e-5)
    direction = rng.standard_normal(x.shape)
    total = float((gradient * direction).sum())
    assert total / SCALE == pytest.approx(slope(direction), abs=1e-6 * scale * np.sqrt(x.size), rel=1e-5)


def test_later_micro_batches_add_to_the_first() -> None:
    graph = build("Conv")
    run = Run(graph, [0] * len(graph.ops), rows=ROWS, engine=NumpyEngine(np.float64))
    fill(run.engine, graph, run.tensors[0])
    for value in graph.inputs:
        run.values[0][value.name][...] = np.random.default_rng(1).standard_normal(run.values[0][value.name].shape)
    context = Context(7, 3, 0, ROWS)
    once: dict[tuple[str, int], Array] = {}
    for first in (True, False):
        run.programs[0].forward(0, context, run.values[0])
        run.programs[0].backward(0, context, {}, first=first)
        once = once or {key: array.copy() for key, array in run.tensors[0].gradients.items()}
    for key, array in run.tensors[0].gradients.items():
        np.testing.assert_array_equal(array, 2 * once[key])
