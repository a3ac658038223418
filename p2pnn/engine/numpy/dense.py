"""Gemm and MatMul: matrix products, left to BLAS with whole operands."""

from __future__ import annotations

import numpy as np

from p2pnn.engine.numpy.channels import Columns
from p2pnn.engine.numpy.kernel import Call, Kernel, Site, Slot
from p2pnn.engine.numpy.layout import Array, Operand, onnx_view
from p2pnn.model.graph import Shape


class Gemm(Kernel):
    """y = x·wᵀ + b, for x [rows, in], w [out, in], b [out]; dx = dy·w, dw = dyᵀ·x, db = Σ rows of dy."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.keeps = tuple(i for i in range(2) if site.wants[1 - i])
        self._columns = Columns(site, *site.output.shape) if len(site.inputs) > 2 and site.wants[2] else None

    def forward(self, call: Call) -> None:
        np.matmul(call.inputs[0], call.inputs[1].T, out=call.y)
        if len(call.inputs) > 2:
            np.add(call.y, call.inputs[2], out=call.y)

    def backward(self, call: Call) -> None:
        wants = self.site.wants
        if wants[0]:
            np.matmul(call.dy, call.inputs[1], out=call.dx[0])
        if wants[1]:
            np.matmul(call.dy.T, call.inputs[0], out=call.dx[1])
        if self._columns is not None:
            self._columns.sums(call.dy, call.dx[2])


class MatMul(Kernel):
    """numpy.matmul: y = a·b over the last two axes; da = dy·bᵀ, db = aᵀ·dy, summed over repeated leading axes.

    A right-hand matrix without leading axes (a weight) makes one GEMM over all rows. Values of rank 4 lie channels last and
    are copied into ONNX's order first: BLAS gets C-contiguous operands only.
    """

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.keeps = tuple(i for i in range(2) if site.wants[1 - i])
        self._plain = [self._copy(operand) for operand in (*site.inputs, site.output)]
        self._shape = site.output.onnx_shape
        self._one_gemm = len(site.inputs[1].shape) == 2 and len(site.inputs[0].shape) > 2
        self._gradients = [self._gradient(i) if site.wants[i] else None for i in range(2)]

    def forward(self, call: Call) -> None:
        a, b = self._load(call.inputs[0], 0), self._load(call.inputs[1], 1)
        slot = self._plain[2]
        y = call.y if slot is None else slot.array
        if self._one_gemm:
            np.matmul(_rows(a), b, out=_rows(y))
        else:
            np.matmul(a, b, out=y)
        if slot is not None:
            np.copyto(onnx_view(call.y, self.site.output.order), y)

    def backward(self, call: Call) -> None:
        a, b = self._load(call.inputs[0], 0), self._load(call.inputs[1], 1)
        dy = self._load(call.dy, 2)
        if self.site.wants[0]:
            self._store(call.dx[0], 0, dy, b.swapaxes(-1, -2))
        if self.site.wants[1]:
            if self._one_gemm:
                a, dy = _rows(a), _rows(dy)
            self._store(call.dx[1], 1, a.swapaxes(-1, -2), dy)

    def _copy(self, operand: Operand) -> Slot | None:
        return None if operand.order == "plain" else self.site.scratch(operand.onnx_shape, operand.dtype)

    def _gradient(self, position: int) -> Slot | None:
        """Scratch for a gradient that cannot be written where it belongs: summed afterwards, or in another order."""
        operand = self.site.inputs[position]
        shape = self._product_shape(position)
        return None if operand.order == "plain" and shape == operand.shape else self.site.scratch(shape)

    def _product_shape(self, position: int) -> Shape:
        own = self.site.inputs[position].onnx_shape
        if position == 1 and self._one_gemm:
            return own
        return (*self._shape[:-2], *own[-2:])

    def _load(self, array: Array, index: int) -> Array:
        slot = self._plain[index]
        if slot is None:
            return array
        operand = (*self.site.inputs, self.site.output)[index]
        np.copyto(slot.array, onnx_view(array, operand.order))
        return slot.array

    def _store(self, out: Array, position: int, left: Array, right: Array) -> None:
        slot = self._gradients[position]
        if slot is None:
            np.matmul(left, right, out=out)
            return
        product = slot.array
        np.matmul(left, right, out=product)
        target = onnx_view(out, self.site.inputs[position].order)
        target = target[(None,) * (product.ndim - target.ndim)]
        axes = tuple(axis for axis in range(product.ndim) if product.shape[axis] != target.shape[axis])
        if axes:
            np.add.reduce(product, axis=axes, keepdims=True, out=target)
        else:
            np.copyto(target, product)


def _rows(array: Array) -> Array:
    return array.reshape(-1, array.shape[-1])
