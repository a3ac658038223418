"""Convolution as tiles of an output row times a banded matrix, for few channels.

`across` neighbouring outputs of one row, [across · O], are a linear function of the kh pieces of input rows, [span · C] each,
that they see together. Its matrix T, [kh, span, C, across, O], holds w[i, j, c, o] at (i, a·stride + j·dilation, c, a, o) and
zero elsewhere:

    y[b, oh, t] = pieces[b, oh, t] · T      pieces[b, oh, t, i] = x[b, oh·stride + i·dilation, t·across·stride … + span − 1]

With across = 1 this is im2col. Wider tiles multiply with more zeros, but there are fewer and longer runs to gather (im2col
copies kh·kw numbers per output and channel), and GEMMs of many columns are faster than those of 16. `tiling` weighs that.
dT = Σ piecesᵀ · dy is summed along its bands to give dw, and dpieces = dy · Tᵀ is added back to where the pieces came from.
T is zeroed once and its band rewritten.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from math import ceil

import numpy as np

from p2pnn.engine.numpy import blas
from p2pnn.engine.numpy.geometry import Geometry, Steps
from p2pnn.engine.numpy.kernel import Site, blocks
from p2pnn.engine.numpy.layout import Array

RUN_NS, ELEMENT_NS = 6.0, 0.12
"""Of copying one contiguous run in a strided copy, and per number in it."""
ADDED_RUN_NS, ADDED_NS = 15.0, 0.35
"""The same for adding runs to strided places."""
ACROSS_MAX = 512
"""Outputs per tile: the matrix grows with their square (see `convolution.BANDED_ELEMENTS_MAX`)."""
FLOPS_PER_NS, HALF_OUTER, HALF_INNER = 165.0, 6.0, 4.0
"""A GEMM [rows, inner] · [inner, outer] runs at FLOPS_PER_NS / (1 + HALF_OUTER / outer + HALF_INNER / inner)."""


def gemm_ns(rows: int, inner: int, outer: int) -> float:
    """The time of a product of many rows, as measured with OpenBLAS on AVX-512, one thread."""
    return 2 * rows * inner * outer * (1 + HALF_OUTER / outer + HALF_INNER / inner) / FLOPS_PER_NS


def span_of(g: Geometry, across: int) -> int:
    """How many input columns a tile sees."""
    return (across - 1) * g.strides[1] + (g.kernel[1] - 1) * g.dilations[1] + 1


def tiling(g: Geometry, wants_input_gradient: bool) -> tuple[float, int]:
    """(nanoseconds per image, forward and backward; outputs per tile), of the best tiling."""
    ways = []
    for across in range(1, min(g.out_columns, ACROSS_MAX) + 1):
        if g.out_columns % across == 0:
            tiles, inner = g.out_rows * g.out_columns // across, g.kernel[0] * span_of(g, across) * g.channels
            gather = tiles * (g.kernel[0] * RUN_NS + inner * ELEMENT_NS)
            add = tiles * (g.kernel[0] * ADDED_RUN_NS + inner * ADDED_NS)
            product = gemm_ns(tiles, inner, across * g.outputs)
            ways.append((2 * (gather + product) + wants_input_gradient * (add + product), across))
    return min(ways)


class BandedConvolution:
    """The method, bound to one geometry with group 1."""

    def __init__(self, site: Site, geometry: Geometry) -> None:
        g = self._g = geometry
        _, self._across = tiling(g, site.wants[0])
        self._tiles, self._span = g.out_columns // self._across, span_of(g, self._across)
        shape = (g.kernel[0], self._span, g.channels, self._across, g.outputs)
        self._matrix = site.workspace.own(shape, site.dtype)
        piece = self._tiles * g.kernel[0] * self._span * g.channels
        self._images, _ = blocks(g.images, g.out_rows, piece * site.dtype.itemsize)
        self._pieces = site.scratch((self._images, g.out_rows, self._tiles, g.kernel[0], self._span * g.channels))
        self._padded = None
        if any(g.pads):
            height, width = g.height + g.pads[0] + g.pads[2], g.width + g.pads[1] + g.pads[3]
            self._padded = site.scratch((self._images, height, width, g.channels))
        if site.wants[1]:
            self._dmatrix = site.scratch(shape)
        alone = site.wants[1] and not blas.accumulates(site.dtype)
        self._alone = site.scratch(self._flat(self._matrix).shape) if alone else None

    def load(self, w: Array) -> None:
        """T for the pass that follows, with this weight in its band."""
        for j, band in self._bands(self._matrix):
            np.copyto(band, w[:, j])

    def forward(self, x: Array, y: Array) -> Steps:
        """y = x ∗ w."""
        steps, t = self._begin(), self._flat(self._matrix)
        for images in self._blocks():
            pieces = self._gather(steps, x[images])
            steps.append(partial(np.matmul, pieces, t, out=y[images].reshape(len(pieces), -1)))
        return steps

    def weight_gradient(self, x: Array, dy: Array, dw: Array) -> Steps:
        """dw = the sum along the bands of piecesᵀ · dy."""
        steps, total = self._begin(), self._flat(self._dmatrix.array)
        for images in self._blocks():
            pieces = self._gather(steps, x[images])
            alone = None if self._alone is None else self._alone.array
            product = blas.Product(pieces.T, dy[images].reshape(len(pieces), -1), total, alone)
            steps.append(partial(product, 1.0, 1.0 if images.start else 0.0))
        bands = self._bands(self._dmatrix.array)
        return steps + [partial(np.add.reduce, band, axis=0, out=dw[:, j]) for j, band in bands]

    def input_gradient(self, dy: Array, dx: Array) -> Steps:
        """dx = the pieces' gradients dy · Tᵀ, added up."""
        steps: Steps = []
        t = self._flat(self._matrix).T
        for images in self._blocks():
            pieces = self._pieces.array[: images.stop - images.start]
            flat = pieces.reshape(-1, len(t.T))
            steps.append(partial(np.matmul, dy[images].reshape(len(flat), -1), t, out=flat))
            into = dx[images] if self._padded is None else self._padded.array[: len(pieces)]
            steps.append(partial(into.fill, 0))
            places, apart = self._places(into), ceil(self._span / (self._across * self._g.strides[1]))
            for row in range(self._g.kernel[0]):
                for first in range(min(apart, self._tiles)):  # tiles so far apart that their pieces do not overlap
                    target, part = places[:, :, first::apart, row], pieces[:, :, first::apart, row]
                    steps.append(partial(np.add, target, part, out=target))
            if self._padded is not None:
                steps.append(partial(np.copyto, dx[images], self._inside(into)))
        return steps

    def _blocks(self) -> Iterator[slice]:
        for start in range(0, self._g.images, self._images):
            yield slice(start, min(start + self._images, self._g.images))

    def _begin(self) -> Steps:
        """Once per pass: zero what surrounds the images."""
        return [] if self._padded is None else [partial(self._padded.array.fill, 0)]

    def _inside(self, padded: Array) -> Array:
        g = self._g
        return padded[:, g.pads[0] : g.pads[0] + g.height, g.pads[1] : g.pads[1] + g.width]

    def _places(self, source: Array) -> Array:
        """Where the pieces stand in padded images: [images, output rows, tiles, kh, span · C], overlapping."""
        g = self._g
        image, row, column, item = source.strides
        shape = (len(source), *self._pieces.array.shape[1:])
        tile = self._across * g.strides[1] * column
        strides = (image, row * g.strides[0], tile, row * g.dilations[0], item)
        return np.ndarray(shape, source.dtype, source, 0, strides)

    def _gather(self, steps: Steps, x: Array) -> Array:
        """The pieces that each tile sees: [images · output rows · tiles, kh · span · C]."""
        if self._padded is not None:
            padded = self._padded.array[: len(x)]
            steps.append(partial(np.copyto, self._inside(padded), x))
            x = padded
        pieces = self._pieces.array[: len(x)]
        steps.append(partial(np.copyto, pieces, self._places(x)))
        return pieces.reshape(-1, pieces.shape[3] * pieces.shape[4])

    def _flat(self, matrix: Array) -> Array:
        return matrix.reshape(-1, self._across * self._g.outputs)

    def _bands(self, matrix: Array) -> Iterator[tuple[int, Array]]:
        """For each column j of the kernel, the elements [across, kh, C, O] where w[:, j] stands."""
        g = self._g
        row, column, channel, place, output = matrix.strides
        shape = (self._across, g.kernel[0], g.channels, g.outputs)
        strides = (column * g.strides[1] + place, row, channel, output)
        for j in range(g.kernel[1]):
            yield j, np.ndarray(shape, matrix.dtype, matrix, j * g.dilations[1] * column, strides)
