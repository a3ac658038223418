"""Where the numpy engine's arrays differ from ONNX's.

Two things are laid out anew, because the fast kernels want the channels innermost:

* a value of rank 4 with a batch, (batch, C, H, W) in ONNX, is held as [batch, H, W, C];
* a convolution's weight, (O, C/group, kh, kw) in ONNX, is held as [kh, kw, C/group, O]: read as a matrix of kh·kw·C/group
  rows it is the right-hand side of the convolution's GEMM.

Everything else lies as in ONNX. `onnx_view` shows any of them in ONNX's order without copying, so kernels of little
weight are written once, for that order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from p2pnn.model.graph import BATCH, Graph, Op, Shape, Value, concrete

Array = NDArray[Any]
Order = Literal["plain", "channels_last", "packed"]

_TO_ENGINE: dict[Order, tuple[int, ...]] = {"channels_last": (0, 2, 3, 1), "packed": (2, 3, 1, 0)}
_TO_ONNX: dict[Order, tuple[int, ...]] = {"channels_last": (0, 3, 1, 2), "packed": (3, 2, 0, 1)}


@dataclass(frozen=True, slots=True)
class Operand:
    """What an op reads or writes: its shape in the engine (batch filled in), and how it lies there."""

    name: str
    shape: Shape
    dtype: np.dtype[Any]
    order: Order
    kind: Literal["value", "parameter", "state"]

    @property
    def nbytes(self) -> int:
        count = self.dtype.itemsize
        for extent in self.shape:
            count *= extent
        return count

    @property
    def onnx_shape(self) -> Shape:
        """The shape in ONNX's order."""
        return reorder(self.shape, _TO_ONNX.get(self.order))


def value_order(shape: Shape) -> Order:
    """How a value of this (symbolic) shape lies in the engine."""
    return "channels_last" if len(shape) == 4 and shape[0] == BATCH else "plain"


def parameter_order(graph: Graph, name: str) -> Order:
    """How a parameter or state tensor lies in the engine: convolution weights are packed."""
    packed = any(op.kind == "Conv" and len(op.inputs) > 1 and op.inputs[1] == name for op in graph.ops)
    return "packed" if packed else "plain"


def engine_axis(axis: int, order: Order) -> int:
    """Where an axis of ONNX's order lies in the engine."""
    return axis if order == "plain" else _TO_ENGINE[order].index(axis)


def reorder(shape: Shape, axes: tuple[int, ...] | None) -> Shape:
    """The shape with its axes in the given order."""
    return shape if axes is None else tuple(shape[axis] for axis in axes)


def engine_shape(shape: Shape, rows: int, order: Order) -> Shape:
    """An ONNX shape as the engine holds it, with `rows` for the batch."""
    return reorder(concrete(shape, rows), _TO_ENGINE.get(order))


def engine_view(array: Array, order: Order) -> Array:
    """An array in ONNX's order, seen in the engine's."""
    return array if order == "plain" else array.transpose(_TO_ENGINE[order])


def onnx_view(array: Array, order: Order) -> Array:
    """An array in the engine's order, seen in ONNX's."""
    return array if order == "plain" else array.transpose(_TO_ONNX[order])


class Operands:
    """The operands of a graph's ops, for one number of rows and one floating dtype."""

    def __init__(self, graph: Graph, rows: int, dtype: np.dtype[Any]) -> None:
        self._rows, self._dtype = rows, dtype
        self._values: dict[str, Value] = {v.name: v for v in (*graph.inputs, *graph.values)}
        self._held: dict[str, Operand] = {}
        for kind, held in (("parameter", graph.parameters), ("state", graph.state)):
            for p in held:
                order = parameter_order(graph, p.name)
                shape = engine_shape(p.shape, rows, order)
                self._held[p.name] = Operand(
                    p.name, shape, dtype, order, "parameter" if kind == "parameter" else "state"
                )

    def named(self, name: str) -> Operand:
        """The operand of that name."""
        if name in self._held:
            return self._held[name]
        value = self._values[name]
        order = value_order(value.shape)
        return Operand(
            name, engine_shape(value.shape, self._rows, order), numpy_dtype(value.dtype, self._dtype), order, "value"
        )

    def of(self, op: Op) -> tuple[tuple[Operand, ...], tuple[Operand, ...]]:
        """An op's inputs and its outputs."""
        return tuple(self.named(name) for name in op.inputs), tuple(self.named(name) for name in op.outputs)


def numpy_dtype(name: str, floating: np.dtype[Any]) -> np.dtype[Any]:
    """float32 stands for the engine's floating dtype (float64 when gradients are checked)."""
    return floating if name == "float32" else np.dtype(name)
