"""Convolution by blocked im2col and GEMM, for any strides, pads, dilations and groups.

A block of images (or of one image's output rows) is copied into columns [places, kh · kw · C] that stay in cache, and
multiplied with the weight [kh · kw · C, O]. A 1×1 convolution with stride 1 needs no columns: the image is them.

The input's gradient is a convolution too. Along one axis, with stride s, dilation d and pad p,

    dx[h] = Σ over taps i with s | h + p − i·d of dy[(h + p − i·d) / s] · w[i]ᵀ

so the places h ≡ r (mod s) are a convolution of stride 1 of dy, with those taps of w whose i·d ≡ r + p (mod s), turned
around. Each of the s·s *phases* is gathered and multiplied like a forward pass. (Scattering columns of gradients instead takes
kh·kw passes of short strided additions: 2 to 4 times as long.)

Whatever the size of the batch, blocks are summed in order, and block sizes follow from the shapes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import gcd

import numpy as np

from p2pnn.engine.numpy.geometry import Geometry, Steps
from p2pnn.engine.numpy.kernel import Site, Slot, blocks
from p2pnn.engine.numpy.layout import Array


@dataclass(frozen=True, slots=True)
class Phase:
    """Along one axis: the places first, first + s, … of dx (`count` of them), and the taps last, last − step, … of w that
    reach them, from `start`, start + spread, … of dy on."""

    first: int
    count: int
    taps: slice
    start: int
    spread: int


@dataclass(frozen=True, slots=True)
class Sweep:
    """A dense convolution of a padded source: which window is gathered, and in which blocks."""

    places: tuple[int, int]
    window: tuple[int, int]
    channels: int
    strides: tuple[int, int]
    spread: tuple[int, int]
    start: tuple[int, int]
    block: tuple[int, int]

    def gather(self, source: Array, rows: slice, offset: int, columns: Array) -> Array:
        """Copy the windows of some output rows into columns; returns them as a matrix [places, window · channels].

        source: [images, height, width, all channels], C-contiguous; offset: the first channel.
        """
        (sh, sw), (dh, dw), (ky, kx) = self.strides, self.spread, self.window
        image, row, column, item = source.strides
        count = rows.stop - rows.start
        shape = (len(source), count, self.places[1], ky, kx, self.channels)
        begin = (self.start[0] + rows.start * sh) * row + self.start[1] * column + offset * item
        view: Array = np.ndarray(
            shape, source.dtype, source, begin, (image, row * sh, column * sw, row * dh, column * dw, item)
        )
        size = len(source) * count * self.places[1]
        matrix = columns.reshape(-1)[: size * ky * kx * self.channels]
        np.copyto(matrix.reshape(shape), view)
        return matrix.reshape(size, -1)


class ColumnConvolution:
    """The method, bound to one geometry."""

    def __init__(self, site: Site, geometry: Geometry) -> None:
        g = self._g = geometry
        self._item = site.dtype.itemsize
        self._inner, self._outer = g.channels // g.group, g.outputs // g.group
        self._direct = g.group == 1 and {*g.kernel, *g.strides} == {1} and not any(g.pads)
        kernel, places = (g.kernel[0], g.kernel[1]), (g.out_rows, g.out_columns)
        self._gathered = self._sweep(places, kernel, self._inner, g.strides, g.dilations, (0, 0))
        self._phases = [_phases(g, axis) for axis in range(2)]
        self._lead = [max(0, *(-p.start for p in phases)) for phases in self._phases]
        self._columns = site.scratch((self._column_elements(site.wants[0]),))
        padded = (g.height + g.pads[0] + g.pads[2], g.width + g.pads[1] + g.pads[3])
        self._source = site.scratch((self._gathered.block[0], *padded, g.channels)) if any(g.pads) else None
        if site.wants[1]:
            self._part = site.scratch((g.kernel[0] * g.kernel[1] * self._inner, self._outer))
        if site.wants[0]:
            self._plan_input_gradient(site)

    def load(self, w: Array) -> None:
        """The weight of the pass that follows."""
        self._weight = w

    def forward(self, x: Array, y: Array) -> Steps:
        """y = x ∗ w."""
        return [partial(self._forward, x, y)]

    def _forward(self, x: Array, y: Array) -> None:
        g, matrix = self._g, self._weight.reshape(-1, self._g.outputs)
        if self._direct:
            np.matmul(x.reshape(-1, g.channels), matrix, out=y.reshape(-1, g.outputs))
            return
        for images, rows, source in self._blocks(x):
            out = y[images, rows].reshape(-1, g.outputs)
            for group, outputs in self._groups():
                columns = self._gathered.gather(source, rows, group * self._inner, self._columns.array)
                np.matmul(columns, matrix[:, outputs], out=out[:, outputs])

    def weight_gradient(self, x: Array, dy: Array, dw: Array) -> Steps:
        """dw = Σ over blocks of columnsᵀ · dy."""
        return [partial(self._weight_gradient, x, dy, dw)]

    def _weight_gradient(self, x: Array, dy: Array, dw: Array) -> None:
        g, total = self._g, dw.reshape(-1, self._g.outputs)
        if self._direct:
            np.matmul(x.reshape(-1, g.channels).T, dy.reshape(-1, g.outputs), out=total)
            return
        first = True
        for images, rows, source in self._blocks(x):
            gradient = dy[images, rows].reshape(-1, g.outputs)
            for group, outputs in self._groups():
                columns = self._gathered.gather(source, rows, group * self._inner, self._columns.array)
                np.matmul(columns.T, gradient[:, outputs], out=total[:, outputs] if first else self._part.array)
                if not first:
                    np.add(total[:, outputs], self._part.array, out=total[:, outputs])
            first = False

    def input_gradient(self, dy: Array, dx: Array) -> Steps:
        """dx, phase by phase."""
        return [partial(self._input_gradient, dy, dx)]

    def _input_gradient(self, dy: Array, dx: Array) -> None:
        g = self._g
        if self._direct:
            matrix = self._weight.reshape(-1, g.outputs)
            np.matmul(dy.reshape(-1, g.outputs), matrix.T, out=dx.reshape(-1, g.channels))
            return
        if self._empty_phases:
            dx.fill(0)
        for phase, sweep in self._sweeps:
            turned = self._turn(phase)
            for start in range(0, g.images, sweep.block[0]):
                images = slice(start, min(start + sweep.block[0], g.images))
                source = self._pad_gradient(dy[images])
                for rows in _slices(sweep.places[0], sweep.block[1]):
                    self._phase_gradient(phase, sweep, source, rows, turned, dx[images])

    def _phase_gradient(
        self, phase: tuple[Phase, Phase], sweep: Sweep, source: Array, rows: slice, turned: Array, dx: Array
    ) -> None:
        """One block of one phase."""
        g = self._g
        shape = (len(source), rows.stop - rows.start, sweep.places[1], g.channels)
        if self._strided:
            out = self._places.array.reshape(-1)[: shape[0] * shape[1] * shape[2] * shape[3]].reshape(shape)
        else:
            out = dx[:, rows]
        flat = out.reshape(-1, g.channels)
        for group in range(g.group):
            columns = sweep.gather(source, rows, group * self._outer, self._columns.array)
            inputs = slice(group * self._inner, (group + 1) * self._inner)
            np.matmul(columns, turned[group], out=flat[:, inputs])
        if self._strided:
            y, x = phase
            sh, sw = g.strides
            np.copyto(dx[:, y.first + rows.start * sh : y.first + (rows.stop - 1) * sh + 1 : sh, x.first :: sw], out)

    def _turn(self, phase: tuple[Phase, Phase]) -> Array:
        """The phase's taps of the weight, last first, as [group, taps · O/group, C/group]."""
        g = self._g
        taps = self._weight[phase[0].taps, phase[1].taps]
        ky, kx = taps.shape[:2]
        size = ky * kx * self._inner * g.outputs
        turned = self._turned.array[:size].reshape(g.group, ky, kx, self._outer, self._inner)
        np.copyto(turned, taps.reshape(ky, kx, self._inner, g.group, self._outer).transpose(3, 0, 1, 4, 2))
        return turned.reshape(g.group, -1, self._inner)

    def _plan_input_gradient(self, site: Site) -> None:
        g = self._g
        self._strided = set(g.strides) != {1}
        self._turned = site.scratch((g.kernel[0] * g.kernel[1] * self._inner * g.outputs,))
        every = [(y, x) for y in self._phases[0] for x in self._phases[1] if y.count and x.count]
        self._sweeps = [(phase, self._phase_sweep(phase)) for phase in every if phase[0].spread and phase[1].spread]
        self._empty_phases = len(self._sweeps) < len(every)
        extents = [self._gradient_extent(axis) for axis in range(2)]
        images = max((s.block[0] for _, s in self._sweeps), default=1)
        self._dy: Slot | None = None
        if extents != [g.out_rows, g.out_columns]:
            self._dy = site.scratch((images, *extents, g.outputs))
        if self._strided:
            places = max((s.block[0] * s.block[1] * s.places[1] for _, s in self._sweeps), default=0)
            self._places = site.scratch((places, g.channels))

    def _gradient_extent(self, axis: int) -> int:
        """How far the padded gradient reaches, so that every phase finds what it gathers."""
        own = (self._g.out_rows, self._g.out_columns)[axis]
        needs = [
            p.start + self._lead[axis] + p.count + (_taps(p, self._g.kernel[axis]) - 1) * p.spread
            for p in self._phases[axis]
            if p.spread
        ]
        return max(own + self._lead[axis], *needs) if needs else own

    def _pad_gradient(self, dy: Array) -> Array:
        if self._dy is None:
            return dy
        g, (top, left), padded = self._g, self._lead, self._dy.array[: len(dy)]
        padded.fill(0)
        np.copyto(padded[:, top : top + g.out_rows, left : left + g.out_columns], dy)
        return padded

    def _blocks(self, x: Array) -> Iterator[tuple[slice, slice, Array]]:
        """(images, output rows, the padded images) of every block, in order."""
        g, (count, rows) = self._g, self._gathered.block
        for images in _slices(g.images, count):
            source = x[images]
            if self._source is not None:
                source = self._source.array[: len(source)]
                source.fill(0)
                top, left = g.pads[:2]
                np.copyto(source[:, top : top + g.height, left : left + g.width], x[images])
            for part in _slices(g.out_rows, rows):
                yield images, part, source

    def _groups(self) -> Iterator[tuple[int, slice]]:
        for group in range(self._g.group):
            yield group, slice(group * self._outer, (group + 1) * self._outer)

    def _sweep(
        self,
        places: tuple[int, int],
        window: tuple[int, int],
        channels: int,
        strides: Sequence[int],
        spread: Sequence[int],
        start: tuple[int, int],
    ) -> Sweep:
        row_bytes = places[1] * window[0] * window[1] * channels * self._item
        block = blocks(self._g.images, places[0], row_bytes)
        return Sweep(places, window, channels, (strides[0], strides[1]), (spread[0], spread[1]), start, block)

    def _phase_sweep(self, phase: tuple[Phase, Phase]) -> Sweep:
        y, x = phase
        window = (_taps(y, self._g.kernel[0]), _taps(x, self._g.kernel[1]))
        start = (y.start + self._lead[0], x.start + self._lead[1])
        return self._sweep((y.count, x.count), window, self._outer, (1, 1), (y.spread, x.spread), start)

    def _column_elements(self, wants_input_gradient: bool) -> int:
        sweeps = [self._gathered]
        if wants_input_gradient:
            every = [(y, x) for y in self._phases[0] for x in self._phases[1] if y.spread and x.spread]
            sweeps += [self._phase_sweep(phase) for phase in every if phase[0].count and phase[1].count]
        return max(s.block[0] * s.block[1] * s.places[1] * s.window[0] * s.window[1] * s.channels for s in sweeps)


def _phases(g: Geometry, axis: int) -> list[Phase]:
    """The phases of one axis; a phase that no tap reaches has spread 0."""
    size, stride, dilation, pad = (g.height, g.width)[axis], g.strides[axis], g.dilations[axis], g.pads[axis]
    step = stride // gcd(stride, dilation)
    found = []
    for first in range(min(stride, size)):
        count = max(0, -(-(size - first) // stride))
        taps = [i for i in range(g.kernel[axis]) if (first + pad - i * dilation) % stride == 0]
        if not taps:
            found.append(Phase(first, count, slice(0, 0), 0, 0))
            continue
        # Taps in falling order, so that the places of dy rise.
        start = (first + pad - taps[-1] * dilation) // stride
        stop = taps[0] - step
        turned = slice(taps[-1], stop if stop >= 0 else None, -step)
        found.append(Phase(first, count, turned, start, dilation // gcd(stride, dilation)))
    return found


def _taps(phase: Phase, kernel: int) -> int:
    return len(range(kernel)[phase.taps])


def _slices(total: int, step: int) -> Iterator[slice]:
    for start in range(0, total, step):
        yield slice(start, min(start + step, total))
