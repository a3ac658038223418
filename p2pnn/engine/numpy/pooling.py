"""MaxPool, AveragePool and GlobalAveragePool over [batch, H, W, C].

A window's maximum (or sum) is that over its columns of that over its rows, so a pool runs in two passes of whole strided
views: kh − 1 operations on rows, whose inner loop is W·C long, then kw − 1 on what is left of them. Work goes in blocks of
images that stay in cache.

MaxPool's gradient goes to one element per window, also among equals: to the first column in which the maximum stands, and in
it to the first row. It is found by comparing again, so nothing but x and y is kept.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from p2pnn.engine.numpy.kernel import Call, Kernel, Site, blocks
from p2pnn.engine.numpy.layout import Array
from p2pnn.model.graph import Shape

_BOOL = np.dtype(np.bool_)


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
        self._images, _ = blocks(images, padded[0], padded[1] * channels * site.dtype.itemsize)
        block = self._images
        self._has_padding = padded != self._size
        self._source = site.scratch((block, *padded, channels)) if self._has_padding else None
        self._rows_shape: Shape = (block, site.output.shape[1], padded[1], channels)
        self._rows = site.scratch(self._rows_shape)

    def _blocks(self, rows: int) -> Iterator[tuple[int, int]]:
        for start in range(0, rows, self._images):
            yield start, min(self._images, rows - start)

    def _pad(self, x: Array) -> Array:
        """A block of images, with its padding."""
        if self._source is None:
            return x
        source = self._source.array[: len(x)]
        source.fill(self.padding)
        np.copyto(self._inside(source), x)
        return source

    def _inside(self, padded: Array) -> Array:
        height, width = self._size
        return padded[:, self._top : self._top + height, self._left : self._left + width]


class MaxPool(_Pool):
    """y = the largest element of each window; dy goes to where it stood."""

    padding = -np.inf

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        if site.wants[0]:
            self.keeps, self.keeps_output = (0,), True
            block, (_, out_rows, out_columns, channels) = self._images, site.output.shape
            self._row_gradients = site.scratch(self._rows_shape)
            self._rest = site.scratch(self._rows_shape)
            self._part = site.scratch(self._rows_shape)
            self._mask = site.scratch(self._rows_shape, _BOOL)
            self._by_columns = (block, out_rows, out_columns, channels)
            self._source_gradient = site.scratch(self._source.spec.shape) if self._source is not None else None

    def forward(self, call: Call) -> None:
        (kh, kw), (sh, sw) = self._kernel, self._strides
        for start, count in self._blocks(len(call.y)):
            rows = self._rows.array[:count]
            _reduce(np.maximum, self._pad(call.inputs[0][start : start + count]), rows, 1, kh, sh)
            _reduce(np.maximum, rows, call.y[start : start + count], 2, kw, sw)

    def backward(self, call: Call) -> None:
        (kh, kw), (sh, sw) = self._kernel, self._strides
        for start, count in self._blocks(len(call.y)):
            block = slice(start, start + count)
            source, rows, drows = (
                self._pad(call.inputs[0][block]),
                self._rows.array[:count],
                self._row_gradients.array[:count],
            )
            _reduce(np.maximum, source, rows, 1, kh, sh)
            self._spread(rows, call.y[block], call.dy[block], drows, 2, kw, sw)
            if self._source_gradient is None:
                self._spread(source, rows, drows, call.dx[0][block], 1, kh, sh)
            else:
                padded = self._source_gradient.array[:count]
                self._spread(source, rows, drows, padded, 1, kh, sh)
                np.copyto(call.dx[0][block], self._inside(padded))

    def _spread(self, x: Array, y: Array, dy: Array, dx: Array, axis: int, size: int, stride: int) -> None:
        """dx gets dy where x equals y, once per window: what an element has taken is gone for the later ones."""
        rest, part, mask = (_head(slot.array, y.shape) for slot in (self._rest, self._part, self._mask))
        apart = stride >= size  # windows do not overlap: every element of dx is written at most once
        if not (apart and size == stride and x.shape[axis] == size * y.shape[axis]):
            dx.fill(0)
        left = dy
        for offset in range(size - 1):
            np.equal(_window(x, axis, offset, stride, y.shape[axis]), y, out=mask)
            target = _window(dx, axis, offset, stride, y.shape[axis])
            if apart:
                np.multiply(left, mask, out=target)
                taken = target
            else:
                np.multiply(left, mask, out=part)
                np.add(target, part, out=target)
                taken = part
            last = _window(dx, axis, size - 1, stride, y.shape[axis])
            out = last if apart and offset == size - 2 else rest
            np.subtract(left, taken, out=out)
            left = out
        last = _window(dx, axis, size - 1, stride, y.shape[axis])
        if size == 1 or not apart:
            np.add(last, left, out=last)


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

    def forward(self, call: Call) -> None:
        (kh, kw), (sh, sw) = self._kernel, self._strides
        for start, count in self._blocks(len(call.y)):
            rows, y = self._rows.array[:count], call.y[start : start + count]
            _reduce(np.add, self._pad(call.inputs[0][start : start + count]), rows, 1, kh, sh)
            _reduce(np.add, rows, y, 2, kw, sw)
            wide = y.reshape(count, *self._factor.shape)
            np.multiply(wide, self._factor, out=wide)

    def backward(self, call: Call) -> None:
        for start, count in self._blocks(len(call.y)):
            block = slice(start, start + count)
            scaled, rows = self._scaled.array[:count], self._rows.array[:count]
            shape = (count, *self._factor.shape)
            np.multiply(call.dy[block].reshape(shape), self._factor, out=scaled.reshape(shape))
            _repeat(scaled, rows, 2, self._kernel[1], self._strides[1])
            if self._source_gradient is None:
                _repeat(rows, call.dx[0][block], 1, self._kernel[0], self._strides[0])
            else:
                padded = self._source_gradient.array[:count]
                _repeat(rows, padded, 1, self._kernel[0], self._strides[0])
                np.copyto(call.dx[0][block], self._inside(padded))

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


def _head(scratch: Array, shape: Shape) -> Array:
    """The beginning of a scratch array, in another shape of no more elements."""
    count = 1
    for extent in shape:
        count *= extent
    return scratch.reshape(-1)[:count].reshape(shape)


def _reduce(operation: np.ufunc, x: Array, y: Array, axis: int, size: int, stride: int) -> None:
    """y = the operation over `size` neighbours along an axis."""
    views = [_window(x, axis, offset, stride, y.shape[axis]) for offset in range(size)]
    if size == 1:
        np.copyto(y, views[0])
        return
    operation(views[0], views[1], out=y)
    for view in views[2:]:
        operation(y, view, out=y)


def _repeat(dy: Array, dx: Array, axis: int, size: int, stride: int) -> None:
    """dx gets dy at all `size` neighbours of each window, summed where windows overlap."""
    dx.fill(0)
    for offset in range(size):
        view = _window(dx, axis, offset, stride, dy.shape[axis])
        np.add(view, dy, out=view)
