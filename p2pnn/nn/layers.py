"""Layers: objects that are called with a value. Those with parameters make them at their first call, when the input's
shape is known; called again they share them.

Weights start as PyTorch's do: uniform in ±1/√(inputs per output), biases too (Kaiming uniform with a = √5), a batch
normalization's scale at 1. Biases and normalization are left out of weight decay.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from p2pnn.errors import ModelError
from p2pnn.model.graph import Initializer, show
from p2pnn.nn.value import Owner, Value, call, tensor


class Layer(ABC):
    """Base of all layers. name: within the current scope; None for `linear_1`, `linear_2`, …"""

    stem = ""

    def __init__(self, name: str | None = None) -> None:
        self.owner = Owner.here(name, self.stem)
        self._parameters: tuple[Value, ...] | None = None

    def __call__(self, x: Value) -> Value:
        """Apply the layer. Raises ModelError where x does not fit, naming the layer and both shapes."""
        if not isinstance(x, Value):
            raise ModelError(
                f"{self.owner} was called with a {type(x).__name__}, but takes a value: nn.Input or what a layer returned"
            )
        if self._parameters is None:
            self._parameters = self.make(x)
        return self.apply(x, self._parameters)

    def make(self, x: Value) -> tuple[Value, ...]:
        """The parameters, for an input like x."""
        return ()

    @abstractmethod
    def apply(self, x: Value, parameters: tuple[Value, ...]) -> Value:
        """Note the layer's op."""

    def needs(self, x: Value, *ranks: int) -> None:
        """Raise ModelError unless x has as many axes as one of `ranks`."""
        if len(x.shape) not in ranks:
            wanted = {
                2: "(batch, features); put nn.flatten before it",
                3: "(batch, positions, features)",
                4: "(batch, channels, height, width)",
            }[ranks[0]]
            raise ModelError(f"{self.owner}: the input {x.label} has shape {show(x.shape)}, but it takes {wanted}")


class Linear(Layer):
    """y = x·wᵀ + b: (batch, in) → (batch, features), or at every position (batch, n, in) → (batch, n, features).

    Parameters: weight (features, in), bias (features,). scale: the weight starts normal with this standard deviation and the
    bias at 0; None for PyTorch's start.
    """

    stem = "linear"

    def __init__(
        self, features: int, *, bias: bool = True, scale: float | None = None, name: str | None = None
    ) -> None:
        super().__init__(name)
        self.features, self.bias, self.scale = positive(self, "features", features), bias, scale

    def make(self, x: Value) -> tuple[Value, ...]:
        self.needs(x, 2, 3)
        return weight_and_bias(self.owner, (self.features, x.shape[-1]), self.bias, scale=self.scale)

    def apply(self, x: Value, parameters: tuple[Value, ...]) -> Value:
        return call("Gemm", self.owner, (x, *parameters))


