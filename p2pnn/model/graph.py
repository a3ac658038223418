"""The graph: what a model is between the places that build it and the engines that run it.

A graph is a directed acyclic list of ops with ONNX's operator names and semantics, in an order in which every op stands
behind the ops whose values it reads. It is immutable, carries no code, and travels as MessagePack. Whoever receives or
builds one calls `verify.verify(graph)` first.

Names live in one space: inputs, parameters, state and op outputs are all *values* that ops read by name. Shapes are
static, but for the batch: `BATCH` stands only at axis 0.

Layouts are ONNX's (NCHW images, OIHW weights); an engine's own layout never shows here.
"""

from __future__ import annotations

from typing import Final

import msgspec

BATCH: Final = -1
"""The symbolic batch size in a shape; only at axis 0."""

FORMAT: Final = 1

Attribute = int | float | str | bool | tuple[int, ...] | tuple[float, ...]
Shape = tuple[int, ...]


class Value(msgspec.Struct, frozen=True):
    """A tensor that flows: a graph's input or an op's output. dtype is a numpy name: float32, int64, uint8, …"""

    name: str
    dtype: str
    shape: Shape


class Initializer(msgspec.Struct, frozen=True):
    """How a parameter or state starts, drawn from a generator keyed by (seed, parameter name).

    kind: `constant` (value), `uniform` (±scale), `normal` (standard deviation scale).
    """

    kind: str
    value: float = 0.0
    scale: float = 0.0


class Parameter(msgspec.Struct, frozen=True):
    """A trained tensor, or (in `Graph.state`) a saved tensor that is not trained. Always float32.

    decay: whether weight decay applies; False for biases and normalization.
    """

    name: str
    shape: Shape
    initializer: Initializer
    decay: bool = True

    @property
    def size(self) -> int:
        count = 1
        for extent in self.shape:
            count *= extent
        return count


class Op(msgspec.Struct, frozen=True):
    """A vertex. kind is ONNX's operator name; inputs and outputs are value names, in ONNX's order."""

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Attribute] = {}


class Metric(msgspec.Struct, frozen=True):
    """A number to report. `value` is the output of a metric op: float64[2] = (sum, count) over a micro-batch.

    Sums and counts add up over micro-batches; `kind` says how the total becomes the number:
    `mean` sum/count, `root` √(sum/count), `exp` e^(sum/count). `goal` is `max` or `min`: which is better.
    """

    name: str
    kind: str
    value: str
    goal: str = "max"


class Scaling(msgspec.Struct, frozen=True):
    """What is done to an input's raw numbers before the graph sees them: (raw − shift) · scale, as float32.

    shift, scale: one number, or one per entry of the row's first axis (channels or features).
    """

    shift: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)


class Graph(msgspec.Struct, frozen=True):
    """A whole model. Every op's outputs are described in `values`; `losses` are scalars (shape ()), summed."""

    inputs: tuple[Value, ...]
    parameters: tuple[Parameter, ...]
    state: tuple[Parameter, ...]
    ops: tuple[Op, ...]
    values: tuple[Value, ...]
    outputs: dict[str, str]
    losses: tuple[str, ...] = ()
    metrics: tuple[Metric, ...] = ()
    scaling: dict[str, Scaling] = {}
    classes: tuple[str, ...] = ()
    name: str = "model"
    format: int = FORMAT


def encode(graph: Graph) -> bytes:
    """The graph as MessagePack (maps with field names, so that later versions may add fields)."""
    return msgspec.msgpack.encode(graph)
