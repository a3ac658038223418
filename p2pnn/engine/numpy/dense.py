"""Gemm and MatMul: matrix products, left to BLAS with whole operands."""

from __future__ import annotations

import numpy as np

from p2pnn.engine.numpy import blas
from p2pnn.engine.numpy.channels import Columns
from p2pnn.engine.numpy.kernel import Call, Kernel, Site, Slot
from p2pnn.engine.numpy.layout import Array, Operand, onnx_view
from p2pnn.model.graph import Shape, elements


class _Weighted(Kernel):
    """An op whose right-hand side, inputs[1], may be a weight: its gradient is one GEMM.

    Fused, it adds −rate · gradient to the weight itself, or to a copy of its newest version: then there is no gradient array, and
    no pass over weight and gradient. The op's other gradient, dx, is made before the weight changes.
    """

    def __init__(self, site: Site, weight: bool) -> None:
        super().__init__(site)
        self.keeps = tuple(i for i in range(2) if site.wants[1 - i])
        self._weight = weight and site.wants[1]
        alone = 1 in site.fused and not blas.accumulates(site.dtype)
        self._alone = site.scratch(site.inputs[1].shape) if alone else None

    def _products(self, left: Array, right: Array) -> blas.Products:
        """left·right, into the accumulator or a version of the weight."""
        return blas.Products(left, right, self._alone.array if self._alone is not None else None)

    def _accumulate(self, call: Call) -> None:
        product = call.bound.into(call.dx[1])
        if 1 in call.newest:
            if call.newest[1] is not call.dx[1]:
                np.copyto(call.dx[1], call.newest[1])
            product(-call.context.rate, 1.0)
        else:
            product(1.0, 0.0)


class Gemm(_Weighted):
    """y = x·wᵀ + b, for x [rows, in], w [out, in], b [out]; dx = dy·w, dw = dyᵀ·x, db = Σ rows of dy.

    Every position of a sequence, [rows, positions, in], is a row of one GEMM.
    """

    def __init__(self, site: Site) -> None:
        super().__init__(site, weight=True)
        *rows, columns = site.output.shape
        summed = len(site.inputs) > 2 and site.wants[2]
        self._columns = Columns(site, elements(tuple(rows)), columns) if summed else None

    def bind_backward(self, call: Call) -> blas.Products | None:
        return self._products(_rows(call.dy).T, _rows(call.inputs[0])) if self._weight else None

    def forward(self, call: Call) -> None:
        y = _rows(call.y)
        np.matmul(_rows(call.inputs[0]), call.inputs[1].T, out=y)
        if len(call.inputs) > 2:
            np.add(y, call.inputs[2], out=y)

    def backward(self, call: Call) -> None:
        if self._columns is not None:  # first: dy was made a moment ago and may still be in the cache
            self._columns.sums(call.dy, call.dx[2])
        if self.site.wants[0]:
            np.matmul(_rows(call.dy), call.inputs[1], out=_rows(call.dx[0]))
        if call.bound is not None:
            self._accumulate(call)


class MatMul(_Weighted):
    """numpy.matmul: y = a·b over the last two axes; da = dy·bᵀ, db = aᵀ·dy, summed over repeated leading axes.

    A right-hand matrix without leading axes (a weight) makes one GEMM over all rows. Values of rank 4 lie channels last and
    are copied into ONNX's order first: BLAS gets C-contiguous operands only.
    """

    def __init__(self, site: Site) -> None:
        self._one_gemm = len(site.inputs[1].shape) == 2 and len(site.inputs[0].shape) >= 2
        super().__init__(site, weight=self._one_gemm and site.inputs[1].kind == "parameter")
        self._plain = [self._copy(operand) for operand in (*site.inputs, site.output)]
        self._shape = site.output.onnx_shape
        own = [site.wants[0], site.wants[1] and not self._weight]
        self._gradients = [self._gradient(i) if own[i] else None for i in range(2)]

    def bind_backward(self, call: Call) -> blas.Products | None:
        if not self._weight:
            return None
        a, dy = self._place(call.inputs[0], 0), self._place(call.dy, 2)
        return self._products(_rows(a).T, _rows(dy))

    def forward(self, call: Call) -> None:
        a, b = self._load(call.inputs[0], 0), self._load(call.inputs[1], 1)
        y = self._place(call.y, 2)
        if self._one_gemm:
            np.matmul(_rows(a), b, out=_rows(y))
        else:
            np.matmul(a, b, out=y)
        if y is not call.y:
            np.copyto(onnx_view(call.y, self.site.output.order), y)

    def backward(self, call: Call) -> None:
        a, b = self._load(call.inputs[0], 0), self._load(call.inputs[1], 1)
        dy = self._load(call.dy, 2)
        if self.site.wants[0]:
            self._store(call.dx[0], 0, dy, b.swapaxes(-1, -2))
        if call.bound is not None:
            self._accumulate(call)
        elif self.site.wants[1]:
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

    def _place(self, array: Array, index: int) -> Array:
        """Where the operand lies in ONNX's order: where it is, or in scratch."""
        slot = self._plain[index]
        return array if slot is None else slot.array

    def _load(self, array: Array, index: int) -> Array:
        place = self._place(array, index)
        if place is not array:
            np.copyto(place, onnx_view(array, (*self.site.inputs, self.site.output)[index].order))
        return place

    def _store(self, out: Array, position: int, left: Array, right: Array) -> None:
        slot = self._gradients[position]
        product = out if slot is None else slot.array
        if position == 0 and self._one_gemm:
            np.matmul(_rows(left), right, out=_rows(product))
        else:
            np.matmul(left, right, out=product)
        if slot is None:
            return
        target = onnx_view(out, self.site.inputs[position].order)
        target = target[(None,) * (product.ndim - target.ndim)]
        axes = tuple(axis for axis in range(product.ndim) if product.shape[axis] != target.shape[axis])
        if axes:
            np.add.reduce(product, axis=axes, keepdims=True, out=target)
        else:
            np.copyto(target, product)


def _rows(array: Array) -> Array:
    return array if array.ndim == 2 else array.reshape(-1, array.shape[-1])
