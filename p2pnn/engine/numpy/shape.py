"""Operators that move elements: Reshape, Flatten, Squeeze, Unsqueeze, Transpose, Concat, Split, Slice.

They are written for ONNX's order of axes, through views of the engine's arrays.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from p2pnn.engine.numpy.kernel import Call, Kernel, Site
from p2pnn.engine.numpy.layout import Array, Operand, engine_axis, onnx_view


class Reshape(Kernel):
    """The same elements in ONNX's order, under another shape. Flatten, Squeeze and Unsqueeze are the same rule."""

    in_place = in_place_backward = True

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        x, y = site.inputs[0], site.output
        moved = x.order != "plain" or y.order != "plain"
        self.in_place = self.in_place_backward = not moved
        # Between two values that both lie channels last, the elements pass through ONNX's order.
        self._through = site.scratch(x.onnx_shape, x.dtype) if x.order == y.order == "channels_last" else None

    def forward(self, call: Call) -> None:
        self._move(call.inputs[0], self.site.inputs[0], call.y, self.site.output)

    def backward(self, call: Call) -> None:
        self._move(call.dy, self.site.output, call.dx[0], self.site.inputs[0])

    def _move(self, source: Array, source_operand: Operand, target: Array, target_operand: Operand) -> None:
        a, b = onnx_view(source, source_operand.order), onnx_view(target, target_operand.order)
        if self._through is not None:
            plain = self._through.array.reshape(a.shape)
            np.copyto(plain, a)
            np.copyto(b, plain.reshape(b.shape))
        elif target_operand.order == "plain":
            np.copyto(b.reshape(a.shape), a)
        else:
            np.copyto(b, a.reshape(b.shape))


class Transpose(Kernel):
    """Axis i of y is axis perm[i] of x."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._perm = site.op.integers("perm")

    def forward(self, call: Call) -> None:
        x = onnx_view(call.inputs[0], self.site.inputs[0].order)
        np.copyto(onnx_view(call.y, self.site.output.order), x.transpose(self._perm))

    def backward(self, call: Call) -> None:
        dx = onnx_view(call.dx[0], self.site.inputs[0].order)
        np.copyto(dx.transpose(self._perm), onnx_view(call.dy, self.site.output.order))


class Concat(Kernel):
    """The inputs behind each other along `axis`; each gets its slice of the gradient back."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._axis = engine_axis(site.op.integer("axis"), site.output.order)

    def forward(self, call: Call) -> None:
        np.concatenate(call.inputs, axis=self._axis, out=call.y)

    def backward(self, call: Call) -> None:
        start = 0
        for operand, wanted, dx in zip(self.site.inputs, self.site.wants, call.dx, strict=True):
            stop = start + operand.shape[self._axis]
            if wanted:
                np.copyto(dx, call.dy[(slice(None),) * self._axis + (slice(start, stop),)])
            start = stop


class Split(Kernel):
    """Parts behind each other along `axis`; their gradients are put together again."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._axis = engine_axis(site.op.integer("axis"), site.output.order)

    def forward(self, call: Call) -> None:
        for y, part in zip(call.ys, self._parts(call.inputs[0]), strict=True):
            np.copyto(y, part)

    def backward(self, call: Call) -> None:
        for dy, part in zip(call.dys, self._parts(call.dx[0]), strict=True):
            np.copyto(part, dy)

    def _parts(self, array: Array) -> Iterator[Array]:
        start = 0
        for operand in self.site.outputs:
            stop = start + operand.shape[self._axis]
            yield array[(slice(None),) * self._axis + (slice(start, stop),)]
            start = stop


class Slice(Kernel):
    """At each of `axes`, every `steps`-th from `starts` to before `ends`; what is left out gets no gradient."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        index = [slice(None)] * len(site.output.onnx_shape)
        for axis, start, end, step in zip(*map(site.op.integers, ("axes", "starts", "ends", "steps")), strict=True):
            index[axis] = slice(start, end, step)
        self._index = tuple(index)

    def forward(self, call: Call) -> None:
        x = onnx_view(call.inputs[0], self.site.inputs[0].order)
        np.copyto(onnx_view(call.y, self.site.output.order), x[self._index])

    def backward(self, call: Call) -> None:
        call.dx[0].fill(0)
        dx = onnx_view(call.dx[0], self.site.inputs[0].order)
        np.copyto(dx[self._index], onnx_view(call.dy, self.site.output.order))
