"""MaxPool, AveragePool and GlobalAveragePool over [batch, H, W, C].

A window's maximum (or sum) is that over its columns of that over its rows, so a pool runs in two passes of whole strided
views: kh − 1 operations on rows, whose inner loop is W·C long, then kw − 1 on what is left of them. Work goes in blocks of
images that stay in cache.

MaxPool's gradient goes to one element per window, also among equals: to the first column in which the maximum stands, and in
it to the first row. It is found by comparing again, so nothing but x and y is kept: x − y has its sign bit set where x is
less, and that bit, shifted over the whole word, is a mask for the bits of dy. Integers take a quarter of the time that a
product with a boolean array takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from p2pnn.engine.numpy.geometry import Steps
from p2pnn.engine.numpy.kernel import Call, Kernel, Site, blocks
from p2pnn.engine.numpy.layout import Array
from p2pnn.model.graph import Shape


class _Pool(Kernel):
    """Geometry: block by block of images, with padding where there is some."""

    padding = 0.0

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        images, height, width, channels = site.inputs[0].shape
        op = site.op
        self._kernel, self._strides = op.integers("kernel_shape"), op.integers("strides")
        self._top, self._left, bottom, right = op.integers("pads")
        padded = (height + self._top + bottom, width + self._left + right)
        self._size = (height, width)
        # Half blocks: x, what it is reduced to and both their gradients are in cache together.
        self._images, _ = blocks(images, padded[0], 2 * padded[1] * channels * site.dtype.itemsize)
        block = self._images
        self._has_padding = padded != self._size
        self._source = site.scratch((block, *padded, channels)) if self._has_padding else None
        self._rows_shape: Shape = (block, site.output.shape[1], padded[1], channels)
        self._rows = site.scratch(self._rows_shape)

    def forward(self, call: Call) -> None:
        for step in call.bound:
            step()

    backward = forward

    def _blocks(self, count: int) -> Iterator[slice]:
        for start in range(0, count, self._images):
            yield slice(start, min(start + self._images, count))

    def _begin(self) -> Steps:
        """Once per pass: the padding around a block of images."""
        return [] if self._source is None else [partial(self._source.array.fill, self.padding)]

    def _pad(self, steps: Steps, x: Array) -> Array:
        """A block of images, with its padding."""
        if self._source is None:
            return x
        source = self._source.array[: len(x)]
        steps.append(partial(np.copyto, self._inside(source), x))
        return source

    def _inside(self, padded: Array) -> Array:
        height, width = self._size
        return padded[:, self._top : self._top + height, self._left : self._left + width]


class MaxPool(_Pool):
    """y = the largest element of each window; dy goes to where it stood."""

    padding = -np.inf

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._bits = np.dtype(f"i{site.dtype.itemsize}")
        if site.wants[0]:
            self.keeps, self.keeps_output = (0,), True
            self._row_gradients, self._rest, self._part = (site.scratch(self._rows_shape) for _ in range(3))
            self._source_gradient = site.scratch(self._source.spec.shape) if self._source is not None else None

    def bind_forward(self, call: Call) -> Steps:
        (kh, kw), (sh, sw) = self._kernel, self._strides
        steps = self._begin()
        for images in self._blocks(len(call.y)):
            y = call.y[images]
            rows, source = self._rows.array[: len(y)], self._pad(steps, call.inputs[0][images])
            _reduce(steps, np.maximum, source, rows, 1, kh, sh)
            _reduce(steps, np.maximum, rows, y, 2, kw, sw)
        return steps

    def bind_backward(self, call: Call) -> Steps:
        (kh, kw), (sh, sw) = self._kernel, self._strides
        steps = self._begin()
        for images in self._blocks(len(call.y)):
            n = images.stop - images.start
            rows, drows = self._rows.array[:n], self._row_gradients.array[:n]
            source, dx = self._pad(steps, call.inputs[0][images]), call.dx[0][images]
            into = dx if self._source_gradient is None else self._source_gradient.array[:n]
            _reduce(steps, np.maximum, source, rows, 1, kh, sh)
            self._spread(steps, rows, call.y[images], call.dy[images], drows, 2, kw, sw)
            self._spread(steps, source, rows, drows, into, 1, kh, sh)
            if into is not dx:
                steps.append(partial(np.copyto, dx, self._inside(into)))
        return steps

    def _spread(
        self, steps: Steps, x: Array, y: Array, dy: Array, dx: Array, axis: int, size: int, stride: int
    ) -> None:
        """dx gets dy where x equals y, once per window: what an element has taken is gone for the later ones.

        The first `stride` elements of all windows are different ones and are written, the others are added to.
        """
        spare, other = (slot.head(y.shape) for slot in (self._rest, self._part))
        bits, apart = self._bits, size <= stride
        sign = bits.type(8 * bits.itemsize - 1)
        xs, targets = ([_window(array, axis, o, stride, y.shape[axis]) for o in range(size)] for array in (x, dx))
        if x.shape[axis] != stride * y.shape[axis] or size < stride:
            steps.append(partial(dx.fill, 0))
        left = dy
        for offset in range(size - 1):
            less = spare.view(bits)
            steps.append(partial(np.subtract, xs[offset], y, out=spare))
            steps.append(partial(np.right_shift, less, sign, out=less))
            rest = targets[-1] if apart and offset == size - 2 else spare
            steps.append(partial(np.bitwise_and, left.view(bits), less, out=rest.view(bits)))
            taken = targets[offset] if offset < stride else other
            steps.append(partial(np.bitwise_xor, left.view(bits), rest.view(bits), out=taken.view(bits)))
            if taken is other:
                steps.append(partial(np.add, targets[offset], other, out=targets[offset]))
            left, spare, other = rest, other, spare
        if not apart:
            steps.append(partial(np.add, targets[-1], left, out=targets[-1]))
        elif size == 1:
            steps.append(partial(np.copyto, targets[-1], left))


class AveragePool(_Pool):
    """y = the mean of each window: over kh·kw elements with count_include_pad, else over those that are not padding."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        block, (_, out_rows, out_columns, channels) = self._images, site.output.shape
        counts = [self._counts(axis, n) for axis, n in enumerate((out_rows, out_columns))]
        # One factor per output row and (column, channel): long inner loops for few channels.
        per_window = np.outer(*counts)[:, :, None] * np.ones(channels)
        self._factor = site.workspace.own((out_rows, out_columns * channels), site.dtype)
        self._factor[...] = (1 / per_window).reshape(self._factor.shape)
        if site.wants[0]:
            self._scaled = site.scratch((block, out_rows, out_columns, channels))
            self._source_gradient = site.scratch(self._source.spec.shape) if self._source is not None else None

    def bind_forward(self, call: Call) -> Steps:
        (kh, kw), (sh, sw) = self._kernel, self._strides
        steps = self._begin()
        for images in self._blocks(len(call.y)):
            y = call.y[images]
            rows, source = self._rows.array[: len(y)], self._pad(steps, call.inputs[0][images])
            _reduce(steps, np.add, source, rows, 1, kh, sh)
            _reduce(steps, np.add, rows, y, 2, kw, sw)
            wide = y.reshape(len(y), *self._factor.shape)
            steps.append(partial(np.multiply, wide, self._factor, out=wide))
        return steps

    def bind_backward(self, call: Call) -> Steps:
        steps: Steps = []
        for images in self._blocks(len(call.y)):
            n, dx = images.stop - images.start, call.dx[0][images]
            scaled, rows = self._scaled.array[:n], self._rows.array[:n]
            shape = (n, *self._factor.shape)
            dy = call.dy[images].reshape(shape)
            steps.append(partial(np.multiply, dy, self._factor, out=scaled.reshape(shape)))
            into = dx if self._source_gradient is None else self._source_gradient.array[:n]
            _repeat(steps, scaled, rows, 2, self._kernel[1], self._strides[1])
            _repeat(steps, rows, into, 1, self._kernel[0], self._strides[0])
            if into is not dx:
                steps.append(partial(np.copyto, dx, self._inside(into)))
        return steps

    def _counts(self, axis: int, windows: int) -> Array:
        """How many elements each window spans along one axis."""
        kernel, pad, size = self._kernel[axis], (self._top, self._left)[axis], self._size[axis]
        if self.site.op.integer("count_include_pad"):
            return np.full(windows, kernel)
        starts = np.arange(windows) * self._strides[axis] - pad
        return np.minimum(starts + kernel, size) - np.maximum(starts, 0)


