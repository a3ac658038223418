"""The numpy engine's table: one kernel per operator kind, the same kinds as `model.ops.TABLE`."""

from __future__ import annotations

from typing import Final

from p2pnn.engine.numpy import (
    arithmetic,
    attention,
    convolution,
    dense,
    elementwise,
    erf,
    gather,
    layer_norm,
    loss,
    metrics,
    normalization,
    pooling,
    shape,
)
from p2pnn.engine.numpy.kernel import Kernel

KERNELS: Final[dict[str, type[Kernel]]] = {
    "Gemm": dense.Gemm,
    "MatMul": dense.MatMul,
    "Conv": convolution.Conv,
    "MaxPool": pooling.MaxPool,
    "AveragePool": pooling.AveragePool,
    "GlobalAveragePool": pooling.GlobalAveragePool,
    "BatchNormalization": normalization.BatchNormalization,
    "LayerNormalization": layer_norm.LayerNormalization,
    "Attention": attention.Attention,
    "Relu": elementwise.Relu,
    "Sigmoid": elementwise.Sigmoid,
    "Gelu": erf.Gelu,
    "Tanh": elementwise.Tanh,
    "Softmax": loss.Softmax,
    "Add": arithmetic.Add,
    "Sub": arithmetic.Sub,
    "Mul": arithmetic.Mul,
    "Gather": gather.Gather,
    "Split": shape.Split,
    "Concat": shape.Concat,
    "Reshape": shape.Reshape,
    "Flatten": shape.Reshape,
    "Transpose": shape.Transpose,
    "ReduceMean": shape.ReduceMean,
    "ArgMax": shape.ArgMax,
    "Dropout": elementwise.Dropout,
    "SoftmaxCrossEntropyLoss": loss.SoftmaxCrossEntropyLoss,
    "MeanSquaredError": loss.MeanSquaredError,
    "Accuracy": metrics.Accuracy,
    "TopKAccuracy": metrics.TopKAccuracy,
    "AbsoluteError": metrics.AbsoluteError,
    "SquaredError": metrics.SquaredError,
    "TokenLoss": metrics.TokenLoss,
}
