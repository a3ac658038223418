"""The op table: one row per operator kind. Adding an operator is adding a row here and a kernel in each engine.

A row says which attributes the kind has, how its outputs' shapes follow from its inputs' (`shapes`), what it costs
(`cost`), and through which inputs gradients flow. Kinds in domain "" are ONNX's (opset 23); those in domain "p2pnn" are
ours: mean squared error, and the metrics, whose output is float64[2] = (sum, count) over the valid rows.

Attributes are canonical in every graph: all present, defaults filled in, axes counted from 0, tuples of full length. What
ONNX ≥ 13 made inputs (Reshape's shape, ReduceMean's axes, Dropout's ratio) are attributes here. `normalise` makes them
canonical when a graph is built; `infer` refuses whatever is not.

| kind | inputs | attributes |
| --- | --- | --- |
| Gemm | x (batch, in), w (out, in), [b (out,)] | transB = 1 |
| Conv | x (batch, C, H, W), w (O, C/group, kh, kw), [b (O,)] | strides (2), pads (t, l, b, r), dilations (2), group |
| MaxPool, AveragePool | x (batch, C, H, W) | kernel_shape (2), strides (2), pads (4); AveragePool: count_include_pad |
| BatchNormalization | x (batch, C, …), scale, bias, running mean, running variance, each (C,) | epsilon, momentum |
| Reshape | x | shape: (0, extents of a row…) |
| losses, classification metrics | scores (batch, classes), labels int64 (batch,) | TopKAccuracy: k |
| MeanSquaredError, regression metrics | prediction, target of one shape | |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from p2pnn.errors import ModelError
from p2pnn.model import cost as costs
from p2pnn.model import shapes
from p2pnn.model.cost import Cost
from p2pnn.model.graph import BATCH, Attribute, Op, Shape, Value, elements, show

__all__ = ["TABLE", "AttributeRule", "Cost", "Row", "infer", "normalise"]

INTEGER_MAX: Final = 2**31 - 1
INTEGERS_MAX: Final = 8
"""Entries of a tuple: as many as a value may have axes."""


@dataclass(frozen=True, slots=True)
class AttributeRule:
    """What an attribute may be.

    type: `int`, `float`, `ints`, `axis` (an int from 1 to rank − 1) or `axes` (several, ascending).
    default: None where it must be given. low and high are inclusive; a float's high is exclusive. length: of `ints`.
    """

    type: str
    default: Attribute | None = None
    low: float = 0
    high: float = INTEGER_MAX
    length: int | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """infer gives the outputs' (dtype, shape) and raises ModelError; cost gets concrete shapes (batch filled in).

    inputs: least and greatest number of inputs. Every kind has one output.
    """

    domain: str
    infer: Callable[[Op, list[Value]], list[tuple[str, Shape]]]
    cost: Callable[[Op, list[Shape], list[Shape]], Cost]
    no_gradient: tuple[int, ...] = ()
    no_gradient_from: int = 1000
    inputs: tuple[int, int] = (1, 1)
    attributes: Mapping[str, AttributeRule] = field(default_factory=dict)

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
        result[key] = _canonical(f"{name} ({kind}): attribute {key!r}", rule, value, rank)
    if kind == "Reshape" and inputs:
        result["shape"] = _row_shape(f"{name} ({kind})", result["shape"], inputs[0].shape)
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


def _canonical(what: str, rule: AttributeRule, value: Any, rank: int) -> Attribute:
    if rule.type == "float":
        if type(value) not in (int, float) or not math.isfinite(value) or not rule.low <= value < rule.high:
            raise ModelError(f"{what} is {value!r}, but must be a number from {rule.low:g} to below {rule.high:g}")
        return float(value)
    if rule.type in ("int", "axis"):
        if type(value) is not int:
            raise ModelError(f"{what} is {value!r}, but must be an integer")
        return _axis(what, value, rank) if rule.type == "axis" else _bounded(what, value, rule)
    if not isinstance(value, tuple | list) or len(value) > INTEGERS_MAX or any(type(n) is not int for n in value):
        raise ModelError(f"{what} is {value!r}, but must be a tuple of at most {INTEGERS_MAX} integers")
    if rule.type == "axes":
        axes = sorted({_axis(what, n, rank) for n in value})
        if len(axes) != len(value) or not axes:
            raise ModelError(f"{what} is {tuple(value)}, but must name one or more different axes")
        return tuple(axes)
    if rule.length is not None and len(value) != rule.length:
        raise ModelError(f"{what} is {tuple(value)}, but must have {rule.length} numbers")
    return tuple(_bounded(what, n, rule) for n in value)


def _bounded(what: str, value: int, rule: AttributeRule) -> int:
    if not rule.low <= value <= rule.high:
        raise ModelError(f"{what} holds {value}, but must lie between {rule.low:g} and {rule.high:g}")
    return value


def _axis(what: str, value: int, rank: int) -> int:
    axis = value + rank if value < 0 else value
    if not 1 <= axis < rank:
        raise ModelError(f"{what} is {value}, but the input has axes 0 to {rank - 1}, of which 0 is the batch")
    return axis


def _row_shape(what: str, wanted: Attribute, shape: Shape) -> tuple[int, ...]:
    """ONNX's 0 (copy) and −1 (work out), resolved: (0, extents of a row…)."""
    assert isinstance(wanted, tuple)
    asked = tuple(int(n) for n in wanted)
    if not shape or shape[0] != BATCH:
        raise ModelError(f"{what}: shape {show(shape)} has no batch at axis 0")
    row = [shape[i] if n == 0 and i < len(shape) else n for i, n in enumerate(asked)][1:]
    size, free = elements(shape[1:]), [i for i, n in enumerate(row) if n == -1]
    known = elements(tuple(n for n in row if n != -1))
    # A leading −1 stands for the batch where the rest already accounts for a whole row.
    ok = bool(asked) and (asked[0] in (0, BATCH)) and known > 0 and len(free) + (asked[0] == -1) <= 1
    if ok and free:
        row[free[0]], rest = divmod(size, known)
        ok = rest == 0
    if not ok or elements(tuple(row)) != size:
        raise ModelError(f"{what}: a value of shape {show(shape)} cannot become {asked}; rows keep their {size} elements, "
                         f"and the batch stays at axis 0")  # fmt: skip
    return (0, *row)


