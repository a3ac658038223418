from __future__ import annotations

import numpy as np
import pytest

from p2pnn.engine.numpy import loss
from p2pnn.errors import DataError
from tests.engine.numpy.build import Build
from tests.engine.numpy.cases import cases_of, image, line
from tests.engine.numpy.checks import check_forward, check_gradient, check_graph_forward, check_graph_gradient, forward


@pytest.mark.parametrize("name", cases_of(loss))
def test_gradients(name: str) -> None:
    check_gradient(name)


@pytest.mark.parametrize("name", cases_of(loss, forward=True))
def test_forward(name: str) -> None:
    check_forward(name)


def test_cross_entropy_gradient() -> None:
    b = Build()
    check_graph_gradient(b.classify(line(b, 10)))


@pytest.mark.parametrize(
    ("shape", "axis"), [((4, 3), 2), ((4, 3), 1), ((4, 7, 6), 1)], ids=["sequence", "channels", "image"]
)
def test_cross_entropy_of_positions(shape: tuple[int, ...], axis: int) -> None:
    b = Build()
    scores = b.op("Add", b.input(*shape), b.parameter(*shape))
    wide = b.op("Concat", scores, scores, scores, scores, axis=axis)  # classes for every random label
    labels = b.input(*(n for i, n in enumerate(shape, 1) if i != axis), dtype="int64")
    loss = b.op("SoftmaxCrossEntropyLoss", wide, labels, axis=axis)
    check_graph_gradient(b.graph({}, [loss]))
    if axis == 1:
        check_graph_forward(b.graph({"y": loss}), loss)


def test_mean_squared_error_gradient_of_images() -> None:
    b = Build()
    check_graph_gradient(b.graph({}, [b.op("MeanSquaredError", image(b), b.input(4, 7, 6))]))


def test_cross_entropy_forward() -> None:
    b = Build()
    y = b.op("SoftmaxCrossEntropyLoss", line(b, 10), b.input(dtype="int64"))
    check_graph_forward(b.graph({"y": y}), y)


def test_cross_entropy_stays_finite_and_exact_for_extreme_scores() -> None:
    b = Build()
    graph = b.graph({}, [b.op("SoftmaxCrossEntropyLoss", b.input(2), b.input(dtype="int64"))])
    data = {"input0": np.array([[300.0, -200.0], [0.0, 0.0]], np.float32), "input1": np.array([1, 0])}
    made, _ = forward(graph, "evaluate", data, 2)
    assert made[graph.losses[0]] == pytest.approx((500 + np.log(2)) / 2, rel=1e-6)


@pytest.mark.parametrize("wrong", [-1, 2])
@pytest.mark.parametrize("kind", ["SoftmaxCrossEntropyLoss", "Accuracy", "TopKAccuracy", "TokenLoss"])
def test_a_label_that_is_no_class_is_one_sentence(kind: str, wrong: int) -> None:
    b = Build()
    scores, label = b.input(2), b.input(dtype="int64")
    made = b.op(kind, scores, label, **({"k": 1} if kind == "TopKAccuracy" else {}))
    graph = b.graph({}, [made]) if kind == "SoftmaxCrossEntropyLoss" else b.graph({}, [], [made])
    data = {"input0": np.zeros((2, 2), np.float32), "input1": np.array([1, wrong])}
    with pytest.raises(
        DataError, match=rf"^\w+0 was given the label {wrong} in input1, but there are 2 classes, 0 to 1;"
    ):
        forward(graph, "evaluate", data, 2)
