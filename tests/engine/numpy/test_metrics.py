from __future__ import annotations

import numpy as np
import pytest

from p2pnn.model import ops
from tests.engine.numpy.build import Build, batch
from tests.engine.numpy.checks import ROWS, forward


@pytest.mark.parametrize("rows", [ROWS + 2, ROWS])
def test_losses_and_metrics_count_valid_rows_only(rows: int) -> None:
    b = Build()
    scores, labels, target = b.input(6), b.input(dtype="int64"), b.input(6)
    kinds = {
        "SoftmaxCrossEntropyLoss": b.op("SoftmaxCrossEntropyLoss", scores, labels),
        "MeanSquaredError": b.op("MeanSquaredError", scores, target),
        "Accuracy": b.op("Accuracy", scores, labels),
        "TopKAccuracy": b.op("TopKAccuracy", scores, labels, k=3),
        "TokenLoss": b.op("TokenLoss", scores, labels),
        "AbsoluteError": b.op("AbsoluteError", scores, target),
        "SquaredError": b.op("SquaredError", scores, target),
    }
    assert {k for k, row in ops.TABLE.items() if row.domain == "p2pnn"} <= set(kinds)
    graph = b.graph({}, [kinds["SoftmaxCrossEntropyLoss"], kinds["MeanSquaredError"]], list(kinds.values())[2:])
    data = batch(graph, rows, classes=6)
    data[scores][0, 2], data[labels][0] = 9, 2
    made, _ = forward(graph, "evaluate", data)
    x, y, t = data[scores][:ROWS].astype(np.float64), data[labels][:ROWS], data[target][:ROWS]
    loss = np.log(np.exp(x).sum(1)) - x[np.arange(ROWS), y]
    order = np.argsort(-x, axis=1)
    expected = {
        "SoftmaxCrossEntropyLoss": loss.mean(),
        "MeanSquaredError": ((x - t) ** 2).mean(),
        "Accuracy": [(order[:, 0] == y).sum(), ROWS],
        "TopKAccuracy": [(order[:, :3] == y[:, None]).any(1).sum(), ROWS],
        "TokenLoss": [loss.sum(), ROWS],
        "AbsoluteError": [np.abs(x - t).sum(), ROWS * 6],
        "SquaredError": [((x - t) ** 2).sum(), ROWS * 6],
    }
    for kind, value in kinds.items():
        np.testing.assert_allclose(made[value], expected[kind], rtol=1e-5, err_msg=kind)


@pytest.mark.parametrize(("shape", "axis"), [((5, 6), 2), ((6, 5), 1), ((6, 2, 3), 1), ((2, 3, 4, 6), 4)])
def test_every_label_of_a_valid_row_counts(shape: tuple[int, ...], axis: int) -> None:
    """Sequences with their classes last or at axis 1, and images, in a batch of which two rows are padding."""
    b = Build()
    places = shape[: axis - 1] + shape[axis:]
    scores, labels = b.input(*shape), b.input(*places, dtype="int64")
    loss = b.op("SoftmaxCrossEntropyLoss", scores, labels, axis=axis)
    metrics = [b.op(kind, scores, labels, axis=axis) for kind in ("Accuracy", "TokenLoss")]
    metrics.append(b.op("TopKAccuracy", scores, labels, axis=axis, k=2))
    graph = b.graph({}, [loss], metrics)
    data = batch(graph, ROWS + 2, classes=6)
    made, _ = forward(graph, "evaluate", data)
    x = np.moveaxis(data[scores][:ROWS].astype(np.float64), axis, -1).reshape(-1, 6)
    y = data[labels][:ROWS].reshape(-1)
    losses = np.log(np.exp(x).sum(1)) - x[np.arange(len(y)), y]
    order = np.argsort(-x, axis=1)
    np.testing.assert_allclose(made[loss], losses.mean(), rtol=1e-5)
    expected = [(order[:, 0] == y).sum(), losses.sum(), (order[:, :2] == y[:, None]).any(1).sum()]
    for metric, total in zip(metrics, expected, strict=True):
        np.testing.assert_allclose(made[metric], [total, len(y)], rtol=1e-5)
