"""Operators that reduce axes: ReduceSum, ReduceMean, ReduceMax, ArgMax.

They are written for ONNX's order of axes, through views of the engine's arrays.
"""

from __future__ import annotations

import numpy as np

from p2pnn.engine.numpy.kernel import Call, Kernel, Site
from p2pnn.engine.numpy.layout import Array, onnx_view
from p2pnn.model.graph import elements


class _Reduce(Kernel):
    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._axes = site.op.integers("axes")
        self._keep = bool(site.op.integer("keepdims"))
        self._count = elements(tuple(site.inputs[0].onnx_shape[axis] for axis in self._axes))

    def _fold(self, function: np.ufunc, call: Call) -> None:
        x, y = onnx_view(call.inputs[0], self.site.inputs[0].order), onnx_view(call.y, self.site.output.order)
        function.reduce(x, axis=self._axes, keepdims=self._keep, out=y)

    def _wide(self, array: Array) -> Array:
        """The output, or its gradient, in ONNX's order with the reduced axes as 1."""
        plain = onnx_view(array, self.site.output.order)
        return plain if self._keep else np.expand_dims(plain, self._axes)


class ReduceSum(_Reduce):
    """The sum over `axes`."""

    def forward(self, call: Call) -> None:
        self._fold(np.add, call)

    def backward(self, call: Call) -> None:
        np.copyto(onnx_view(call.dx[0], self.site.inputs[0].order), self._wide(call.dy))


class ReduceMean(_Reduce):
    """The mean over `axes`."""

    def forward(self, call: Call) -> None:
        self._fold(np.add, call)
        np.divide(call.y, self._count, out=call.y)

    def backward(self, call: Call) -> None:
        np.divide(self._wide(call.dy), self._count, out=onnx_view(call.dx[0], self.site.inputs[0].order))


class ReduceMax(_Reduce):
    """The largest over `axes`. Equal ones share the gradient, as with PyTorch's amax."""

    keeps_output = True

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        if site.wants[0]:
            self.keeps = (0,)
            self._mask = site.scratch(site.inputs[0].onnx_shape, np.dtype(np.bool_))
            shape = tuple(1 if n in self._axes else e for n, e in enumerate(site.inputs[0].onnx_shape))
            self._share = site.scratch(shape)

    def forward(self, call: Call) -> None:
        self._fold(np.maximum, call)

    def backward(self, call: Call) -> None:
        mask, share = self._mask.array, self._share.array
        np.equal(onnx_view(call.inputs[0], self.site.inputs[0].order), self._wide(call.y), out=mask)
        np.add.reduce(mask, axis=self._axes, keepdims=True, dtype=share.dtype, out=share)
        np.divide(self._wide(call.dy), share, out=share)
        np.multiply(mask, share, out=onnx_view(call.dx[0], self.site.inputs[0].order))


class ArgMax(Kernel):
    """The first index of the largest element along `axis`."""

    def forward(self, call: Call) -> None:
        op, x = self.site.op, onnx_view(call.inputs[0], self.site.inputs[0].order)
        best = np.argmax(x, axis=op.integer("axis"), keepdims=bool(op.integer("keepdims")))
        np.copyto(onnx_view(call.y, self.site.output.order), best)
