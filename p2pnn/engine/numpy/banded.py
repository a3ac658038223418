"""Convolution as rows times a banded matrix, for few channels.

One output row [out_columns · O] is a linear function of the kh input rows [kh · W · C] that it sees. Its matrix T,
[kh, W, C, out_columns, O], holds w[i, j, c, o] at (i, ow·stride + j·dilation − pad, c, ow, o) and zero elsewhere:

    y[b, oh] = rows[b, oh] · T          rows[b, oh, i] = x[b, oh·stride + i·dilation − pad] (zero outside)

Only W / kw of the products are useful, but the GEMM is wide, and gathering rows copies kh long runs per output row where
im2col copies kh·out_columns short ones. dT = rowsᵀ · dy is summed along its bands to give dw, and drows = dy · Tᵀ is added
back in kh strided additions of long runs. Padding in width is a cut of the band; T is zeroed once and its band rewritten.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from p2pnn.engine.numpy.geometry import Geometry, Steps
from p2pnn.engine.numpy.kernel import Site, blocks
from p2pnn.engine.numpy.layout import Array


class BandedConvolution:
    """The method, bound to one geometry with group 1."""

    def __init__(self, site: Site, geometry: Geometry) -> None:
        g = self._g = geometry
        kh = g.kernel[0]
        self._row, self._out_row = g.width * g.channels, g.out_columns * g.outputs
        shape = (kh, g.width, g.channels, g.out_columns, g.outputs)
        self._matrix = site.workspace.own(shape, site.dtype)
        self._images, _ = blocks(g.images, g.out_rows, kh * self._row * site.dtype.itemsize)
        self._rows = site.scratch((self._images, g.out_rows, kh, self._row))
        if site.wants[1]:
            self._dmatrix, self._part = site.scratch(shape), site.scratch(shape)
        # (row of the kernel, output rows, input rows) that meet; the same for every image
        self._taps = [
            (i, *_meeting(g.out_rows, g.height, g.strides[0], i * g.dilations[0] - g.pads[0])) for i in range(kh)
        ]
        self._whole = all(out == slice(0, g.out_rows) for _, out, _ in self._taps)

    def forward(self, x: Array, w: Array, y: Array) -> Steps:
        """y = x ∗ w."""
        return [partial(self._forward, x, w, y)]

    def _forward(self, x: Array, w: Array, y: Array) -> None:
        t = self._band(w)
        for start, count in self._blocks():
            rows = self._gather(x[start : start + count])
            np.matmul(rows, t, out=y[start : start + count].reshape(-1, self._out_row))

    def weight_gradient(self, x: Array, dy: Array, dw: Array) -> Steps:
        """dw = the sum along the bands of rowsᵀ · dy."""
        return [partial(self._weight_gradient, x, dy, dw)]

    def _weight_gradient(self, x: Array, dy: Array, dw: Array) -> None:
        total, part = (slot.array.reshape(-1, self._out_row) for slot in (self._dmatrix, self._part))
        for start, count in self._blocks():
            rows = self._gather(x[start : start + count])
            np.matmul(rows.T, dy[start : start + count].reshape(-1, self._out_row), out=part if start else total)
            if start:
                np.add(total, part, out=total)
        for j, band in self._bands(self._dmatrix.array):
            np.add.reduce(band, axis=0, out=dw[:, j])

    def input_gradient(self, w: Array, dy: Array, dx: Array) -> Steps:
        """dx = the rows' gradients dy · Tᵀ, added up."""
        return [partial(self._input_gradient, w, dy, dx)]

    def _input_gradient(self, w: Array, dy: Array, dx: Array) -> None:
        t = self._band(w).T
        images = dx.reshape(*dx.shape[:2], self._row)
        images.fill(0)
        for start, count in self._blocks():
            drows = self._rows.array[:count]
            np.matmul(dy[start : start + count].reshape(-1, self._out_row), t, out=drows.reshape(-1, t.shape[1]))
            for i, out, into in self._taps:
                target = images[start : start + count, into]
                np.add(target, drows[:, out, i], out=target)

    def _blocks(self) -> Iterator[tuple[int, int]]:
        for start in range(0, self._g.images, self._images):
            yield start, min(self._images, self._g.images - start)

    def _gather(self, x: Array) -> Array:
        """The input rows that each output row sees: [images · out_rows, kh · W · C]."""
        rows = self._rows.array[: len(x)]
        if not self._whole:
            rows.fill(0)
        images = x.reshape(*x.shape[:2], self._row)
        for i, out, source in self._taps:
            np.copyto(rows[:, out, i], images[:, source])
        return rows.reshape(len(x) * self._g.out_rows, -1)

    def _band(self, w: Array) -> Array:
        """T as a matrix, with this weight in its band."""
        for j, band in self._bands(self._matrix):
            np.copyto(band, w[:, j])
        return self._matrix.reshape(-1, self._out_row)

    def _bands(self, matrix: Array) -> Iterator[tuple[int, Array]]:
        """For each column j of the kernel, the elements [output columns, kh, C, O] where w[:, j] stands."""
        g = self._g
        row, column, channel, place, output = matrix.strides
        for j in range(g.kernel[1]):
            out, source = _meeting(g.out_columns, g.width, g.strides[1], j * g.dilations[1] - g.pads[1])
            count = out.stop - out.start
            yield (
                j,
                np.ndarray(
                    (count, g.kernel[0], g.channels, g.outputs),
                    matrix.dtype,
                    matrix,
                    source.start * column + out.start * place if count else 0,
                    (column * g.strides[1] + place, row, channel, output),
                ),
            )


def _meeting(outputs: int, inputs: int, stride: int, offset: int) -> tuple[slice, slice]:
    """The outputs o for which o·stride + offset is one of the inputs, and those inputs."""
    first = max(0, -(offset // stride))
    stop = max(first, min(outputs, (inputs - 1 - offset) // stride + 1))
    start = first * stride + offset
    return slice(first, stop), slice(start, start + (stop - first - 1) * stride + 1, stride) if stop > first else slice(
        0, 0
    )
