"""Conv: the choice between two methods, and what they have in common (the bias).

* `columns.ColumnConvolution`: blocked im2col and GEMM; the general method.
* `banded.BandedConvolution`: rows times a banded matrix; for few channels, where im2col copies runs of a few numbers and its
  GEMM is a few columns wide. LeNet-5's first layer takes 6 µs an image instead of 16, its second one's input gradient 11
  instead of 40.

Which one runs is decided by the shapes alone, with rates measured once (AVX-512, one thread): it must not differ between
machines, or between a node and the single process that it is compared with.
"""

from __future__ import annotations

import numpy as np

from p2pnn.engine.numpy.banded import BandedConvolution
from p2pnn.engine.numpy.channels import Columns
from p2pnn.engine.numpy.columns import ColumnConvolution
from p2pnn.engine.numpy.geometry import Geometry, Steps
from p2pnn.engine.numpy.kernel import Call, Kernel, Site
from p2pnn.engine.numpy.winograd import WinogradConvolution

WINOGRAD_CHANNELS_MIN = 16
"""Of both inputs and outputs: products of fewer are slower than the columns that they save."""
RUN_NS = 4.0
"""Of copying one contiguous run in a strided copy, plus ELEMENT_NS per number in it."""
ELEMENT_NS = 0.12
COLUMNS_FLOPS_PER_NS = 90.0
"""GEMM over columns: few outputs make it slower than a wide one."""
BANDED_FLOPS_PER_NS = 150.0
BANDED_ELEMENTS_MAX = 1 << 18
"""Of the banded matrix: 1 MiB in float32, so that it stays in cache while the images pass."""


class Conv(Kernel):
    """y = x ∗ w + b (a cross-correlation, as in ONNX), for x [batch, H, W, C], w [kh, kw, C/group, O], b [O]."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        geometry = Geometry.of(site)
        self._method = method_of(geometry, site.wants[0])(site, geometry)
        self.keeps = tuple(i for i in range(2) if site.wants[1 - i])
        self._columns: Columns | None = None
        if len(site.inputs) > 2:
            self._columns = Columns(site, geometry.images * geometry.out_rows * geometry.out_columns, geometry.outputs)
            self._bias = site.scratch((self._columns.shape[1],))

    def bind_forward(self, call: Call) -> Steps:
        return self._method.forward(call.inputs[0], call.inputs[1], call.y)

    def bind_backward(self, call: Call) -> Steps:
        wants, (x, w), dy, steps = self.site.wants, call.inputs[:2], call.dy, []
        if wants[0]:
            steps += self._method.input_gradient(w, dy, call.dx[0])
        if wants[1]:
            steps += self._method.weight_gradient(x, dy, call.dx[1])
        return steps

    def forward(self, call: Call) -> None:
        for step in call.bound:
            step()
        if self._columns is not None:
            self._columns.repeat(call.inputs[2], self._bias.array)
            wide = self._columns.wide(call.y)
            np.add(wide, self._bias.array, out=wide)

    def backward(self, call: Call) -> None:
        for step in call.bound:
            step()
        if self._columns is not None and self.site.wants[2]:
            self._columns.sums(call.dy, call.dx[2])


def method_of(
    g: Geometry, wants_input_gradient: bool
) -> type[BandedConvolution | ColumnConvolution | WinogradConvolution]:
    """The method that is expected to take the least time over forward and backward."""
    if WinogradConvolution.fits(g) and min(g.channels, g.outputs) >= WINOGRAD_CHANNELS_MIN:
        return WinogradConvolution
    return BandedConvolution if prefers_bands(g, wants_input_gradient) else ColumnConvolution


def prefers_bands(g: Geometry, wants_input_gradient: bool) -> bool:
    """Whether the banded method is expected to take less time over forward and backward."""
    matrix = g.kernel[0] * g.width * g.channels * g.out_columns * g.outputs
    if g.group != 1 or matrix > BANDED_ELEMENTS_MAX:
        return False
    window = g.kernel[0] * g.kernel[1]
    positions = g.out_rows * g.out_columns

    def columns_ns(places: int, inner: int, outer: int) -> float:
        copy = places * g.kernel[0] * RUN_NS + places * window * inner * ELEMENT_NS
        return copy + 2 * places * window * inner * outer / COLUMNS_FLOPS_PER_NS

    columns = 2 * columns_ns(positions, g.channels, g.outputs)
    bands = 2 * 2 * g.out_rows * matrix / BANDED_FLOPS_PER_NS
    if wants_input_gradient:
        columns += columns_ns(g.height * g.width, g.outputs, g.channels) / (g.strides[0] * g.strides[1])
        bands *= 1.5
    return bands < columns
