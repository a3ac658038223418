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

Attribute = int | float | str | tuple[int | float, ...]
"""One array type only: a decoder cannot tell two apart. Flags are 0 and 1, as in ONNX."""

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
        return elements(self.shape)


class Op(msgspec.Struct, frozen=True):
    """A vertex. kind is ONNX's operator name; inputs and outputs are value names, in ONNX's order."""

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Attribute] = {}

    def integer(self, name: str) -> int:
        """The attribute as an int; a verified op has every attribute of its kind, with the right type."""
        value = self.attributes[name]
        assert isinstance(value, int)
        return value

    def number(self, name: str) -> float:
        """The attribute as a float."""
        value = self.attributes[name]
        assert isinstance(value, int | float)
        return float(value)

    def integers(self, name: str) -> tuple[int, ...]:
        """The attribute as a tuple of ints."""
        value = self.attributes[name]
        assert isinstance(value, tuple)
        return tuple(int(n) for n in value)


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

    @property
    def statistics(self) -> frozenset[str]:
        """The state that training changes: running means and variances. The rest of `state` is constants."""
        return frozenset(name for op in self.ops if op.kind == "BatchNormalization" for name in op.inputs[3:])


def show(shape: Shape) -> str:
    """A shape for a person: `(batch, 3, 32, 32)`."""
    parts = ["batch" if extent == BATCH else str(extent) for extent in shape]
    return f"({parts[0]},)" if len(parts) == 1 else f"({', '.join(parts)})"


def concrete(shape: Shape, batch: int) -> Shape:
    """The shape with `batch` rows in place of BATCH."""
    return tuple(batch if extent == BATCH else extent for extent in shape)


def elements(shape: Shape) -> int:
    """How many elements a concrete shape has."""
    count = 1
    for extent in shape:
        count *= extent
    return count


def encode(graph: Graph) -> bytes:
    """The graph as MessagePack (maps with field names, so that later versions may add fields)."""
    return msgspec.msgpack.encode(graph)
