"""Functions of values: everything without parameters. Each takes `name` for those who want to pin its op to a node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from p2pnn.errors import ModelError
from p2pnn.model.graph import BATCH
from p2pnn.nn.value import Owner, Value, call, calls


def relu(x: Value, name: str | None = None) -> Value:
    """max(x, 0)."""
    return call("Relu", Owner.here(name, "relu"), (x,))


def sigmoid(x: Value, name: str | None = None) -> Value:
    """1 / (1 + e^−x)."""
    return call("Sigmoid", Owner.here(name, "sigmoid"), (x,))


def tanh(x: Value, name: str | None = None) -> Value:
    """The hyperbolic tangent."""
    return call("Tanh", Owner.here(name, "tanh"), (x,))


def exp(x: Value, name: str | None = None) -> Value:
    """e^x."""
    return call("Exp", Owner.here(name, "exp"), (x,))


def log(x: Value, name: str | None = None) -> Value:
    """The natural logarithm."""
    return call("Log", Owner.here(name, "log"), (x,))


def sqrt(x: Value, name: str | None = None) -> Value:
    """The square root."""
    return call("Sqrt", Owner.here(name, "sqrt"), (x,))


def erf(x: Value, name: str | None = None) -> Value:
    """The error function, 2/√π · ∫ e^(−t²) dt from 0 to x."""
    return call("Erf", Owner.here(name, "erf"), (x,))


def clip(x: Value, least: float | None = None, most: float | None = None, name: str | None = None) -> Value:
    """x, but at least `least` and at most `most`; None for no bound. Beyond them no gradient flows."""
    bounds = {key: value for key, value in (("min", least), ("max", most)) if value is not None}
    return call("Clip", Owner.here(name, "clip"), (x,), "", **bounds)


def where(condition: Value, a: Value, b: Value, name: str | None = None) -> Value:
    """a where the condition, a bool input, holds, else b; with numpy's broadcasting."""
    return call("Where", Owner.here(name, "where"), (condition, a, b))


def identity(x: Value, name: str | None = None) -> Value:
    """x itself, under a name of its own."""
    return call("Identity", Owner.here(name, "identity"), (x,))


def gelu(x: Value, approximate: str = "none", name: str | None = None) -> Value:
    """x · Φ(x), Φ the normal distribution. approximate: "none", or "tanh", which takes half the time."""
    return call("Gelu", Owner.here(name, "gelu"), (x,), approximate=approximate)


def layer_norm(
    x: Value, weight: Value, bias: Value | None = None, axis: int = -1, epsilon: float = 1e-5, name: str | None = None
) -> Value:
    """Normalize each line of the axes from `axis` on, with given parameters; `nn.LayerNorm` makes its own."""
    given = (x, weight) if bias is None else (x, weight, bias)
    return call("LayerNormalization", Owner.here(name, "layer_norm"), given, axis=axis, epsilon=epsilon)


def attention(
    queries: Value,
    keys: Value,
    values: Value,
    heads: int,
    key_heads: int | None = None,
    causal: bool = False,
    scale: float | None = None,
    name: str | None = None,
) -> Value:
    """softmax(scale · Q·Kᵀ) · V in each head: queries (batch, n, heads · size), keys (batch, m, key_heads · size), values
    (batch, m, key_heads · width) → (batch, n, heads · width).

    key_heads: fewer than heads where several query heads share one. causal: query i sees keys 0 to i. scale: None for
    1/√size. `nn.MultiHeadAttention` adds the projections.
    """
    owner = Owner.here(name, "attention")
    if key_heads is not None and key_heads < 1:
        raise ModelError(f"{owner}: key_heads = {key_heads}: give at least 1, or leave it away for as many as heads")
    if scale == 0:
        raise ModelError(f"{owner}: scale = 0 would make all scores equal; leave it away for 1/√size")
    settings: dict[str, Any] = {
        "q_num_heads": heads,
        "kv_num_heads": key_heads or 0,
        "is_causal": int(causal),
        "scale": scale or 0.0,
    }
    return call("Attention", owner, (queries, keys, values), **settings)


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


def split(x: Value, parts: int | Sequence[int], axis: int = 1, name: str | None = None) -> tuple[Value, ...]:
    """Parts behind each other along an axis. parts: how many equal ones, or their extents."""
    owner = Owner.here(name, "split")
    if isinstance(parts, int):
        extent = x.shape[axis] if isinstance(x, Value) and -len(x.shape) <= axis < len(x.shape) else 0
        if parts < 1 or extent % parts:
            raise ModelError(f"{owner}: {extent} at axis {axis} do not divide into {parts} equal parts")
        parts = (extent // parts,) * parts
    return calls("Split", owner, (x,), axis=axis, split=tuple(parts))


def squeeze(x: Value, axes: Sequence[int], name: str | None = None) -> Value:
    """x without axes of extent 1."""
    return call("Squeeze", Owner.here(name, "squeeze"), (x,), axes=tuple(axes))


def unsqueeze(x: Value, axes: Sequence[int], name: str | None = None) -> Value:
    """x with axes of extent 1 put in; they count in the result."""
    return call("Unsqueeze", Owner.here(name, "unsqueeze"), (x,), axes=tuple(axes))


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


def reduce_sum(x: Value, axes: Sequence[int], keepdims: bool = False, name: str | None = None) -> Value:
    """The sum over some axes, never the batch; keepdims leaves them as 1."""
    return call("ReduceSum", Owner.here(name, "reduce_sum"), (x,), axes=tuple(axes), keepdims=int(keepdims))


def reduce_max(x: Value, axes: Sequence[int], keepdims: bool = False, name: str | None = None) -> Value:
    """The largest over some axes, never the batch; keepdims leaves them as 1. Equal ones share the gradient."""
    return call("ReduceMax", Owner.here(name, "reduce_max"), (x,), axes=tuple(axes), keepdims=int(keepdims))


def matmul(a: Value, b: Value, name: str | None = None) -> Value:
    """numpy.matmul: (…, n, k) · (…, k, m)."""
    return call("MatMul", Owner.here(name, "matmul"), (a, b))


def argmax(x: Value, axis: int = -1, keepdims: bool = False, name: str | None = None) -> Value:
    """The index of the largest element, int64: for outputs such as the predicted class."""
    return call("ArgMax", Owner.here(name, "argmax"), (x,), axis=axis, keepdims=int(keepdims))