_AXIS = AttributeRule("axis")
_FLAG = AttributeRule("int", 0, 0, 1)
_KEEP = AttributeRule("int", 1, 0, 1)
_PAIR = AttributeRule("ints", (1, 1), 1, length=2)
_PADS = AttributeRule("ints", (0, 0, 0, 0), 0, length=4)
_WINDOW = {"kernel_shape": AttributeRule("ints", None, 1, length=2), "strides": _PAIR, "pads": _PADS}
_CONV = {"strides": _PAIR, "pads": _PADS, "dilations": _PAIR, "group": AttributeRule("int", 1, 1)}
_BATCH_NORMALIZATION = {
    "epsilon": AttributeRule("float", 1e-5, 0.0, 1.0),
    "momentum": AttributeRule("float", 0.9, 0.0, 1.0),
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
    "Relu": Row("", shapes.same, costs.per_output(1)),
    "Sigmoid": Row("", shapes.same, costs.per_output(_TRANSCENDENTAL_FLOPS)),
    "Tanh": Row("", shapes.same, costs.per_output(_TRANSCENDENTAL_FLOPS)),
    "Softmax": Row("", shapes.same, costs.per_output(_SOFTMAX_FLOPS), attributes={"axis": AttributeRule("axis", -1)}),
    "Add": Row("", shapes.arithmetic, costs.per_output(1), inputs=(2, 2)),
    "Sub": Row("", shapes.arithmetic, costs.per_output(1), inputs=(2, 2)),
    "Mul": Row("", shapes.arithmetic, costs.per_output(1), inputs=(2, 2)),
    "Concat": Row("", shapes.concat, costs.per_output(0), inputs=(1, 1000), attributes={"axis": _AXIS}),
    "Reshape": Row("", shapes.reshape, costs.view, attributes={"shape": AttributeRule("ints", None, -1)}),
    "Flatten": Row("", shapes.flatten, costs.view, attributes={"axis": AttributeRule("int", 1, 1, 1)}),
    "Transpose": Row("", shapes.transpose, costs.per_output(0), attributes={"perm": AttributeRule("ints")}),
    "ReduceMean": Row(
        "", shapes.reduce_mean, costs.per_input(1), attributes={"axes": AttributeRule("axes"), "keepdims": _KEEP}
    ),
    "ArgMax": Row("", shapes.arg_max, costs.per_input(1), (0,), attributes={"axis": _AXIS, "keepdims": _KEEP}),
    "Dropout": Row("", shapes.same, costs.per_output(4), attributes={"ratio": AttributeRule("float", 0.5, 0.0, 1.0)}),
    "SoftmaxCrossEntropyLoss": Row(
        "", shapes.classification_loss, costs.per_input(_SOFTMAX_FLOPS), (1,), inputs=(2, 2)
    ),
    "MeanSquaredError": Row("p2pnn", shapes.regression_loss, costs.per_input(3), (1,), inputs=(2, 2)),
    "Accuracy": Row("p2pnn", shapes.classification_metric, costs.per_input(1), (0, 1), inputs=(2, 2)),
    "TopKAccuracy": Row(
        "p2pnn",
        shapes.classification_metric,
        costs.per_input(4),
        (0, 1),
        inputs=(2, 2),
        attributes={"k": AttributeRule("int", 5, 1)},
    ),
    "AbsoluteError": Row("p2pnn", shapes.regression_metric, costs.per_input(2), (0, 1), inputs=(2, 2)),
    "SquaredError": Row("p2pnn", shapes.regression_metric, costs.per_input(3), (0, 1), inputs=(2, 2)),
    "TokenLoss": Row("p2pnn", shapes.classification_metric, costs.per_input(_SOFTMAX_FLOPS), (0, 1), inputs=(2, 2)),
}
"""Every kind that a graph may hold. Gradients never flow to labels, targets, running statistics or into metrics."""
