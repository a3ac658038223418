"""Add, Sub and Mul, with numpy's broadcasting.

An operand with fewer or shorter axes is repeated; its gradient is the sum over the axes along which it is. Operands that
lie otherwise than the output (a bias of shape (C, 1, 1) beside a value held channels last) are seen through a view.
"""

from __future__ import annotations

import numpy as np

from p2pnn.engine.numpy.channels import Columns
from p2pnn.engine.numpy.kernel import Call, Kernel, Site
from p2pnn.engine.numpy.layout import Array, engine_view, onnx_view
from p2pnn.model.graph import elements


class _Arithmetic(Kernel):
    in_place = True

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        shape = site.output.shape
        self._axes = tuple(self._repeated(position) for position in range(2))
        self._all_but_last = tuple(range(len(shape) - 1))
        self._columns: Columns | None = None
        if any(site.wants[i] and self._axes[i] == self._all_but_last for i in range(2)):
            self._columns = Columns(site, elements(shape[:-1]), shape[-1])

    def _repeated(self, position: int) -> tuple[int, ...]:
        """The output's axes along which an operand is repeated."""
        view = self._view(np.broadcast_to(np.empty(()), self.site.inputs[position].shape), position)
        return tuple(axis for axis, n in enumerate(self.site.output.shape) if view.shape[axis] != n)

    def _view(self, array: Array, position: int) -> Array:
        """An operand with the output's rank, in the output's order of axes."""
        output, operand = self.site.output, self.site.inputs[position]
        if operand.order == output.order and array.ndim == len(output.shape):
            return array
        plain = onnx_view(array, operand.order)
        return engine_view(plain[(None,) * (len(output.shape) - plain.ndim)], output.order)

    def _sum(self, gradient: Array, position: int, out: Array) -> None:
        """An operand's gradient from the gradient of its repetition."""
        axes = self._axes[position]
        if not axes:
            np.copyto(self._view(out, position), gradient)
        elif self._columns is not None and axes == self._all_but_last:
            self._columns.sums(gradient, out)
        else:
            np.add.reduce(gradient, axis=axes, keepdims=True, out=self._view(out, position))


class Add(_Arithmetic):
    """y = a + b."""

    in_place_backward = True

    def forward(self, call: Call) -> None:
        np.add(self._view(call.inputs[0], 0), self._view(call.inputs[1], 1), out=call.y)

    def backward(self, call: Call) -> None:
        for position in (1, 0):  # dx[0] may lie over dy
            if self.site.wants[position]:
                self._sum(call.dy, position, call.dx[position])


class Sub(_Arithmetic):
    """y = a − b."""

    in_place_backward = True

    def forward(self, call: Call) -> None:
        np.subtract(self._view(call.inputs[0], 0), self._view(call.inputs[1], 1), out=call.y)

    def backward(self, call: Call) -> None:
        if self.site.wants[1]:
            self._sum(call.dy, 1, call.dx[1])
            np.negative(call.dx[1], out=call.dx[1])
        if self.site.wants[0]:  # dx[0] may lie over dy
            self._sum(call.dy, 0, call.dx[0])


class Mul(_Arithmetic):
    """y = a · b; da = dy · b, db = dy · a."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.keeps = tuple(i for i in range(2) if site.wants[1 - i])
        self._product = site.scratch(site.output.shape) if any(site.wants) else None

    def forward(self, call: Call) -> None:
        np.multiply(self._view(call.inputs[0], 0), self._view(call.inputs[1], 1), out=call.y)

    def backward(self, call: Call) -> None:
        assert self._product is not None
        for position in range(2):
            if not self.site.wants[position]:
                continue
            other = self._view(call.inputs[1 - position], 1 - position)
            out, direct = call.dx[position], not self._axes[position]
            if direct and out.shape == call.dy.shape:
                np.multiply(call.dy, other, out=out)
            else:
                np.multiply(call.dy, other, out=self._product.array)
                self._sum(self._product.array, position, out)
