"""Losses and metrics.

Scores (logits) are (batch, classes) with labels int64 (batch,); (batch, positions, classes) with labels (batch, positions);
or, for images, (batch, classes, height, width) with labels (batch, height, width). axis says where else the classes are, as
ONNX and PyTorch have them at axis 1 of a sequence too. Means are over all labels of all rows.

A prediction of shape (batch, 1) is taken as (batch,) where its target has that shape.
"""

from __future__ import annotations

from p2pnn.nn.value import Metric, Owner, Value, call


def cross_entropy(scores: Value, labels: Value, axis: int | None = None, name: str | None = None) -> Value:
    """Loss: the mean over all labels of −log softmax(scores)[label]."""
    owner = Owner.here(name, "cross_entropy")
    return call("SoftmaxCrossEntropyLoss", owner, (scores, labels), axis=_classes(scores, axis))


def mean_squared_error(prediction: Value, target: Value, name: str | None = None) -> Value:
    """Loss: the mean of (prediction − target)² over all elements. No gradient flows into the target."""
    return _compare("MeanSquaredError", "mean_squared_error", prediction, target, name)


def accuracy(scores: Value, labels: Value, axis: int | None = None, name: str | None = None) -> Metric:
    """Metric: the part of labels that have the largest score."""
    owner = Owner.here(name, "accuracy")
    return Metric(call("Accuracy", owner, (scores, labels), axis=_classes(scores, axis)), "mean", "max")


def top_k_accuracy(
    scores: Value, labels: Value, k: int = 5, axis: int | None = None, name: str | None = None
) -> Metric:
    """Metric: the part of labels that are among the k largest scores."""
    owner = Owner.here(name, "top_k_accuracy")
    return Metric(call("TopKAccuracy", owner, (scores, labels), k=k, axis=_classes(scores, axis)), "mean", "max")


def perplexity(scores: Value, labels: Value, axis: int | None = None, name: str | None = None) -> Metric:
    """Metric: e to the mean cross-entropy."""
    owner = Owner.here(name, "perplexity")
    return Metric(call("TokenLoss", owner, (scores, labels), axis=_classes(scores, axis)), "exp", "min")


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


def _classes(scores: Value, axis: int | None) -> int:
    """The axis that was given, else the one that is meant: the channels of an image, the last of anything else."""
    images = isinstance(scores, Value) and len(scores.shape) == 4
    return axis if axis is not None else 1 if images else -1
