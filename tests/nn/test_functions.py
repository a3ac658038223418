from __future__ import annotations

import pytest

from p2pnn import nn
from p2pnn.errors import ModelError
from p2pnn.model.graph import Graph

B = nn.BATCH


def x(*shape: int) -> nn.Value:
    return nn.Input("x", shape)


def test_shapes() -> None:
    assert nn.relu(x(3)).shape == nn.sigmoid(x(3)).shape == nn.tanh(x(3)).shape == nn.softmax(x(3)).shape == (B, 3)
    assert nn.flatten(x(2, 3, 4)).shape == (B, 24)
    assert nn.reshape(x(2, 6), (nn.BATCH, 4, -1)).shape == (B, 4, 3)
    assert nn.reshape(x(2, 6), (0, 12)).shape == (B, 12)
    assert nn.transpose(x(2, 3), (0, 2, 1)).shape == (B, 3, 2)
    assert nn.concat([x(2, 3), x(4, 3)]).shape == (B, 6, 3)
    assert nn.global_average_pool(x(5, 3, 3)).shape == (B, 5)
    assert nn.reduce_mean(x(5, 3, 3), (2, 3)).shape == (B, 5)
    assert nn.reduce_mean(x(5, 3), (-1,), keepdims=True).shape == (B, 5, 1)
    assert nn.matmul(x(2, 3), x(3, 4)).shape == (B, 2, 4)
    assert nn.argmax(x(7)).shape == (B,)
    assert nn.argmax(x(7)).dtype == "int64"


def test_global_average_pool_is_one_layer_of_two_ops() -> None:
    graph = nn.Model({"y": nn.global_average_pool(x(5, 3, 3), name="gap")}).graph
    assert [(op.kind, op.name) for op in graph.ops] == [("GlobalAveragePool", "gap"), ("Flatten", "gap#flatten")]


def regression() -> Graph:
    target = nn.Input("y", ())
    prediction = nn.Linear(1, name="head")(x(3))
    return nn.Model(
        {"y": prediction},
        nn.mean_squared_error(prediction, target),
        {"mae": nn.mean_absolute_error(prediction, target), "rmse": nn.rmse(prediction, target)},
    ).graph


def test_regression_with_one_number_per_row_drops_the_last_axis() -> None:
    graph = regression()
    assert [op.kind for op in graph.ops] == [
        "Gemm", "Reshape", "MeanSquaredError", "Reshape", "AbsoluteError", "Reshape", "SquaredError",
    ]  # fmt: skip
    assert [(m.name, m.kind, m.goal) for m in graph.metrics] == [("mae", "mean", "min"), ("rmse", "root", "min")]


def test_classification_metrics() -> None:
    label = nn.Input("label", (), dtype="int64")
    scores = nn.Linear(9)(x(3))
    metrics = {
        "accuracy": nn.accuracy(scores, label),
        "top5": nn.top_k_accuracy(scores, label),
        "perplexity": nn.perplexity(scores, label),
    }
    graph = nn.Model({}, nn.cross_entropy(scores, label), metrics).graph
    assert [(m.name, m.kind, m.goal) for m in graph.metrics] == [
        ("accuracy", "mean", "max"),
        ("top5", "mean", "max"),
        ("perplexity", "exp", "min"),
    ]
    assert next(op for op in graph.ops if op.kind == "TopKAccuracy").integer("k") == 5


def test_labels_must_be_integers_and_line_up() -> None:
    with pytest.raises(ModelError, match=r"the labels y are float32 of shape \(batch,\).*scores of shape \(batch, 3\)"):
        nn.cross_entropy(x(3), nn.Input("y", ()))
    with pytest.raises(ModelError, match=r"\(batch, 3\) and the target \(batch, 2\)"):
        nn.mean_squared_error(x(3), nn.Input("y", (2,)))


def test_what_is_no_value() -> None:
    with pytest.raises(ModelError, match="was given a int"):
        nn.relu(3)  # type: ignore[arg-type]
