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
