"""BatchNormalization: y = (x − mean) / √(variance + ε) · scale + bias, per channel.

In training mean and (population) variance are those of the micro-batch; they go into `Tensors.statistics`, and the engine
folds them into the running ones at the step's end. Else the running ones are used. All sums over rows are products with a
vector of ones (`channels.Columns`).

What costs is memory: x is read twice in forward, x and dy twice in backward, block by block. Squares are summed around each
block's own mean m, while the block is in cache, and then moved to the common one: Σ (x − mean)² = Σ over blocks of
Σ (x − m)² + rows · (m − mean)² (Chan, Golub and LeVeque 1983, §2; E x² − mean² would lose digits).

The gradient of the scale is a difference too, (Σ dy·x − mean · Σ dy)/σ: no worse than that of x, which has b·x − b·mean.
Gradient, with x̂ = (x − mean)/σ and M rows: dbias = Σ dy, dscale = Σ dy·x̂,
dx = scale/σ · (dy − dbias/M − x̂ · dscale/M), here written as one affine map of dy and x per channel.
Source: Ioffe and Szegedy 2015, §3.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from p2pnn.engine.numpy.channels import Columns
from p2pnn.engine.numpy.kernel import BLOCK_BYTES, Call, Kernel, Site, Spec
from p2pnn.engine.numpy.layout import Array
from p2pnn.model.graph import elements


@dataclass(frozen=True, slots=True)
class _Rows:
    """One block: of x, of y or dy, of what is written; scratch of that size; and where its sums go."""

    x: Array
    y: Array
    out: Array
    part: Array
    ones: Array
    sums: Array
    squares: Array


class BatchNormalization(Kernel):
    """inputs: x, scale, bias, running mean, running variance. stash: [mean, 1/σ] of the micro-batch."""

    in_place = in_place_backward = True

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        x = site.inputs[0]
        self._epsilon = site.op.number("epsilon")
        self._last = len(x.shape) == 2 or x.order == "channels_last"
        channels = x.shape[-1] if self._last else x.shape[1]
        self._columns = Columns(site, elements(x.shape) // channels, channels)
        wide = (self._columns.shape[1],)
        self._a, self._b, self._c = (site.scratch(wide) for _ in range(3))
        count = self._columns.shape[0]
        self._step = max(1, min(count, BLOCK_BYTES // (wide[0] * site.dtype.itemsize)))
        self._block = site.scratch((self._step, *wide))
        starts = range(0, count, self._step)
        self._sums, self._squares = (site.scratch((len(starts), *wide)) for _ in range(2))
        self._lengths = np.array([[min(self._step, count - start)] for start in starts], site.dtype)
        self._ones = site.workspace.own((self._step,), site.dtype)
        self._ones.fill(1)
        self._sum, self._dscale, self._dbias = (site.scratch((channels,)) for _ in range(3))
        moved = () if self._last else (x.shape[0], *x.shape[2:], channels)
        self._moved = [site.scratch(moved) for _ in range(0 if self._last else 3)]
        if site.training:
            self.stash = (Spec((2, channels), site.dtype),)
        if any(site.wants):
            self.keeps = (0, 1)

    def bind_forward(self, call: Call) -> list[_Rows]:
        x, y = (call.inputs[0], call.y) if self._last else (self._moved[0].array, self._moved[1].array)
        return list(self._rows(x, y, y))

    def bind_backward(self, call: Call) -> list[_Rows]:
        wanted = self.site.wants[0]
        if self._last:
            return list(self._rows(call.inputs[0], call.dy, call.dx[0] if wanted else call.dy))
        return list(self._rows(*(slot.array for slot in self._moved)))

    def forward(self, call: Call) -> None:
        self._load(call.inputs[0], 0)
        if self.site.training:
            mean, inverse = call.stash[0]
            variance = self._statistics(call.bound, mean)
            np.divide(1, np.sqrt(variance + self._epsilon), out=inverse)
            self.site.tensors.statistics.setdefault(self.site.index, []).append(np.stack([mean, variance]))
        else:
            mean, inverse = call.inputs[3], 1 / np.sqrt(call.inputs[4] + self._epsilon)
        scale = call.inputs[1] * inverse
        a, b = self._a.array, self._b.array
        self._columns.repeat(scale, a)
        self._columns.repeat(call.inputs[2] - mean * scale, b)
        for rows in call.bound:
            np.multiply(rows.x, a, out=rows.y)
            np.add(rows.y, b, out=rows.y)
        if not self._last:
            np.copyto(np.moveaxis(call.y, 1, -1), self._moved[1].array)

    def backward(self, call: Call) -> None:
        self._load(call.inputs[0], 0)
        self._load(call.dy, 1)
        wants, (mean, inverse) = self.site.wants, call.stash[0]
        dbias, dscale = self._dbias.array, self._dscale.array
        for rows in call.bound:
            np.matmul(rows.ones, rows.y, out=rows.sums)
            np.multiply(rows.x, rows.y, out=rows.part)
            np.matmul(rows.ones, rows.part, out=rows.squares)
        self._total(self._sums.array, dbias)
        self._total(self._squares.array, dscale)
        np.subtract(dscale, mean * dbias, out=dscale)
        np.multiply(dscale, inverse, out=dscale)
        if wants[1]:
            np.copyto(call.dx[1], dscale)
        if wants[2]:
            np.copyto(call.dx[2], dbias)
        if wants[0]:
            self._input_gradient(call, mean, inverse)

    def _input_gradient(self, call: Call, mean: Array, inverse: Array) -> None:
        """dx = a·dy + b·x + c, with a = scale/σ, b = −a·dscale/(M·σ), c = −a·dbias/M − b·mean."""
        columns, (a, b, c) = self._columns, (slot.array for slot in (self._a, self._b, self._c))
        scale = call.inputs[1] * inverse
        slope = -scale * self._dscale.array * inverse / columns.rows
        columns.repeat(scale, a)
        columns.repeat(slope, b)
        columns.repeat(-scale * self._dbias.array / columns.rows - slope * mean, c)
        for rows in call.bound:
            np.multiply(rows.x, b, out=rows.part)
            np.add(rows.part, c, out=rows.part)
            np.multiply(rows.y, a, out=rows.out)
            np.add(rows.out, rows.part, out=rows.out)
        if not self._last:
            np.copyto(np.moveaxis(call.dx[0], 1, -1), self._moved[2].array)

    def _statistics(self, bound: list[_Rows], mean: Array) -> Array:
        """Write the mean over rows; return the population variance."""
        columns, variance, a = self._columns, self._sum.array, self._a.array
        sums, squares = self._sums.array, self._squares.array
        for rows in bound:
            np.matmul(rows.ones, rows.x, out=rows.sums)
            np.multiply(rows.sums, 1 / len(rows.x), out=a)
            np.subtract(rows.x, a, out=rows.part)
            np.multiply(rows.part, rows.part, out=rows.part)
            np.matmul(rows.ones, rows.part, out=rows.squares)
        self._total(sums, mean)
        np.divide(mean, columns.rows, out=mean)
        columns.repeat(mean, a)
        np.divide(sums, self._lengths, out=sums)
        np.subtract(sums, a, out=sums)
        np.multiply(sums, sums, out=sums)
        np.multiply(sums, self._lengths, out=sums)
        np.add(squares, sums, out=squares)
        self._total(squares, variance)
        np.divide(variance, columns.rows, out=variance)
        return variance

    def _total(self, parts: Array, out: Array) -> None:
        """Sum wide rows over blocks, and over what a wide row repeats."""
        np.add.reduce(parts.reshape(-1, self._columns.columns), axis=0, out=out)

    def _rows(self, x: Array, y: Array, out: Array) -> Iterator[_Rows]:
        """The blocks of three arrays, in wide rows."""
        x, y, out = (self._columns.wide(array) for array in (x, y, out))
        for n, start in enumerate(range(0, len(x), self._step)):
            block = slice(start, start + self._step)
            count = len(x[block])
            ones, part = self._ones[:count], self._block.array[:count]
            yield _Rows(x[block], y[block], out[block], part, ones, self._sums.array[n], self._squares.array[n])

    def _load(self, array: Array, index: int) -> None:
        """Copy the array with its channels last, if they are not."""
        if not self._last:
            np.copyto(self._moved[index].array, np.moveaxis(array, 1, -1))
