"""How kernels are checked: gradients against central finite differences in float64, outputs against ONNX's reference.

The loss is the mean squared error to a random target, which makes the gradient of every output element different.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from p2pnn.engine.base import Context
from p2pnn.engine.numpy.engine import NumpyEngine
from p2pnn.model.graph import Graph
from tests.engine.numpy.build import Array, Build, Run, batch, fill
from tests.engine.numpy.cases import CASES, FORWARD_ONLY

ROWS, SCALE = 3, 0.5
AS_INPUT = {
    "Reshape": (("shape", np.int64),),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "Squeeze", "Unsqueeze"), (("axes", np.int64),)),
    "Slice": tuple((key, np.int64) for key in ("starts", "ends", "axes", "steps")),
    "Clip": (("min", np.float32), ("max", np.float32)),
    "Dropout": (("ratio", np.float32),),
    "Split": (("split", np.int64),),
}


def graph_of(name: str) -> Graph:
    b = Build()
    y = CASES[name](b)
    return b.graph({"y": y}, [b.op("MeanSquaredError", y, b.input(*b.known[y].shape[1:]))])


def check_gradient(name: str) -> None:
    """A case's parameter gradients against finite differences; the op reads parameters, so its inputs' are among them."""
    for rows in (ROWS, 1):
        check_graph_gradient(graph_of(name), rows)


def check_graph_gradient(graph: Graph, rows: int = ROWS) -> None:
    """The same, for any graph with a loss."""
    run = Run(graph, [0] * len(graph.ops), rows=rows, engine=NumpyEngine(np.float64))
    program, tensors, context = run.programs[0], run.tensors[0], Context(7, 3, 0, rows, SCALE)
    rng = np.random.default_rng(3)
    for array in tensors.parameters.values():
        array[...] = rng.standard_normal(array.shape)
    for value in graph.inputs:
        array = run.values[0][value.name]
        array[...] = (
            rng.standard_normal(array.shape) > 0
            if array.dtype == np.bool_
            else (rng.integers(0, 10, array.shape) if array.dtype == np.int64 else rng.standard_normal(array.shape))
        )

    def loss() -> float:
        program.forward(0, context, run.values[0])
        return float(run.values[0][graph.losses[0]])

    loss()
    program.backward(0, context, {}, index=0)
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


def to_onnx(graph: Graph, wanted: Sequence[str], held: Mapping[str, Array]) -> onnx.ModelProto:
    """The ops of a graph as an ONNX model with these outputs, and its parameters and state as constants."""
    sequences = {v.name for v in (*graph.inputs, *graph.values) if len(v.shape) == 3}
    nodes, constants = [], [numpy_helper.from_array(array, name) for name, array in held.items()]
    for op in graph.ops:
        attributes: dict[str, Any] = dict(op.attributes)
        inputs = list(op.inputs)
        for key, dtype in AS_INPUT.get(op.kind, ()):
            constants.append(numpy_helper.from_array(np.array(attributes.pop(key), dtype), f"{op.name}.{key}"))
            inputs.append(constants[-1].name)
        if op.kind == "SoftmaxCrossEntropyLoss":
            assert attributes.pop("axis") == 1, "ONNX has the classes there"
        if op.kind == "Gemm" and op.inputs[0] in sequences:  # MatMul and Add where ONNX's Gemm has no such rank
            nodes.append(helper.make_node("Transpose", [inputs[1]], [f"{op.name}.w"], perm=(1, 0)))
            product = op.outputs[0] if len(inputs) == 2 else f"{op.name}.product"
            nodes.append(helper.make_node("MatMul", [inputs[0], f"{op.name}.w"], [product]))
            if len(inputs) > 2:
                nodes.append(helper.make_node("Add", [product, inputs[2]], list(op.outputs)))
            continue
        nodes.append(helper.make_node(op.kind, inputs, list(op.outputs), op.name, **attributes))
    inputs = [
        helper.make_tensor_value_info(v.name, helper.np_dtype_to_tensor_dtype(np.dtype(v.dtype)), None)
        for v in graph.inputs
    ]
    outputs = [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in wanted]
    made = helper.make_graph(nodes, "case", inputs, outputs, constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 23)])


def check_forward(name: str) -> None:
    """A case's output against ONNX's reference implementation."""
    b = Build()
    y = {**CASES, **FORWARD_ONLY}[name](b)
    check_graph_forward(b.graph({"y": y}), y)


def check_graph_forward(graph: Graph, y: str) -> None:
    """The same, for any graph of ONNX's kinds."""
    data = batch(graph, ROWS)
    made, held = forward(graph, "predict", data)
    (expected,) = ReferenceEvaluator(to_onnx(graph, [y], held)).run([y], data)
    assert made[y].shape == expected.shape
    assert made[y].dtype == (np.int64 if expected.dtype == np.int64 else np.float32)
    np.testing.assert_allclose(made[y], expected, rtol=1e-4, atol=1e-5)
