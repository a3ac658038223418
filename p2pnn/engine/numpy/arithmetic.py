"""Add, Sub, Mul, Div, Pow and Where, with numpy's broadcasting.

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
        self._axes = tuple(self._repeated(position) for position in range(len(site.inputs)))
        self._all_but_last = tuple(range(len(shape) - 1))
        self._columns: Columns | None = None
        if any(wanted and axes == self._all_but_last for wanted, axes in zip(site.wants, self._axes, strict=True)):
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


class _Product(_Arithmetic):
    """Gradients that are made as large as the output, and then summed for an operand that is repeated."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._product = site.scratch(site.output.shape) if any(site.wants) else None

    def _direct(self, call: Call, position: int) -> Array:
        """Where to make an operand's gradient: where it belongs, if it is as large and lies as the output does."""
        out = call.dx[position]
        alike = self.site.inputs[position].order == self.site.output.order
        if alike and not self._axes[position] and out.shape == call.dy.shape:
            return out
        assert self._product is not None
        return self._product.array

    def _finish(self, call: Call, position: int) -> None:
        """Sum it to where it belongs, unless it was made there."""
        made = self._direct(call, position)
        if made is not call.dx[position]:
            self._sum(made, position, call.dx[position])


class Mul(_Product):
    """y = a · b; da = dy · b, db = dy · a."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.keeps = tuple(i for i in range(2) if site.wants[1 - i])

    def forward(self, call: Call) -> None:
        np.multiply(self._view(call.inputs[0], 0), self._view(call.inputs[1], 1), out=call.y)

    def backward(self, call: Call) -> None:
        for position in range(2):
            if self.site.wants[position]:
                other = self._view(call.inputs[1 - position], 1 - position)
                np.multiply(call.dy, other, out=self._direct(call, position))
                self._finish(call, position)


class Div(_Product):
    """y = a / b; da = dy / b, db = −dy · y / b."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.keeps = (1,) if any(site.wants) else ()
        self.keeps_output = site.wants[1]

    def forward(self, call: Call) -> None:
        np.divide(self._view(call.inputs[0], 0), self._view(call.inputs[1], 1), out=call.y)

    def backward(self, call: Call) -> None:
        divisor = self._view(call.inputs[1], 1)
        if self.site.wants[1]:
            out = self._direct(call, 1)
            np.multiply(call.dy, call.y, out=out)
            np.divide(out, divisor, out=out)
            np.negative(out, out=out)
            self._finish(call, 1)
        if self.site.wants[0]:
            np.divide(call.dy, divisor, out=self._direct(call, 0))
            self._finish(call, 0)


class Pow(_Product):
    """y = a^e; da = dy · e · a^(e − 1), de = dy · y · ln a; da is 0 where e is, de where a is and e is not negative (PyTorch)."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.keeps = (0, 1) if any(site.wants) else ()
        self.keeps_output = site.wants[1]
        self._lower = site.scratch(site.inputs[1].shape) if site.wants[0] else None
        self._where = site.scratch((2, *site.output.shape), np.dtype(bool)) if any(site.wants) else None

    def forward(self, call: Call) -> None:
        _power(self._view(call.inputs[0], 0), self._view(call.inputs[1], 1), call.y)

    def backward(self, call: Call) -> None:
        base, exponent = self._view(call.inputs[0], 0), self._view(call.inputs[1], 1)
        assert self._where is not None
        zero, other = self._where.array
        if self._lower is not None:
            out, lower = self._direct(call, 0), self._lower.array
            np.subtract(call.inputs[1], 1, out=lower)
            _power(base, self._view(lower, 1), out)
            np.multiply(out, exponent, out=out)
            np.copyto(out, 0, where=np.equal(exponent, 0, out=zero))
            np.multiply(out, call.dy, out=out)
            self._finish(call, 0)
        if self.site.wants[1]:
            out = self._direct(call, 1)
            np.copyto(out, base)
            np.log(out, out=out)
            np.logical_and(np.equal(base, 0, out=zero), np.greater_equal(exponent, 0, out=other), out=zero)
            np.copyto(out, 0, where=zero)
            np.multiply(out, call.y, out=out)
            np.multiply(out, call.dy, out=out)
            self._finish(call, 1)


class Where(_Product):
    """y = a where the condition holds, else b; each gets the gradient of its places."""

    in_place = False

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.keeps = (0,) if any(site.wants) else ()

    def forward(self, call: Call) -> None:
        condition, a, b = (self._view(array, position) for position, array in enumerate(call.inputs))
        np.copyto(call.y, b)
        np.copyto(call.y, a, where=condition)

    def backward(self, call: Call) -> None:
        condition = self._view(call.inputs[0], 0)
        for position in (1, 2):
            if self.site.wants[position]:
                out = self._direct(call, position)
                if position == 1:
                    out.fill(0)
                    np.copyto(out, call.dy, where=condition)
                else:
                    np.copyto(out, call.dy)
                    np.copyto(out, 0, where=condition)
                self._finish(call, position)


def _power(base: Array, exponent: Array, out: Array) -> None:
    """out = base^exponent; a single exponent of 1 or 2 takes a thirtieth of the time of others."""
    only = float(exponent.reshape(-1)[0]) if exponent.size == 1 else 0.0
    if only == 2.0:
        np.multiply(base, base, out=out)
    elif only == 1.0:
        np.copyto(out, base)
    else:
        np.power(base, exponent, out=out)
