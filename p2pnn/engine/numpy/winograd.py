"""Convolution of 3 × 3 with stride 1 in 16 products per four outputs instead of 36, and without columns.

Winograd's F(2, 3): of four neighbours d0 … d3 and a kernel of three taps, two outputs come from four products,

    v = (d0 − d2, d1 + d2, d2 − d1, d1 − d3)        u = (w0, (w0 + w1 + w2)/2, (w0 − w1 + w2)/2, w2)
    m = v · u                                       y = (m0 + m1 + m2, m1 − m2 − m3)

and along both axes, a tile of 4 × 4 inputs gives 2 × 2 outputs from 16. With channels each of the 16 is a matrix product over
all tiles, [tiles, C] · [C, O]. The rest is additions, of long rows: even and odd columns are parted when the source is padded.

All of it is linear, so the gradients are the same steps turned round. For the input: a convolution of dy with the kernel
turned by half, where u0 and u3 change places and matrices are transposed. For the weight: du = vᵀ · dm, with
dm = (dy0, dy0 + dy1, dy0 − dy1, −dy1) along both axes; dw comes from du as v does from d.

Blocks of tiles stay in cache; the order of all sums follows from the shapes. The additions cost less than two bits of a
float32. Source: Winograd 1980; Lavin and Gray 2016, §4.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from p2pnn.engine.numpy import blas
from p2pnn.engine.numpy.geometry import Geometry, Steps
from p2pnn.engine.numpy.kernel import Site, Slot
from p2pnn.engine.numpy.layout import Array

BLOCK_BYTES = 1 << 20
"""Of v and m together. Measured from 512 KiB to 1 MiB on a core with 2 MiB: half costs an eighth of the time."""

_PLAIN, _TURNED = (0, 1, 2, 3), (3, 1, 2, 0)
_SIGNS = (1.0, 1.0, 1.0, -1.0)


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of tiles `first` … of some images: output rows 2·first …"""

    images: slice
    first: int
    tiles: int

    @property
    def shape(self) -> tuple[int, int]:
        """Images and rows of tiles."""
        return self.images.stop - self.images.start, self.tiles


