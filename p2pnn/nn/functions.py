"""Functions of values: everything without parameters. Each takes `name` for those who want to pin its op to a node.

Scores (logits) are (batch, classes) and labels int64 (batch,). A prediction of shape (batch, 1) is taken as (batch,) where
its target has that shape.
"""

from __future__ import annotations

from collections.abc import Sequence

from p2pnn.model.graph import BATCH
from p2pnn.nn.value import Metric, Owner, Value, call


def relu(x: Value, name: str | None = None) -> Value:
    """max(x, 0)."""
    return call("Relu", Owner.here(name, "relu"), (x,))


def sigmoid(x: Value, name: str | None = None) -> Value:
    """1 / (1 + e^−x)."""
    return call("Sigmoid", Owner.here(name, "sigmoid"), (x,))


def tanh(x: Value, name: str | None = None) -> Value:
    """The hyperbolic tangent."""
    return call("Tanh", Owner.here(name, "tanh"), (x,))


def softmax(x: Value, axis: int = -1, name: str | None = None) -> Value:
    """e^x / Σ e^x along an axis. Losses and metrics take scores, not this."""
    return call("Softmax", Owner.here(name, "softmax"), (x,), axis=axis)


def flatten(x: Value, name: str | None = None) -> Value:
    """(batch, …) → (batch, features)."""
    return call("Flatten", Owner.here(name, "flatten"), (x,))


def reshape(x: Value, shape: Sequence[int], name: str | None = None) -> Value:
    """Give every row another shape. shape: (nn.BATCH, …), in which one further extent may be −1: worked out."""
    wanted = tuple(shape)
    return call(
        "Reshape", Owner.here(name, "reshape"), (x,), shape=(0, *wanted[1:]) if wanted[:1] == (BATCH,) else wanted
    )


def transpose(x: Value, axes: Sequence[int], name: str | None = None) -> Value:
    """Reorder axes: axis i of the result is axis axes[i] of x; axes[0] is 0, the batch."""
    return call("Transpose", Owner.here(name, "transpose"), (x,), perm=tuple(axes))


def concat(values: Sequence[Value], axis: int = 1, name: str | None = None) -> Value:
    """Join values along an axis; all other axes are equal."""
    return call("Concat", Owner.here(name, "concat"), tuple(values), axis=axis)


def global_average_pool(x: Value, name: str | None = None) -> Value:
    """(batch, C, H, W) → (batch, C): the mean of each channel."""
    owner = Owner.here(name, "global_average_pool")
    return call("Flatten", owner, (call("GlobalAveragePool", owner, (x,)),), "flatten")


def reduce_mean(x: Value, axes: Sequence[int], keepdims: bool = False, name: str | None = None) -> Value:
    """The mean over some axes, never the batch; keepdims leaves them as 1."""
    return call("ReduceMean", Owner.here(name, "reduce_mean"), (x,), axes=tuple(axes), keepdims=int(keepdims))


def matmul(a: Value, b: Value, name: str | None = None) -> Value:
    """numpy.matmul: (…, n, k) · (…, k, m)."""
    return call("MatMul", Owner.here(name, "matmul"), (a, b))


def argmax(x: Value, axis: int = -1, keepdims: bool = False, name: str | None = None) -> Value:
    """The index of the largest element, int64: for outputs such as the predicted class."""
    return call("ArgMax", Owner.here(name, "argmax"), (x,), axis=axis, keepdims=int(keepdims))


def cross_entropy(scores: Value, labels: Value, name: str | None = None) -> Value:
    """Loss: the mean of −log softmax(scores)[label]."""
    return call("SoftmaxCrossEntropyLoss", Owner.here(name, "cross_entropy"), (scores, labels))


def mean_squared_error(prediction: Value, target: Value, name: str | None = None) -> Value:
    """Loss: the mean of (prediction − target)² over all elements. No gradient flows into the target."""
    return _compare("MeanSquaredError", "mean_squared_error", prediction, target, name)


def accuracy(scores: Value, labels: Value, name: str | None = None) -> Metric:
    """Metric: the part of rows whose largest score is the label's."""
    return Metric(call("Accuracy", Owner.here(name, "accuracy"), (scores, labels)), "mean", "max")


def top_k_accuracy(scores: Value, labels: Value, k: int = 5, name: str | None = None) -> Metric:
    """Metric: the part of rows whose label is among the k largest scores."""
    return Metric(call("TopKAccuracy", Owner.here(name, "top_k_accuracy"), (scores, labels), k=k), "mean", "max")


def perplexity(scores: Value, labels: Value, name: str | None = None) -> Metric:
    """Metric: e to the mean cross-entropy."""
    return Metric(call("TokenLoss", Owner.here(name, "perplexity"), (scores, labels)), "exp", "min")


def mean_absolute_error(prediction: Value, target: Value, name: str | None = None) -> Metric:
    """Metric: the mean of |prediction − target|."""
    return Metric(_compare("AbsoluteError", "mean_absolute_error", prediction, target, name), "mean", "min")


def rmse(prediction: Value, target: Value, name: str | None = None) -> Metric:
    """Metric: the root of the mean of (prediction − target)²."""
    return Metric(_compare("SquaredError", "rmse", prediction, target, name), "root", "min")


def _compare(kind: str, stem: str, prediction: Value, target: Value, name: str | None) -> Value:
    owner = Owner.here(name, stem)
    if isinstance(prediction, Value) and isinstance(target, Value) and prediction.shape == (*target.shape, 1):
        prediction = call("Reshape", owner, (prediction,), "reshape", shape=(0, *target.shape[1:]))
    return call(kind, owner, (prediction, target))
