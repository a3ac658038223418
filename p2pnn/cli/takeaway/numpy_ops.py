"""The forward functions that a generated predict.py may hold, with numpy alone.

Each is copied into the script as it stands here, so it reads well alone, needs math and numpy only, and works on ONNX's layouts:
images are (rows, channels, height, width). They are written to be understood; the engines are the fast ones.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def gemm(x: Array, weight: Array, bias: Array | None = None) -> Array:
    y = x @ weight.T
    return y if bias is None else y + bias


def windows_of(x: Array, extent: tuple[int, int], strides: tuple[int, int]) -> Array:
    """Every window of the image: (rows, channels, out height, out width, extent height, extent width)."""
    view = np.lib.stride_tricks.sliding_window_view(x, extent, axis=(2, 3))
    return view[:, :, :: strides[0], :: strides[1]]


def padded(x: Array, pads: tuple[int, int, int, int], value: float = 0.0) -> Array:
    """pads: top, left, bottom, right."""
    top, left, bottom, right = pads
    return np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=value)


def conv(x, weight, bias=None, *, strides, pads, dilations, group):  # type: ignore[no-untyped-def]
    outputs, channels, height, width = weight.shape
    extent = ((height - 1) * dilations[0] + 1, (width - 1) * dilations[1] + 1)
    view = windows_of(padded(x, pads), extent, strides)[..., :: dilations[0], :: dilations[1]]
    each = outputs // group
    parts = [
        np.tensordot(
            view[:, g * channels : (g + 1) * channels], weight[g * each : (g + 1) * each], ((1, 4, 5), (1, 2, 3))
        )
        for g in range(group)
    ]
    y = np.concatenate(parts, axis=3).transpose(0, 3, 1, 2)
    return y if bias is None else y + bias[:, None, None]


def max_pool(x, *, kernel_shape, strides, pads):  # type: ignore[no-untyped-def]
    return windows_of(padded(x, pads, -np.inf), kernel_shape, strides).max(axis=(4, 5))


def average_pool(x, *, kernel_shape, strides, pads, count_include_pad):  # type: ignore[no-untyped-def]
    total = windows_of(padded(x, pads), kernel_shape, strides).sum(axis=(4, 5))
    ones = padded(np.ones_like(x[:1, :1]), pads, 1.0 if count_include_pad else 0.0)
    return total / windows_of(ones, kernel_shape, strides).sum(axis=(4, 5))


def batch_normalization(x, weight, bias, mean, variance, *, epsilon):  # type: ignore[no-untyped-def]
    shape = (-1,) + (1,) * (x.ndim - 2)
    factor = weight / np.sqrt(variance + np.float32(epsilon))
    return (x - mean.reshape(shape)) * factor.reshape(shape) + bias.reshape(shape)


def sigmoid(x: Array) -> Array:
    half = np.float32(0.5)
    return half * (np.tanh(half * x) + 1)


def softmax(x, *, axis):  # type: ignore[no-untyped-def]
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def erf(x):  # type: ignore[no-untyped-def]
    return np.vectorize(math.erf, otypes=[x.dtype])(x)


def gelu(x, *, approximate):  # type: ignore[no-untyped-def]
    if approximate == "none":
        return x * (1 + erf(x / math.sqrt(2))) / 2  # type: ignore[no-untyped-call]
    return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def layer_normalization(x, weight, bias=None, *, axis, epsilon):  # type: ignore[no-untyped-def]
    axes = tuple(range(axis, x.ndim))
    centered = x - x.mean(axis=axes, keepdims=True)
    y = centered / np.sqrt((centered**2).mean(axis=axes, keepdims=True) + np.float32(epsilon)) * weight
    return y if bias is None else y + bias


def gather(table, indices):  # type: ignore[no-untyped-def]
    if indices.size and not 0 <= indices.min() <= indices.max() < len(table):
        raise ValueError(f"indices must be 0 to {len(table) - 1}; these are {indices.min()} to {indices.max()}")
    return table[indices]


def attention(queries, keys, values, *, q_num_heads, kv_num_heads, is_causal, scale):  # type: ignore[no-untyped-def]
    """Heads lie side by side in the last axis; several query heads may share a key head."""
    q, k, v = (
        x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)
        for x, heads in ((queries, q_num_heads), (keys, kv_num_heads), (values, kv_num_heads))
    )
    k, v = (np.repeat(x, q_num_heads // kv_num_heads, axis=1) for x in (k, v))
    scores = scale * (q @ k.transpose(0, 1, 3, 2))
    if is_causal:
        scores = np.where(np.tri(*scores.shape[2:], dtype=np.bool_), scores, -np.inf)
    y = softmax(scores, axis=-1) @ v  # type: ignore[no-untyped-call]
    return y.transpose(0, 2, 1, 3).reshape(*queries.shape[:2], -1)
