"""Conv: the choice between three methods, and what they have in common (the bias).

* `winograd.WinogradConvolution`: 3 × 3 with stride 1 and many channels, in tiles: 16 products instead of 36.
* `banded.BandedConvolution`: a few outputs of a row at a time; for few channels, where im2col copies runs of a few numbers
  and its GEMM is a few columns wide, and wherever adding columns of gradients back is cheaper than gathering windows of dy.
* `columns.ColumnConvolution`: blocked im2col and GEMM; the general method, for groups, and for a 1 × 1 that needs no columns.

Which one runs is decided by the shapes alone, with rates measured once (AVX-512, one thread): it must not differ between
machines, or between a node and the single process that it is compared with.
"""

from __future__ import annotations

import numpy as np

from p2pnn.engine.numpy.banded import ELEMENT_NS, RUN_NS, BandedConvolution, gemm_ns, span_of, tiling
from p2pnn.engine.numpy.channels import Columns
from p2pnn.engine.numpy.columns import ColumnConvolution
from p2pnn.engine.numpy.geometry import Geometry, Steps
from p2pnn.engine.numpy.kernel import Call, Kernel, Site
from p2pnn.engine.numpy.winograd import WinogradConvolution

WINOGRAD_CHANNELS_MIN = 24
"""Of both inputs and outputs: with 16 the additions take as long as the products that they save, with 32 they save a fifth."""
PHASED = 2.0
"""With strides an input gradient by im2col takes so many times as long: its products are short, and its results scattered."""
BANDED_ELEMENTS_MAX = 1 << 18
"""Of the banded matrix, and of one image's pieces: 1 MiB in float32, so that both stay in cache while the images pass."""


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
        return self._method.forward(call.inputs[0], call.y)

    def bind_backward(self, call: Call) -> Steps:
        wants, dy, steps = self.site.wants, call.dy, []
        if wants[0]:
            steps += self._method.input_gradient(dy, call.dx[0])
        if wants[1]:
            steps += self._method.weight_gradient(call.inputs[0], dy, call.dx[1])
        return steps

    def forward(self, call: Call) -> None:
        self._method.load(call.inputs[1])
        for step in call.bound:
            step()
        if self._columns is not None:
            self._columns.repeat(call.inputs[2], self._bias.array)
            wide = self._columns.wide(call.y)
            np.add(wide, self._bias.array, out=wide)

    def backward(self, call: Call) -> None:
        if self.site.wants[0]:
            self._method.load(call.inputs[1])
        for step in call.bound:
            step()
        if self._columns is not None and self.site.wants[2]:
            self._columns.sums(call.dy, call.dx[2])


def method_of(
    g: Geometry, wants_input_gradient: bool
) -> type[BandedConvolution | ColumnConvolution | WinogradConvolution]:
    """The method that is expected to take the least time over forward and backward."""
    if g.group != 1 or ({*g.kernel, *g.strides} == {1} and not any(g.pads)):
        return ColumnConvolution
    if WinogradConvolution.fits(g) and min(g.channels, g.outputs) >= WINOGRAD_CHANNELS_MIN:
        return WinogradConvolution
    banded, across = tiling(g, wants_input_gradient)
    piece = g.kernel[0] * span_of(g, across) * g.channels
    too_large = piece * max(across * g.outputs, g.out_rows * g.out_columns // across) > BANDED_ELEMENTS_MAX
    if too_large or columns_ns(g, wants_input_gradient) < banded:
        return ColumnConvolution
    return BandedConvolution


def columns_ns(g: Geometry, wants_input_gradient: bool) -> float:
    """Nanoseconds per image of im2col, forward and backward; an input gradient gathers windows of dy."""

    def once(places: int, inner: int, outer: int) -> float:
        window = g.kernel[0] * g.kernel[1]
        copy = places * (g.kernel[0] * RUN_NS + window * inner * ELEMENT_NS)
        return copy + gemm_ns(places, window * inner, outer)

    forward = once(g.out_rows * g.out_columns, g.channels, g.outputs)
    phases = g.strides[0] * g.strides[1]
    backward = once(g.height * g.width, g.outputs, g.channels) / phases * (PHASED if phases > 1 else 1.0)
    return 2 * forward + wants_input_gradient * backward
