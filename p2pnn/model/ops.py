"""The op table: one row per operator kind. Adding an operator is adding a row here and a kernel in each engine.

A row says which attributes the kind has, how its outputs' shapes follow from its inputs' (`shapes`), what it costs
(`cost`), and through which inputs gradients flow. Kinds in domain "" are ONNX's (opset 23); those in domain "p2pnn" are
ours: mean squared error, and the metrics, whose output is float64[2] = (sum, count) over the valid rows.

Attributes are canonical in every graph: all present, defaults filled in, axes counted from 0, tuples of full length. What
ONNX ≥ 13 made inputs (Reshape's shape, ReduceMean's axes, Dropout's ratio) are attributes here. `normalise` makes them
canonical when a graph is built; `infer` refuses whatever is not. Two rows say more than ONNX's, whose Gemm has rank 2 and
whose losses have their classes at axis 1: a Gemm of rank 3 is ONNX's MatMul and Add, classes elsewhere a Transpose before.

| kind | inputs | attributes |
| --- | --- | --- |
| Gemm | x (batch, in) or (batch, positions, in), w (out, in), [b (out,)] | transB = 1 |
| Conv | x (batch, C, H, W), w (O, C/group, kh, kw), [b (O,)] | strides (2), pads (t, l, b, r), dilations (2), group |
| MaxPool, AveragePool | x (batch, C, H, W) | kernel_shape (2), strides (2), pads (4); AveragePool: count_include_pad |
| BatchNormalization | x (batch, C, …), scale, bias, running mean, running variance, each (C,) | epsilon, momentum |
| Reshape | x | shape: (0, extents of a row…) |
| Split | x | axis, split: the parts' extents |
| Slice | x | axes, starts, ends, steps ≥ 1 |
| Squeeze, Unsqueeze | x | axes: of the input, of the output |
| Clip | x | min, max |
| Where | condition bool, two values | |
| LayerNormalization | x, scale and [bias], each of the shape of the axes from `axis` on | axis, epsilon |
| Gather | a parameter (rows, …), indices int64 (batch, …) | axis = 0 |
| Attention | queries (batch, n, heads · size), keys and values (batch, m, …) | q_num_heads, kv_num_heads, is_causal, scale |
| losses, classification metrics | scores, labels int64: the scores' shape without the classes | axis; TopKAccuracy: k |
| MeanSquaredError, regression metrics | prediction, target of one shape | |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from p2pnn.errors import ModelError
from p2pnn.model import attributes, rearranging, shapes
from p2pnn.model import cost as costs
from p2pnn.model.attributes import AttributeRule, Resolver
from p2pnn.model.cost import Cost
from p2pnn.model.graph import Attribute, Op, Shape, Value

__all__ = ["TABLE", "AttributeRule", "Cost", "Row", "infer", "normalise"]


@dataclass(frozen=True, slots=True)
class Row:
    """infer gives the outputs' (dtype, shape) and raises ModelError; cost gets concrete shapes (batch filled in).

    inputs: least and greatest number of inputs. resolve: works out attributes that depend on shapes or on each other.
    """

    domain: str
    infer: Callable[[Op, list[Value]], list[tuple[str, Shape]]]
    cost: Callable[[Op, list[Shape], list[Shape]], Cost]
    no_gradient: tuple[int, ...] = ()
    no_gradient_from: int = 1000
    inputs: tuple[int, int] = (1, 1)
    attributes: Mapping[str, AttributeRule] = field(default_factory=dict)
    resolve: Resolver | None = None

    def differentiable(self, position: int) -> bool:
        """Whether a gradient flows to the input at this position."""
        return position not in self.no_gradient and position < self.no_gradient_from


def normalise(kind: str, name: str, given: Mapping[str, Any], inputs: Sequence[Value]) -> dict[str, Attribute]:
    """The canonical attributes of an op: defaults filled in, negative axes counted from 0, a reshape's −1 worked out.

    given: attributes as a person or a file states them. Raises ModelError for one that is unknown, of a wrong type or
    out of range.
    """
    row = TABLE.get(kind)
    if row is None:
        raise ModelError(f"{name}: there is no operator {kind!r}; known are {', '.join(sorted(TABLE))}")
    unknown = sorted(set(given) - set(row.attributes))
    if unknown:
        known = ", ".join(row.attributes) or "none"
        raise ModelError(f"{name} ({kind}): attribute {unknown[0]!r} is not supported; known are {known}")
    rank = len(inputs[0].shape) if inputs else 0
    result: dict[str, Attribute] = {}
    for key, rule in row.attributes.items():
        value = given.get(key, rule.default)
        if value is None:
            raise ModelError(f"{name} ({kind}): attribute {key!r} is missing")
        result[key] = attributes.canonical(f"{name} ({kind}): attribute {key!r}", rule, value, rank)
    if row.resolve is not None and inputs:
        row.resolve(f"{name} ({kind})", result, inputs)
    return result


def infer(op: Op, inputs: Sequence[Value]) -> list[tuple[str, Shape]]:
    """The outputs' (dtype, shape), after checking everything about the op.

    inputs: the values (or parameters as values) that `op.inputs` names. Raises ModelError, naming op and shapes.
    """
    row = TABLE.get(op.kind)
    if row is None:
        raise ModelError(f"{op.name}: there is no operator {op.kind!r}; known are {', '.join(sorted(TABLE))}")
    least, most = row.inputs
    if not least <= len(inputs) <= most:
        number = str(least) if least == most else f"{least} to {most}"
        shapes.refuse(op, f"it has {len(inputs)} inputs, but needs {number}")
    if normalise(op.kind, op.name, op.attributes, inputs) != op.attributes:
        shapes.refuse(op, "its attributes are not in canonical form; build it with ops.normalise")
    return row.infer(op, list(inputs))


_AXIS = AttributeRule("axis")
_FLAG = AttributeRule("int", 0, 0, 1)
_PARTS = AttributeRule("ints", None, 1, most=attributes.PARTS_MAX)
_KEEP = AttributeRule("int", 1, 0, 1)
_PAIR = AttributeRule("ints", (1, 1), 1, length=2)
_PADS = AttributeRule("ints", (0, 0, 0, 0), 0, length=4)
_WINDOW = {"kernel_shape": AttributeRule("ints", None, 1, length=2), "strides": _PAIR, "pads": _PADS}
_CONV = {"strides": _PAIR, "pads": _PADS, "dilations": _PAIR, "group": AttributeRule("int", 1, 1)}
_BATCH_NORMALIZATION = {
    "epsilon": AttributeRule("float", 1e-5, 0.0, 1.0),
    "momentum": AttributeRule("float", 0.9, 0.0, 1.0),
}
_REDUCE = {"axes": AttributeRule("axes"), "keepdims": _KEEP}
_WHOLE_NUMBERS = AttributeRule("ints", None, -(2**63), 2**63 - 1)
_SLICE = {
    **dict.fromkeys(("axes", "starts", "ends"), _WHOLE_NUMBERS),
    "steps": AttributeRule("ints", (), -(2**63), 2**63 - 1),
}
_FLOATS = (-attributes.FLOAT_MAX, math.nextafter(attributes.FLOAT_MAX, math.inf))
_CLIP = {
    "min": AttributeRule("float", -attributes.FLOAT_MAX, *_FLOATS),
    "max": AttributeRule("float", attributes.FLOAT_MAX, *_FLOATS),
}
_CLASSES = {"axis": AttributeRule("axis", 1)}
_LAYER_NORMALIZATION = {"axis": AttributeRule("axis", -1), "epsilon": AttributeRule("float", 1e-5, 0.0, 1.0)}
_ATTENTION = {
    "q_num_heads": AttributeRule("int", None, 1),
    "kv_num_heads": AttributeRule("int", 0, 0),
    "is_causal": _FLAG,
    "scale": AttributeRule("float", 0.0, 0.0, 1e6),
}
_SOFTMAX_FLOPS, _TRANSCENDENTAL_FLOPS = 10.0, 8.0

TABLE: dict[str, Row] = {
    "Gemm": Row("", shapes.gemm, costs.gemm, inputs=(2, 3), attributes={"transB": AttributeRule("int", 1, 1, 1)}),
    "MatMul": Row("", shapes.matmul, costs.matmul, inputs=(2, 2)),
    "Conv": Row("", shapes.conv, costs.conv, inputs=(2, 3), attributes=_CONV),
    "MaxPool": Row("", shapes.pool, costs.pool, attributes=_WINDOW),
    "AveragePool": Row("", shapes.pool, costs.pool, attributes={**_WINDOW, "count_include_pad": _FLAG}),
    "GlobalAveragePool": Row("", shapes.global_average_pool, costs.per_input(1)),
    "BatchNormalization": Row(
        "", shapes.batch_normalization, costs.per_input(8), (3, 4), inputs=(5, 5), attributes=_BATCH_NORMALIZATION
    ),
    "LayerNormalization": Row(
        "", shapes.layer_normalization, costs.per_input(10), inputs=(2, 3), attributes=_LAYER_NORMALIZATION
    ),
    "Attention": Row(
        "", shapes.attention, costs.attention, inputs=(3, 3), attributes=_ATTENTION, resolve=attributes.attention
    ),
    "Relu": Row("", shapes.same, costs.per_output(1)),
    "Sigmoid": Row("", shapes.same, costs.per_output(_TRANSCENDENTAL_FLOPS)),
    "Gelu": Row(
        "",
        shapes.same,
        costs.per_output(2 * _TRANSCENDENTAL_FLOPS),
        attributes={"approximate": AttributeRule("text", "none", choices=("none", "tanh"))},
    ),
    "Tanh": Row("", shapes.same, costs.per_output(_TRANSCENDENTAL_FLOPS)),
    "Softmax": Row("", shapes.same, costs.per_output(_SOFTMAX_FLOPS), attributes={"axis": AttributeRule("axis", -1)}),
    "Exp": Row("", shapes.same, costs.per_output(_TRANSCENDENTAL_FLOPS)),
    "Log": Row("", shapes.same, costs.per_output(_TRANSCENDENTAL_FLOPS)),
    "Sqrt": Row("", shapes.same, costs.per_output(2)),
    "Erf": Row("", shapes.same, costs.per_output(2 * _TRANSCENDENTAL_FLOPS)),
    "Neg": Row("", shapes.same, costs.per_output(1)),
    "Clip": Row("", shapes.same, costs.per_output(2), attributes=_CLIP),
    "Identity": Row("", rearranging.identity, costs.per_output(0)),
    "Add": Row("", shapes.arithmetic, costs.per_output(1), inputs=(2, 2)),
    "Sub": Row("", shapes.arithmetic, costs.per_output(1), inputs=(2, 2)),
    "Mul": Row("", shapes.arithmetic, costs.per_output(1), inputs=(2, 2)),
    "Div": Row("", shapes.arithmetic, costs.per_output(1), inputs=(2, 2)),
    "Pow": Row("", shapes.arithmetic, costs.per_output(2 * _TRANSCENDENTAL_FLOPS), inputs=(2, 2)),
    "Where": Row("", shapes.where, costs.per_output(1), (0,), inputs=(3, 3)),
    "Gather": Row(
        "", rearranging.gather, costs.gather, (1,), inputs=(2, 2), attributes={"axis": AttributeRule("int", 0, 0, 0)}
    ),
    "Split": Row("", rearranging.split, costs.per_input(0), attributes={"axis": _AXIS, "split": _PARTS}),
    "Concat": Row("", rearranging.concat, costs.per_output(0), inputs=(1, 1000), attributes={"axis": _AXIS}),
    "Reshape": Row(
        "",
        rearranging.reshape,
        costs.view,
        attributes={"shape": AttributeRule("ints", None, -1)},
        resolve=attributes.reshape,
    ),
    "Flatten": Row("", rearranging.flatten, costs.view, attributes={"axis": AttributeRule("int", 1, 1, 1)}),
    "Transpose": Row("", rearranging.transpose, costs.per_output(0), attributes={"perm": AttributeRule("ints")}),
    "Squeeze": Row("", rearranging.squeeze, costs.view, attributes={"axes": AttributeRule("axes")}),
    "Unsqueeze": Row(
        "", rearranging.unsqueeze, costs.view, attributes={"axes": _WHOLE_NUMBERS}, resolve=attributes.unsqueeze
    ),
    "Slice": Row("", rearranging.slices, costs.per_output(0), attributes=_SLICE, resolve=attributes.slices),
    "ReduceSum": Row("", shapes.reduce, costs.per_input(1), attributes=_REDUCE),
    "ReduceMax": Row("", shapes.reduce, costs.per_input(1), attributes=_REDUCE),
    "ReduceMean": Row("", shapes.reduce, costs.per_input(1), attributes=_REDUCE),
    "ArgMax": Row("", shapes.arg_max, costs.per_input(1), (0,), attributes={"axis": _AXIS, "keepdims": _KEEP}),
    "Dropout": Row("", shapes.same, costs.per_output(4), attributes={"ratio": AttributeRule("float", 0.5, 0.0, 1.0)}),
    "SoftmaxCrossEntropyLoss": Row(
        "", shapes.classification_loss, costs.per_input(_SOFTMAX_FLOPS), (1,), inputs=(2, 2), attributes=_CLASSES
    ),
    "MeanSquaredError": Row("p2pnn", shapes.regression_loss, costs.per_input(3), (1,), inputs=(2, 2)),
    "Accuracy": Row(
        "p2pnn", shapes.classification_metric, costs.per_input(1), (0, 1), inputs=(2, 2), attributes=_CLASSES
    ),
    "TopKAccuracy": Row(
        "p2pnn",
        shapes.classification_metric,
        costs.per_input(4),
        (0, 1),
        inputs=(2, 2),
        attributes={"k": AttributeRule("int", 5, 1), **_CLASSES},
    ),
    "AbsoluteError": Row("p2pnn", shapes.regression_metric, costs.per_input(2), (0, 1), inputs=(2, 2)),
    "SquaredError": Row("p2pnn", shapes.regression_metric, costs.per_input(3), (0, 1), inputs=(2, 2)),
    "TokenLoss": Row(
        "p2pnn",
        shapes.classification_metric,
        costs.per_input(_SOFTMAX_FLOPS),
        (0, 1),
        inputs=(2, 2),
        attributes=_CLASSES,
    ),
}
"""Every kind that a graph may hold. Gradients never flow to labels, targets, running statistics or into metrics."""
