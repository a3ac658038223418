"""Every kernel's forward pass against ONNX's reference implementation; our own kinds against their formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from p2pnn.engine.base import Context
from p2pnn.model import ops
from p2pnn.model.graph import Graph
from tests.engine.build import Array, Build, Run, batch, fill
from tests.engine.test_gradients import CASES, image, line, sequence

ROWS = 3
AS_INPUT = {"Reshape": ("shape", np.int64), "ReduceMean": ("axes", np.int64), "Dropout": ("ratio", np.float32)}
MORE = {
    "ArgMax": lambda b: b.op("ArgMax", line(b), axis=1, keepdims=0),
    "ArgMax image": lambda b: b.op("ArgMax", image(b), axis=1),
    "ArgMax width": lambda b: b.op("ArgMax", image(b), axis=3, keepdims=0),
    "Conv large": lambda b: b.conv(b.input(17, 40, 38), 24, 3, pads=(1, 1, 1, 1)),
    "Gemm twice": lambda b: b.op("Relu", b.linear(b.op("Tanh", b.linear(line(b), 7)), 3)),
    "Flatten sequence": lambda b: b.op("Flatten", sequence(b)),
}


def forward(
    graph: Graph, mode: str, data: dict[str, Array], rows: int = ROWS
) -> tuple[dict[str, Array], dict[str, Array]]:
    """(every value that leaves the whole graph, in ONNX's layout; the parameters)."""
    run = Run(graph, [0] * len(graph.ops), rows=len(next(iter(data.values()))), mode=mode)
    held = fill(run.engine, graph, run.tensors[0])
    run.load(0, data)
    for program in run.programs:  # ops that share nothing make segments of their own
        program.forward(0, Context(1, 0, 0, rows), run.values[0])
    described = {v.name: v for v in graph.values}
    made = {v: run.engine.export_value(described[v], run.values[0][v]) for p in run.programs for v in p.values_out}
    return made, held


def to_onnx(graph: Graph, output: str, held: dict[str, Array]) -> onnx.ModelProto:
    nodes, constants = [], [numpy_helper.from_array(array, name) for name, array in held.items()]
    for op in graph.ops:
        attributes: dict[str, Any] = dict(op.attributes)
        inputs = list(op.inputs)
        if op.kind in AS_INPUT:
            key, dtype = AS_INPUT[op.kind]
            constants.append(numpy_helper.from_array(np.array(attributes.pop(key), dtype), f"{op.name}.{key}"))
            inputs.append(constants[-1].name)
        nodes.append(helper.make_node(op.kind, inputs, list(op.outputs), op.name, **attributes))
    inputs = [
        helper.make_tensor_value_info(v.name, helper.np_dtype_to_tensor_dtype(np.dtype(v.dtype)), None)
        for v in graph.inputs
    ]
    outputs = [helper.make_tensor_value_info(output, TensorProto.UNDEFINED, None)]
    made = helper.make_graph(nodes, "case", inputs, outputs, constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 23)])


def graph_of(name: str) -> tuple[Graph, str]:
    """The case's op, as a named output."""
    b = Build()
    if name == "SoftmaxCrossEntropyLoss":
        y = b.op(name, line(b, 10), b.input(dtype="int64"))
    else:
        y = {**CASES, **MORE}[name](b)
    return b.graph({"y": y}), y


@pytest.mark.parametrize("name", [n for n in {**CASES, **MORE} if n != "MeanSquaredError"])
def test_forward_is_that_of_the_onnx_reference(name: str) -> None:
    graph, y = graph_of(name)
    data = batch(graph, ROWS)
    made, held = forward(graph, "predict", data)
    (expected,) = ReferenceEvaluator(to_onnx(graph, y, held)).run([y], data)
    assert made[y].shape == expected.shape
    assert made[y].dtype == (np.int64 if expected.dtype == np.int64 else np.float32)
    np.testing.assert_allclose(made[y], expected, rtol=1e-4, atol=1e-5)


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


def test_dropout_keeps_the_mean_and_draws_by_step_micro_batch_and_op() -> None:
    b = Build()
    x = b.input(40, 50)
    first, second = b.op("Dropout", x, ratio=0.25), b.op("Dropout", x, ratio=0.25)
    graph = b.graph({}, [b.op("MeanSquaredError", v, b.input(40, 50)) for v in (first, second)])
    run = Run(graph, [0, 1, 2, 3], rows=ROWS)
    run.values[0][x][...] = 1
    masks = []
    for context in (Context(1, 0, 0, ROWS), Context(1, 0, 1, ROWS), Context(1, 1, 0, ROWS), Context(2, 0, 0, ROWS)):
        for program, name in zip(run.programs, (first, second), strict=False):
            program.forward(0, context, run.values[0])
            masks.append(run.values[0][name].copy())
            assert set(np.unique(masks[-1])) == {0, np.float32(1 / 0.75)}
            assert abs(masks[-1].mean() - 1) < 0.05
    assert len({mask.tobytes() for mask in masks}) == len(masks)
    run.programs[0].forward(0, Context(1, 0, 0, ROWS), run.values[0])
    np.testing.assert_array_equal(run.values[0][first], masks[0])


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


def test_cross_entropy_stays_finite_and_exact_for_extreme_scores() -> None:
    b = Build()
    graph = b.graph({}, [b.op("SoftmaxCrossEntropyLoss", b.input(2), b.input(dtype="int64"))])
    data = {"input0": np.array([[300.0, -200.0], [0.0, 0.0]], np.float32), "input1": np.array([1, 0])}
    made, _ = forward(graph, "evaluate", data, 2)
    assert made[graph.losses[0]] == pytest.approx((500 + np.log(2)) / 2, rel=1e-6)
