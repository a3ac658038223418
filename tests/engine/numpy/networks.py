"""Networks of the kinds that must give the same bits however they are cut."""

from __future__ import annotations

from p2pnn.model.graph import Graph
from tests.engine.numpy.build import Build


def lenet() -> Graph:
    b = Build()
    h = b.op("Relu", b.conv(b.input(1, 12, 12), 4, 5, pads=(2, 2, 2, 2)))
    h = b.op("MaxPool", h, kernel_shape=(2, 2), strides=(2, 2))
    h = b.op("Relu", b.conv(h, 6, 3))
    h = b.op("AveragePool", h, kernel_shape=(2, 2), strides=(2, 2))
    h = b.op("Tanh", b.linear(b.op("Flatten", h), 12))
    return b.classify(b.linear(h, 10))


def resnet() -> Graph:
    b = Build()
    h = b.input(3, 8, 8)
    for channels, stride in ((4, 1), (8, 2)):
        x = h
        h = b.op("Relu", b.norm(b.conv(h, channels, 3, strides=(stride, stride), pads=(1, 1, 1, 1), bias=False)))
        h = b.norm(b.conv(h, channels, 3, pads=(1, 1, 1, 1), bias=False))
        x = b.conv(x, channels, 1, strides=(stride, stride), bias=False)
        h = b.op("Relu", b.op("Add", x, h))
    return b.classify(b.linear(b.op("Flatten", b.op("GlobalAveragePool", h)), 10))


def diamond() -> Graph:
    """One value with four consumers, one of which reads it twice; two losses, one of which is read again."""
    b = Build()
    x = b.linear(b.input(9), 10)
    left, right = b.op("Sigmoid", x), b.op("Softmax", x)
    both = b.op("Add", b.op("Mul", x, x), b.op("Sub", left, x))
    joined = b.op("Concat", both, right, left, axis=1)
    target = b.input(30)
    loss = b.op("MeanSquaredError", joined, target)
    labels = b.input(dtype="int64")
    scores = b.linear(joined, 10)
    return b.graph(
        {"scores": scores},
        [loss, b.op("SoftmaxCrossEntropyLoss", scores, labels)],
        [b.op("Accuracy", scores, labels), b.op("SquaredError", joined, target)],
    )


def shared() -> Graph:
    """One weight that three ops read. They stay on one node."""
    b = Build()
    w, bias = b.parameter(6, 6), b.parameter(6)
    h = b.input(6)
    for _ in range(3):
        h = b.op("Tanh", b.op("Gemm", h, w, bias))
    return b.classify(b.linear(h, 10))


def dropout() -> Graph:
    b = Build()
    h = b.norm(b.linear(b.input(7), 8))
    h = b.op("Dropout", b.op("Relu", h), ratio=0.3)
    h = b.norm(b.linear(h, 8))
    return b.classify(b.linear(b.op("Dropout", h, ratio=0.5), 10))


def reader() -> Graph:
    """A small transformer: tables, a Split whose parts travel apart, attention, and a loss at every position."""
    b = Build()
    labels = b.input(6, dtype="int64")
    h = b.op("Add", b.embed(6, width=(8,)), b.parameter(6, 8))
    q, k, v = b.parts("Split", b.linear(b.layer_norm(h), 24), axis=2, split=(8, 8, 8))
    attended = b.op("Attention", q, k, v, q_num_heads=2, kv_num_heads=2, is_causal=1)
    h = b.op("Add", h, b.linear(attended, 8))
    wide = b.op("Gelu", b.linear(b.layer_norm(h), 16))
    _unread, half = b.parts("Split", b.linear(wide, 12), axis=2, split=(4, 8))
    scores = b.linear(b.op("Add", h, half), 10)
    loss = b.op("SoftmaxCrossEntropyLoss", scores, labels, axis=2)
    metrics = [b.op(kind, scores, labels, axis=2) for kind in ("Accuracy", "TokenLoss")]
    return b.graph({"probability": b.op("Softmax", scores)}, [loss], metrics)


def composed() -> Graph:
    """Layer normalization written out: what elementwise, reducing and moving kinds make of each other's gradients."""
    b = Build()
    x = b.linear(b.input(4, 3), 6)
    centered = b.op("Sub", x, b.op("ReduceMean", x, axes=(2,)))
    variance = b.op("ReduceSum", b.op("Pow", b.op("Exp", b.op("Neg", centered)), b.parameter(1)), axes=(2,))
    y = b.op("Div", centered, b.op("Sqrt", b.op("Log", b.op("Add", b.op("Clip", variance, min=1.5), variance))))
    y = b.op("Where", b.input(4, 1, dtype="bool"), b.op("Erf", y), b.op("Identity", y))
    top = b.op("Squeeze", b.op("ReduceMax", b.op("Unsqueeze", y, axes=(1,)), axes=(2,)), axes=(1, 2))
    first = b.op("Slice", y, axes=(1,), starts=(0,), ends=(1,))
    return b.classify(b.linear(b.op("Concat", top, b.op("Flatten", first), axis=1), 10))


NETWORKS = {
    "lenet": lenet,
    "resnet": resnet,
    "diamond": diamond,
    "shared": shared,
    "dropout": dropout,
    "reader": reader,
    "composed": composed,
}
