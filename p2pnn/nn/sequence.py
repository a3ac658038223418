"""Layers of networks that read sequences: tables of vectors, normalization of lines, attention.

A sequence is (batch, positions, features). `nn.Linear` works on it at every position.
"""

from __future__ import annotations

from typing import Any

from p2pnn.errors import ModelError
from p2pnn.model.graph import BATCH, Initializer, show
from p2pnn.nn.layers import Layer, positive, weight_and_bias
from p2pnn.nn.value import Value, call, calls, tensor


class Embedding(Layer):
    """A table of `count` vectors of `features`, chosen by indices: int64 (batch, …) → (batch, …, features).

    Parameter: weight (count, features). It starts normal with a standard deviation of `scale`: 1, as PyTorch's; language
    models often take 0.02. Indices are 0 to count − 1; others are refused as the job runs.
    """

    stem = "embedding"

    def __init__(self, count: int, features: int, *, scale: float = 1.0, name: str | None = None) -> None:
        super().__init__(name)
        self.count, self.features = positive(self, "count", count), positive(self, "features", features)
        self.scale = scale

    def make(self, x: Value) -> tuple[Value, ...]:
        if x.dtype != "int64" or x.shape[:1] != (BATCH,):
            raise ModelError(
                f"{self.owner}: the input {x.label} is {x.dtype} of shape {show(x.shape)}, but it takes int64 (batch, …); "
                f'make it with nn.Input(…, dtype="int64")'
            )
        return (tensor(self.owner, "weight", (self.count, self.features), Initializer("normal", scale=self.scale)),)

    def apply(self, x: Value, parameters: tuple[Value, ...]) -> Value:
        return call("Gather", self.owner, (*parameters, x), axis=0)


class LayerNorm(Layer):
    """Normalizes each row's, or each position's, last axes: those from `axis` on; same shape out.

    Parameters: weight and, unless bias is False, bias, of the shape of these axes. Variances are population variances.
    """

    stem = "layer_norm"

    def __init__(self, *, axis: int = -1, bias: bool = True, epsilon: float = 1e-5, name: str | None = None) -> None:
        super().__init__(name)
        self.axis, self.bias, self.epsilon = axis, bias, epsilon

    def make(self, x: Value) -> tuple[Value, ...]:
        axis = self.axis + len(x.shape) if self.axis < 0 else self.axis
        if not 1 <= axis < len(x.shape):
            raise ModelError(f"{self.owner}: the input {x.label} has shape {show(x.shape)}, which has no axis {self.axis} "
                             f"behind the batch")  # fmt: skip
        weight = tensor(self.owner, "weight", x.shape[axis:], Initializer("constant", value=1.0), decay=False)
        bias = tensor(self.owner, "bias", x.shape[axis:], Initializer("constant"), decay=False)
        return (weight, bias) if self.bias else (weight,)

    def apply(self, x: Value, parameters: tuple[Value, ...]) -> Value:
        return call("LayerNormalization", self.owner, (x, *parameters), axis=self.axis, epsilon=self.epsilon)


class MultiHeadAttention(Layer):
    """Self-attention: every position gathers from the others, in `heads` heads; (batch, n, features), same shape out.

    One projection makes queries, keys and values, another joins the heads. causal: a position sees itself and those before
    it. Parameters: qkv/weight (3 · features, features), queries first, qkv/bias; projection/weight (features, features),
    projection/bias. scale, projection_scale: standard deviations of the first weights, as of `nn.Linear`.
    """

    stem = "attention"

    def __init__(
        self,
        heads: int,
        *,
        causal: bool = False,
        bias: bool = True,
        scale: float | None = None,
        projection_scale: float | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        self.heads, self.causal, self.bias = positive(self, "heads", heads), causal, bias
        self.scale, self.projection_scale = scale, scale if projection_scale is None else projection_scale

    def make(self, x: Value) -> tuple[Value, ...]:
        self.needs(x, 3)
        features = x.shape[2]
        if features % self.heads:
            raise ModelError(f"{self.owner}: {features} features do not divide into {self.heads} heads")
        joined = weight_and_bias(self.owner, (3 * features, features), self.bias, "qkv/", self.scale)
        last = weight_and_bias(self.owner, (features, features), self.bias, "projection/", self.projection_scale)
        return (*joined, *last)

    def apply(self, x: Value, parameters: tuple[Value, ...]) -> Value:
        half = len(parameters) // 2
        joined = call("Gemm", self.owner, (x, *parameters[:half]), "qkv")
        parts = calls("Split", self.owner, (joined,), "split", axis=2, split=(joined.shape[2] // 3,) * 3)
        heads: dict[str, Any] = {"q_num_heads": self.heads, "kv_num_heads": self.heads, "is_causal": int(self.causal)}
        attended = call("Attention", self.owner, parts, **heads)
        return call("Gemm", self.owner, (attended, *parameters[half:]), "projection")