class Conv2d(Layer):
    """Cross-correlation: (batch, C, H, W) → (batch, channels, H', W').

    H' = ⌊(H + padding above and below − dilation·(kernel − 1) − 1) / stride⌋ + 1. Parameters: weight (channels,
    C / groups, kernel, kernel), bias (channels,). kernel, stride, dilation: one number or (height, width); padding: also
    (top, left, bottom, right).
    """

    stem = "conv2d"

    def __init__(
        self,
        channels: int,
        kernel: int | Sequence[int],
        *,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        self.channels, self.bias = positive(self, "channels", channels), bias
        self.groups = positive(self, "groups", groups)
        self.kernel = tuple(positive(self, "kernel", n) for n in _pair(self, "kernel", kernel))
        self.attributes: dict[str, Any] = {
            "strides": _pair(self, "stride", stride),
            "pads": _pads(self, padding),
            "dilations": _pair(self, "dilation", dilation),
            "group": groups,
        }

    def make(self, x: Value) -> tuple[Value, ...]:
        self.needs(x, 4)
        if x.shape[1] % self.groups or self.channels % self.groups:
            raise ModelError(
                f"{self.owner}: {x.shape[1]} input and {self.channels} output channels must both be divisible by "
                f"groups = {self.groups}"
            )
        return weight_and_bias(self.owner, (self.channels, x.shape[1] // self.groups, *self.kernel), self.bias)

    def apply(self, x: Value, parameters: tuple[Value, ...]) -> Value:
        return call("Conv", self.owner, (x, *parameters), **self.attributes)


class BatchNorm(Layer):
    """Normalizes each channel over the micro-batch: (batch, C, …), same shape out.

    Parameters: weight and bias (C,); state: running_mean and running_var (C,). momentum is ONNX's: running = momentum ·
    running + (1 − momentum) · batch, so 0.9 here is PyTorch's 0.1; variances are population variances.
    """

    stem = "batch_norm"

    def __init__(self, *, epsilon: float = 1e-5, momentum: float = 0.9, name: str | None = None) -> None:
        super().__init__(name)
        self.attributes: dict[str, Any] = {"epsilon": epsilon, "momentum": momentum}

    def make(self, x: Value) -> tuple[Value, ...]:
        if len(x.shape) < 2:
            raise ModelError(
                f"{self.owner}: the input {x.label} has shape {show(x.shape)}, but it takes (batch, channels, …)"
            )
        zero, one, shape = Initializer("constant"), Initializer("constant", value=1.0), (x.shape[1],)
        return (
            tensor(self.owner, "weight", shape, one, decay=False),
            tensor(self.owner, "bias", shape, zero, decay=False),
            tensor(self.owner, "running_mean", shape, zero, trained=False),
            tensor(self.owner, "running_var", shape, one, trained=False),
        )

    def apply(self, x: Value, parameters: tuple[Value, ...]) -> Value:
        return call("BatchNormalization", self.owner, (x, *parameters), **self.attributes)


class _Pool(Layer):
    kind = ""

    def __init__(
        self,
        kernel: int | Sequence[int],
        *,
        stride: int | Sequence[int] | None = None,
        padding: int | Sequence[int] = 0,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        window = _pair(self, "kernel", kernel)
        self.attributes: dict[str, Any] = {
            "kernel_shape": window,
            "strides": window if stride is None else _pair(self, "stride", stride),
            "pads": _pads(self, padding),
        }

    def apply(self, x: Value, parameters: tuple[Value, ...]) -> Value:
        self.needs(x, 4)
        return call(self.kind, self.owner, (x,), **self.attributes)


class MaxPool2d(_Pool):
    """The largest element of each window. stride: None for the kernel's size. Padding counts as −∞."""

    stem = "max_pool2d"
    kind = "MaxPool"


class AveragePool2d(_Pool):
    """The mean of each window. include_padding: whether padding counts as zeros, or (ONNX's default) not at all."""

    stem = "average_pool2d"
    kind = "AveragePool"

    def __init__(
        self,
        kernel: int | Sequence[int],
        *,
        stride: int | Sequence[int] | None = None,
        padding: int | Sequence[int] = 0,
        include_padding: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(kernel, stride=stride, padding=padding, name=name)
        self.attributes["count_include_pad"] = int(include_padding)


class Dropout(Layer):
    """In training sets each element to 0 with probability `ratio` and multiplies the rest by 1 / (1 − ratio)."""

    stem = "dropout"

    def __init__(self, ratio: float = 0.5, *, name: str | None = None) -> None:
        super().__init__(name)
        self.ratio = ratio

    def apply(self, x: Value, parameters: tuple[Value, ...]) -> Value:
        return call("Dropout", self.owner, (x,), ratio=self.ratio)


def weight_and_bias(
    owner: Owner, shape: tuple[int, ...], bias: bool, part: str = "", scale: float | None = None
) -> tuple[Value, ...]:
    """Kaiming uniform with a = √5, as in PyTorch: both uniform in ±1/√fan_in. part: before their names, as `qkv/`.

    scale: the weight is normal with this standard deviation instead, and the bias 0, as language models start.
    """
    start = Initializer("uniform", scale=1.0 / math.sqrt(math.prod(shape[1:])))
    weight, biased = (start, start) if scale is None else (Initializer("normal", scale=scale), Initializer("constant"))
    made = tensor(owner, f"{part}weight", shape, weight)
    return (made, tensor(owner, f"{part}bias", shape[:1], biased, decay=False)) if bias else (made,)


def positive(layer: Layer, what: str, value: object) -> int:
    """The value, a positive integer. Raises ModelError for another, naming the layer and what it is."""
    if type(value) is not int or value < 1:
        raise ModelError(f"{layer.owner}: {what} is {value!r}, but must be a positive integer")
    return value


def _pair(layer: Layer, what: str, value: int | Sequence[int]) -> tuple[int, ...]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2:
        raise ModelError(f"{layer.owner}: {what} is {value!r}, but must be one number or (height, width)")
    return pair


def _pads(layer: Layer, value: int | Sequence[int]) -> tuple[int, ...]:
    """ONNX's order: top, left, bottom, right."""
    pads = (value, value) if isinstance(value, int) else tuple(value)
    if len(pads) not in (2, 4):
        raise ModelError(
            f"{layer.owner}: padding is {value!r}; give one number, (height, width) or (top, left, bottom, right)"
        )
    return pads if len(pads) == 4 else pads + pads
