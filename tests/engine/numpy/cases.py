"""One small graph per case: an op of every kind, in every variant that its kernel tells apart."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

from p2pnn.engine.numpy.table import KERNELS
from tests.engine.numpy.build import Build


def image(b: Build, channels: int = 4, height: int = 7, width: int = 6) -> str:
    """A value of rank 4 through which gradients flow."""
    return b.op("Add", b.input(channels, height, width), b.parameter(channels, height, width))


def line(b: Build, features: int = 5) -> str:
    return b.op("Add", b.input(features), b.parameter(features))


def sequence(b: Build) -> str:
    return b.op("Add", b.input(4, 3), b.parameter(4, 3))


def attended(
    b: Build, n: int, m: int, heads: int, shared: int, size: int = 3, width: int = 2, **attributes: int
) -> str:
    """An Attention of n queries to m keys."""
    wide = [(n, heads * size), (m, shared * size), (m, shared * width)]
    values = [b.op("Add", b.input(*shape), b.parameter(*shape)) for shape in wide]
    return b.op("Attention", *values, q_num_heads=heads, kv_num_heads=shared, **attributes)


def halves(b: Build, x: str, axis: int, *parts: int) -> str:
    """A Split whose parts meet again, reversed, and of which the first is also read alone."""
    made = b.parts("Split", x, axis=axis, split=parts)
    joined = b.op("Concat", *reversed(made), axis=axis)
    return b.op("Concat", joined, b.op("Tanh", made[0]), axis=axis)


def positive(b: Build, x: str) -> str:
    return b.op("Exp", x)


CASES: dict[str, Callable[[Build], str]] = {
    "Relu": lambda b: b.op("Relu", image(b)),
    "Sigmoid": lambda b: b.op("Sigmoid", image(b)),
    "Tanh": lambda b: b.op("Tanh", line(b)),
    "Dropout": lambda b: b.op("Dropout", image(b), ratio=0.4),
    "Dropout none": lambda b: b.op("Dropout", line(b), ratio=0.0),
    "Exp": lambda b: b.op("Exp", image(b)),
    "Log": lambda b: b.op("Log", positive(b, sequence(b))),
    "Sqrt": lambda b: b.op("Sqrt", positive(b, image(b))),
    "Neg": lambda b: b.op("Neg", line(b)),
    "Identity": lambda b: b.op("Identity", image(b)),
    "Clip": lambda b: b.op("Clip", image(b), min=-0.5, max=0.7),
    "Clip below": lambda b: b.op("Clip", line(b), min=0.1),
    "Erf": lambda b: b.op("Erf", image(b)),
    "Gelu": lambda b: b.op("Gelu", image(b)),
    "Gelu tanh": lambda b: b.op("Gelu", line(b), approximate="tanh"),
    "Softmax": lambda b: b.op("Softmax", line(b)),
    "Softmax channels": lambda b: b.op("Softmax", image(b), axis=1),
    "Softmax middle": lambda b: b.op("Softmax", sequence(b), axis=1),
    "Gemm": lambda b: b.linear(line(b), 4),
    "Gemm sequence": lambda b: b.linear(sequence(b), 4),
    "Gemm sequence no bias": lambda b: b.op("Gemm", sequence(b), b.parameter(4, 3)),
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
    "LayerNormalization": lambda b: b.layer_norm(sequence(b)),
    "LayerNormalization rows": lambda b: b.layer_norm(line(b), bias=False),
    "LayerNormalization two axes": lambda b: b.layer_norm(sequence(b), 1),
    "LayerNormalization image": lambda b: b.layer_norm(image(b, 2, 3, 4), 2),
    "LayerNormalization no gradient": lambda b: b.layer_norm(b.input(4, 3)),
    "Gather": lambda b: b.embed(4),
    "Gather rows": lambda b: b.embed(rows=12, width=(2, 3)),
    "Gather scalars": lambda b: b.embed(3, 2, 2, width=()),
    "Gather image": lambda b: b.embed(4, 2),
    "Gather large": lambda b: b.embed(6, rows=600, width=(64,)),
    "Attention": lambda b: attended(b, 5, 4, 2, 2),
    "Attention causal": lambda b: attended(b, 5, 5, 3, 3, is_causal=1),
    "Attention causal few keys": lambda b: attended(b, 5, 3, 1, 1, is_causal=1),
    "Attention causal many keys": lambda b: attended(b, 3, 5, 2, 2, is_causal=1),
    "Attention groups": lambda b: attended(b, 4, 4, 4, 2, is_causal=1),
    "Attention blocks": lambda b: attended(b, 130, 131, 2, 1, 1, 1, is_causal=1),
    "Attention itself": lambda b: (lambda x: b.op("Attention", x, x, x, q_num_heads=1, kv_num_heads=1))(sequence(b)),
    "Attention keys only": lambda b: b.op(
        "Attention", b.input(4, 3), sequence(b), b.input(4, 2), q_num_heads=1, kv_num_heads=1, scale=0.7
    ),
    "Split": lambda b: halves(b, sequence(b), 2, 1, 2),
    "Split image": lambda b: halves(b, image(b), 1, 1, 2, 1),
    "Split height": lambda b: halves(b, image(b), 2, 3, 4),
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
    "Div": lambda b: b.op("Div", image(b), positive(b, image(b))),
    "Div itself": lambda b: (lambda x: b.op("Div", x, x))(positive(b, line(b))),
    "Div channels": lambda b: b.op("Div", image(b), b.op("Exp", b.op("Add", b.input(4, 1, 1), b.parameter(4, 1, 1)))),
    "Div row": lambda b: b.op("Div", b.parameter(3), positive(b, sequence(b))),
    "Pow": lambda b: b.op("Pow", positive(b, image(b)), image(b)),
    "Pow scalar": lambda b: b.op("Pow", positive(b, sequence(b)), b.parameter(1)),
    "Pow row": lambda b: b.op("Pow", positive(b, line(b)), b.parameter(5)),
    "Pow of a parameter": lambda b: b.op("Pow", b.op("Exp", b.op("Add", b.input(1), b.parameter(1))), line(b)),
    "Where": lambda b: b.op("Where", b.input(4, 7, 6, dtype="bool"), image(b), image(b)),
    "Where rows": lambda b: b.op("Where", b.input(1, 3, dtype="bool"), sequence(b), b.parameter(4, 1)),
    "Where channels": lambda b: b.op("Where", b.input(4, 1, 1, dtype="bool"), b.parameter(1), image(b)),
    "Concat": lambda b: b.op("Concat", image(b, 2, 3, 4), b.input(3, 3, 4), image(b, 1, 3, 4), axis=1),
    "Concat width": lambda b: b.op("Concat", image(b, 2, 3, 4), image(b, 2, 3, 1), axis=3),
    "Reshape": lambda b: b.op("Reshape", sequence(b), shape=(0, 2, 6)),
    "Reshape image": lambda b: b.op("Reshape", image(b), shape=(0, 6, 4, 7)),
    "Reshape to image": lambda b: b.op("Reshape", sequence(b), shape=(0, 2, 3, 2)),
    "Flatten": lambda b: b.op("Flatten", image(b)),
    "Squeeze": lambda b: b.op("Squeeze", image(b, 1, 5, 1), axes=(1, 3)),
    "Squeeze one": lambda b: b.op("Squeeze", image(b, 4, 1, 3), axes=(2,)),
    "Unsqueeze": lambda b: b.op("Unsqueeze", sequence(b), axes=(1,)),
    "Unsqueeze both": lambda b: b.op("Unsqueeze", line(b), axes=(1, -1)),
    "Slice": lambda b: b.op("Slice", sequence(b), axes=(1,), starts=(1,), ends=(3,)),
    "Slice image": lambda b: b.op("Slice", image(b), axes=(3, 1), starts=(-5, 0), ends=(99, -1), steps=(2, 1)),
    "Transpose": lambda b: b.op("Transpose", image(b), perm=(0, 3, 1, 2)),
    "Transpose rank 3": lambda b: b.op("Transpose", sequence(b), perm=(0, 2, 1)),
    "ReduceSum": lambda b: b.op("ReduceSum", image(b), axes=(1, 3), keepdims=0),
    "ReduceSum keep": lambda b: b.op("ReduceSum", sequence(b), axes=(2,)),
    "ReduceMax": lambda b: b.op("ReduceMax", image(b), axes=(2, 3), keepdims=0),
    "ReduceMax channels": lambda b: b.op("ReduceMax", image(b), axes=(1,), keepdims=0),
    "ReduceMax keep": lambda b: b.op("ReduceMax", sequence(b), axes=(1,)),
    "ReduceMean": lambda b: b.op("ReduceMean", image(b), axes=(2, 3), keepdims=0),
    "ReduceMean one": lambda b: b.op("ReduceMean", image(b), axes=(2,), keepdims=0),
    "ReduceMean keep": lambda b: b.op("ReduceMean", image(b), axes=(1,), keepdims=1),
}
FORWARD_ONLY: dict[str, Callable[[Build], str]] = {
    "ArgMax": lambda b: b.op("ArgMax", line(b), axis=1, keepdims=0),
    "ArgMax image": lambda b: b.op("ArgMax", image(b), axis=1),
    "ArgMax width": lambda b: b.op("ArgMax", image(b), axis=3, keepdims=0),
    "Conv large": lambda b: b.conv(b.input(17, 40, 38), 24, 3, pads=(1, 1, 1, 1)),
    "Gemm twice": lambda b: b.op("Relu", b.linear(b.op("Tanh", b.linear(line(b), 7)), 3)),
    "Flatten sequence": lambda b: b.op("Flatten", sequence(b)),
}
"""Without gradients, or too large for finite differences."""

NO_GRADIENT = {"ArgMax", "Accuracy", "TopKAccuracy", "AbsoluteError", "SquaredError", "TokenLoss"}
LOSSES = {"MeanSquaredError", "SoftmaxCrossEntropyLoss"}


def cases_of(module: ModuleType, *, forward: bool = False) -> list[str]:
    """The cases of the kinds whose kernels a module holds."""
    names = {**CASES, **(FORWARD_ONLY if forward else {})}
    return [name for name in names if KERNELS[name.split()[0]].__module__ == module.__name__]