class Sweep:
    """One such convolution of a source [images, height, width, inner] to [images, rows, columns, outer], in blocks.

    pads: top, left. order: where the four parts of v and m along an axis lie.
    """

    def __init__(
        self,
        item: int,
        source: tuple[int, int, int, int],
        target: tuple[int, int, int],
        pads: tuple[int, int],
        order: tuple[int, int, int, int],
    ) -> None:
        self._images, self._height, self._width, self.inner = source
        self._rows, self._columns, self.outer = target
        self._top, self._left = pads
        self._order = order
        self._tiles = (-(-self._rows // 2), -(-self._columns // 2))
        row_bytes = 16 * self._tiles[1] * (self.inner + self.outer) * item
        most = max(1, BLOCK_BYTES // row_bytes)
        n, t = self.block = (max(1, min(self._images, most // self._tiles[0])), min(self._tiles[0], most))
        places, wide = n * t * self._tiles[1], self._tiles[1] + 1
        half = 8 * n * t * wide * self.inner  # the rows' differences, which are gone when m is written
        self.sizes = (
            2 * n * (2 * t + 2) * wide * self.inner,
            16 * places * self.inner,
            max(16 * places * self.outer, half),
        )

    def lie_in(self, slots: Sequence[Slot]) -> None:
        """Take scratch of at least `sizes`; sweeps that run one after another may share it."""
        self._parted, self._v, self._m = slots

    def blocks(self) -> Iterator[Block]:
        """In order."""
        for start in range(0, self._images, self.block[0]):
            images = slice(start, min(start + self.block[0], self._images))
            for first in range(0, self._tiles[0], self.block[1]):
                yield Block(images, first, min(self.block[1], self._tiles[0] - first))

    def v(self, block: Block) -> Array:
        """[4, 4, images, tile rows, tile columns, inner], in scratch."""
        return self._v.head((4, 4, *block.shape, self._tiles[1], self.inner))

    def m(self, block: Block) -> Array:
        """[4, 4, images, tile rows, tile columns, outer], in scratch."""
        return self._m.head((4, 4, *block.shape, self._tiles[1], self.outer))

    def begin(self) -> Steps:
        """Once per pass: zero the columns of padding."""
        found: Steps = []
        for parity in range(2):
            into, _ = self._part(parity)
            for margin in (slice(0, into.start), slice(into.stop, None)):
                columns = self._padded(self.block)[parity, :, :, margin]
                found += [partial(columns.fill, 0)] if columns.size else []
        return found

    def expand(self, block: Block, x: Array) -> Steps:
        """v from the source."""
        steps: Steps = []
        rows = self._load(steps, block, x)
        h = self._m.head((4, 2, *block.shape, self._tiles[1] + 1, self.inner))
        _expand(steps, [rows[:, :, i : i + 2 * block.tiles - 1 : 2] for i in range(4)], [h[i] for i in self._order])
        v, even, odd = self.v(block), h[:, 0], h[:, 1]
        neighbours = [even[..., :-1, :], odd[..., :-1, :], even[..., 1:, :], odd[..., 1:, :]]
        _expand(steps, neighbours, [v[:, i] for i in self._order])
        return steps

    def collapse(self, block: Block, y: Array) -> Steps:
        """Outputs from m, which is overwritten."""
        steps: Steps = []
        m = self.m(block)
        columns = [m[:, i] for i in self._order]
        _collapse(steps, columns, columns[:2])
        for parity, part in enumerate(columns[:2]):
            outputs = [self._outputs(block, y, row, parity) for row in range(2)]
            _collapse(steps, [part[i] for i in self._order], outputs)
        return steps

    def spread(self, block: Block, dy: Array) -> Steps:
        """dm from the output's gradient, but for the signs of its fourth parts."""
        steps: Steps = []
        dm = self.m(block)
        for row in range(2):
            for parity in range(2):
                corner, part = dm[3 * row, 3 * parity], self._outputs(block, dy, row, parity)
                if part.shape != corner.shape:  # the last tile has only one row or column
                    steps.append(partial(corner.fill, 0))
                steps.append(partial(np.copyto, corner[:, : part.shape[1], : part.shape[2]], part))
        for d0, d1, d2, d3 in (dm[:, ::3], dm.swapaxes(0, 1)):
            steps.append(partial(np.add, d0, d3, out=d1))
            steps.append(partial(np.subtract, d0, d3, out=d2))
        return steps

    def _outputs(self, block: Block, y: Array, row: int, column: int) -> Array:
        """The upper or lower, left or right outputs of all tiles in a block."""
        return y[block.images, 2 * block.first + row : 2 * (block.first + block.tiles) : 2, column::2]

    def _part(self, parity: int) -> tuple[slice, slice]:
        """Where the source's columns go that lie at even (or odd) places of the padded one, and which ones they are."""
        first = (parity - self._left) % 2
        start = (first + self._left) // 2
        return slice(start, start + len(range(first, self._width, 2))), slice(first, None, 2)

    def _padded(self, shape: tuple[int, int]) -> Array:
        """Even and odd columns of padded source rows."""
        return self._parted.head((2, shape[0], 2 * shape[1] + 2, self._tiles[1] + 1, self.inner))

    def _load(self, steps: Steps, block: Block, x: Array) -> Array:
        """The block's source rows with zeros around, [2, images, 2 · tiles + 2, tile columns + 1, inner]."""
        first, count = 2 * block.first - self._top, 2 * block.tiles + 2
        parted = self._padded(self.block)[:, : block.shape[0], :count]
        low, high = max(0, first), min(self._height, first + count)
        for margin in (parted[:, :, : low - first], parted[:, :, high - first :]):
            steps += [partial(margin.fill, 0)] if margin.size else []
        for parity in range(2):
            into, columns = self._part(parity)
            source = x[block.images, low:high, columns]
            steps.append(partial(np.copyto, parted[parity, :, low - first : high - first, into], source))
        return parted


class WinogradConvolution:
    """The method, bound to one geometry that it `fits`."""

    def __init__(self, site: Site, geometry: Geometry) -> None:
        g = geometry
        item, target = site.dtype.itemsize, (g.out_rows, g.out_columns, g.outputs)
        sweeps = [Sweep(item, (g.images, g.height, g.width, g.channels), target, (g.pads[0], g.pads[1]), _PLAIN)]
        if site.wants[0]:
            source, pads = (g.images, *target), (2 - g.pads[0], 2 - g.pads[1])
            sweeps.append(Sweep(item, source, (g.height, g.width, g.channels), pads, _TURNED))
        slots = [site.scratch((max(sizes),)) for sizes in zip(*(sweep.sizes for sweep in sweeps), strict=True)]
        for sweep in sweeps:
            sweep.lie_in(slots)
        self._forward, self._backward = sweeps[0], sweeps[-1]
        self._u = site.scratch((4, 4, g.channels, g.outputs))
        alone = site.wants[1] and not blas.accumulates(site.dtype)
        self._alone = site.scratch((g.channels, g.outputs)) if alone else None

    @staticmethod
    def fits(g: Geometry) -> bool:
        """Whether it is such a convolution, with pads within the kernel's reach."""
        plain = g.group == 1 and {*g.strides, *g.dilations} == {1}
        return plain and tuple(g.kernel) == (3, 3) and max(g.pads) <= 2

    def load(self, w: Array) -> None:
        """u for the pass that follows: first its corners and middle, then what lies between."""
        u, places = self._u.array, (0, 1, 3)
        for i in range(3):
            for j in range(3):
                np.copyto(u[places[i], places[j]], w[i, j])
        for u0, u1, u2, u3 in (u[:, ::1], u.swapaxes(0, 1)):
            _unfold(u0, u1, u2, u3)

    def forward(self, x: Array, y: Array) -> Steps:
        """y = x ∗ w."""
        return _convolve(self._forward, x, self._u.array, y)

    def input_gradient(self, dy: Array, dx: Array) -> Steps:
        """dx = dy ∗ the kernel turned by half."""
        return _convolve(self._backward, dy, self._u.array.swapaxes(2, 3), dx)

    def weight_gradient(self, x: Array, dy: Array, dw: Array) -> Steps:
        """dw from du = Σ over blocks of vᵀ · dm."""
        sweep, du = self._forward, self._u.array
        steps = sweep.begin()
        made: dict[tuple[int, int], list[tuple[float, blas.Product]]] = {}
        for number, block in enumerate(sweep.blocks()):
            if block.shape not in made:
                made[block.shape] = list(self._products(sweep.v(block), sweep.m(block), du))
            steps += sweep.expand(block, x) + sweep.spread(block, dy)
            steps += [partial(product, sign, 1.0 if number else 0.0) for sign, product in made[block.shape]]
        for d0, d1, d2, d3 in (du.swapaxes(0, 1), du):
            _fold(steps, d0, d1, d2, d3)
        kept = (0, 2, 3)
        return steps + [partial(np.copyto, dw[i, j], du[kept[i], kept[j]]) for i in range(3) for j in range(3)]

    def _products(self, v: Array, dm: Array, du: Array) -> Iterator[tuple[float, blas.Product]]:
        alone = None if self._alone is None else self._alone.array
        for i in range(4):
            for j in range(4):
                left, right = v[i, j].reshape(-1, v.shape[-1]), dm[i, j].reshape(-1, dm.shape[-1])
                yield _SIGNS[i] * _SIGNS[j], blas.Product(left.T, right, du[i, j], alone)


def _convolve(sweep: Sweep, x: Array, u: Array, y: Array) -> Steps:
    """y from x, with u as [4, 4, inner, outer]."""
    steps = sweep.begin()
    for block in sweep.blocks():
        v, m = sweep.v(block), sweep.m(block)
        steps += sweep.expand(block, x)
        product = m.reshape(16, -1, sweep.outer)
        steps.append(partial(np.matmul, v.reshape(16, -1, sweep.inner), u.reshape(16, *u.shape[2:]), out=product))
        steps += sweep.collapse(block, y)
    return steps


def _expand(steps: Steps, d: list[Array], v: list[Array]) -> None:
    """v = (d0 − d2, d1 + d2, d2 − d1, d1 − d3)."""
    steps.append(partial(np.subtract, d[0], d[2], out=v[0]))
    steps.append(partial(np.add, d[1], d[2], out=v[1]))
    steps.append(partial(np.subtract, d[2], d[1], out=v[2]))
    steps.append(partial(np.subtract, d[1], d[3], out=v[3]))


def _collapse(steps: Steps, m: list[Array], y: list[Array]) -> None:
    """y = (m0 + m1 + m2, m1 − m2 − m3), over m0 and m1; outputs may be fewer than tiles in both directions."""
    first, second = (tuple(slice(0, extent) for extent in part.shape) for part in y)
    steps.append(partial(np.add, m[0], m[1], out=m[0]))
    steps.append(partial(np.add, m[0][first], m[2][first], out=y[0]))
    steps.append(partial(np.subtract, m[1], m[2], out=m[1]))
    steps.append(partial(np.subtract, m[1][second], m[3][second], out=y[1]))


def _unfold(u0: Array, u1: Array, u2: Array, u3: Array) -> None:
    """(w0, w1, –, w2) becomes (w0, (w0 + w1 + w2)/2, (w0 − w1 + w2)/2, w2)."""
    np.add(u0, u3, out=u2)
    np.subtract(u2, u1, out=u2)
    np.multiply(u2, u0.dtype.type(0.5), out=u2)
    np.add(u1, u2, out=u1)


def _fold(steps: Steps, d0: Array, d1: Array, d2: Array, d3: Array) -> None:
    """(du0, du1, du2, du3) becomes (dw0, –, dw1, dw2) = (du0 + s, –, s − du2, du3 + s) with s = (du1 + du2)/2."""
    half = d0.dtype.type(0.5)
    steps.append(partial(np.add, d1, d2, out=d1))
    steps.append(partial(np.multiply, d1, half, out=d1))
    steps.append(partial(np.subtract, d1, d2, out=d2))
    steps.append(partial(np.add, d0, d1, out=d0))
    steps.append(partial(np.add, d3, d1, out=d3))