class GlobalAveragePool(Kernel):
    """y = the mean over H and W: one GEMV per image."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._images, height, width, self._channels = site.inputs[0].shape
        self._area = height * width
        self._weights = site.workspace.own((1, self._area), site.dtype)
        self._weights.fill(1 / self._area)

    def forward(self, call: Call) -> None:
        x = call.inputs[0].reshape(self._images, self._area, self._channels)
        np.matmul(self._weights, x, out=call.y.reshape(self._images, 1, self._channels))

    def backward(self, call: Call) -> None:
        dx = call.dx[0].reshape(self._images, self._area, self._channels)
        np.multiply(call.dy.reshape(self._images, 1, self._channels), 1 / self._area, out=dx)


def _window(x: Array, axis: int, offset: int, stride: int, count: int) -> Array:
    """The element at `offset` of every window along an axis."""
    return x[(slice(None),) * axis + (slice(offset, offset + (count - 1) * stride + 1, stride),)]


def _reduce(steps: Steps, operation: np.ufunc, x: Array, y: Array, axis: int, size: int, stride: int) -> None:
    """y = the operation over `size` neighbours along an axis."""
    views = [_window(x, axis, offset, stride, y.shape[axis]) for offset in range(size)]
    if size == 1:
        steps.append(partial(np.copyto, y, views[0]))
        return
    steps.append(partial(operation, views[0], views[1], out=y))
    steps += [partial(operation, y, view, out=y) for view in views[2:]]


def _repeat(steps: Steps, dy: Array, dx: Array, axis: int, size: int, stride: int) -> None:
    """dx gets dy at all `size` neighbours of each window, summed where windows overlap."""
    if dx.shape[axis] != stride * dy.shape[axis] or size < stride:
        steps.append(partial(dx.fill, 0))
    for offset in range(size):
        view = _window(dx, axis, offset, stride, dy.shape[axis])
        steps.append(partial(np.copyto, view, dy) if offset < stride else partial(np.add, view, dy, out=view))
