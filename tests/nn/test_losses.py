from __future__ import annotations

import pytest

from p2pnn import nn
from p2pnn.errors import ModelError
from p2pnn.model.graph import Graph


def x(*shape: int) -> nn.Value:
    return nn.Input("x", shape)


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


@pytest.mark.parametrize(
    ("scores", "labels", "axis", "found"),
    [
        ((9,), (), None, 1),
        ((6, 9), (6,), None, 2),
        ((9, 6, 5), (6, 5), None, 1),
        ((9, 6), (6,), 1, 1),
        ((6, 9), (6,), -1, 2),
    ],
)
def test_classes_are_last_or_an_image_s_channels(
    scores: tuple[int, ...], labels: tuple[int, ...], axis: int | None, found: int
) -> None:
    values = nn.Linear(scores[-1], name="head")(x(*scores)) if len(scores) < 3 else nn.Conv2d(9, 1)(x(*scores))
    label = nn.Input("label", labels, dtype="int64")
    metrics = {
        "accuracy": nn.accuracy(values, label, axis),
        "top5": nn.top_k_accuracy(values, label, 2, axis),
        "perplexity": nn.perplexity(values, label, axis),
    }
    graph = nn.Model({}, nn.cross_entropy(values, label, axis), metrics).graph
    assert {op.attributes["axis"] for op in graph.ops[1:]} == {found}


def test_classes_are_never_at_the_batch() -> None:
    with pytest.raises(ModelError, match="axis"):
        nn.cross_entropy(x(6, 9), nn.Input("label", (9,), dtype="int64"), axis=0)


def test_labels_that_lie_otherwise_name_both_shapes() -> None:
    with pytest.raises(
        ModelError, match=r"\(batch, 6, 9\) with their classes at axis 2 need int64 of shape \(batch, 6\)"
    ):
        nn.cross_entropy(x(6, 9), nn.Input("label", (9,), dtype="int64"))
