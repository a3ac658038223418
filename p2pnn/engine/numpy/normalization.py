"""BatchNormalization: y = (x − mean) / √(variance + ε) · scale + bias, per channel.

In training mean and (population) variance are those of the micro-batch; they go into `Tensors.statistics`, and the engine
folds them into the running ones at the step's end. Else the running ones are used. All sums over rows are products with a
vector of ones (`channels.Columns`), block by block so that a block is read from memory once.

Gradient, with x̂ = (x − mean)/σ and M rows: dbias = Σ dy, dscale = Σ dy·x̂,
dx = scale/σ · (dy − dbias/M − x̂ · dscale/M), here written as one affine map of dy and x per channel.
Source: Ioffe and Szegedy 2015, §3.
"""

from __future__ import annotations

import numpy as np

from p2pnn.engine.numpy.channels import Columns
from p2pnn.engine.numpy.kernel import Call, Kernel, Site, Spec
from p2pnn.engine.numpy.layout import Array
from p2pnn.model.graph import elements


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
        self._block = site.scratch((self._columns.block, *wide))
        self._sum, self._dscale, self._dbias = (site.scratch((channels,)) for _ in range(3))
        moved = () if self._last else (x.shape[0], *x.shape[2:], channels)
        self._moved = [site.scratch(moved) for _ in range(0 if self._last else 3)]
        if site.training:
            self.stash = (Spec((2, channels), site.dtype),)
        if any(site.wants):
            self.keeps = (0, 1)

    def forward(self, call: Call) -> None:
        x = self._load(call.inputs[0], 0)
        if self.site.training:
            mean, inverse = call.stash[0]
            variance = self._statistics(x, mean)
            np.divide(1, np.sqrt(variance + self._epsilon), out=inverse)
            self.site.tensors.statistics.setdefault(self.site.index, []).append(np.stack([mean, variance]))
        else:
            mean, inverse = call.inputs[3], 1 / np.sqrt(call.inputs[4] + self._epsilon)
        a = call.inputs[1] * inverse
        self._columns.repeat(a, self._a.array)
        self._columns.repeat(call.inputs[2] - mean * a, self._b.array)
        y = call.y if self._last else self._moved[1].array
        for xb, yb in zip(self._blocks(x), self._blocks(y), strict=True):
            np.multiply(xb, self._a.array, out=yb)
            np.add(yb, self._b.array, out=yb)
        if not self._last:
            np.copyto(np.moveaxis(call.y, 1, -1), y)

    def backward(self, call: Call) -> None:
        x, dy = self._load(call.inputs[0], 0), self._load(call.dy, 1)
        wants, (mean, inverse) = self.site.wants, call.stash[0]
        columns = self._columns
        dbias, dscale = self._dbias.array, self._dscale.array
        columns.sums(dy, dbias)
        columns.repeat(mean, self._a.array)
        columns.begin()
        for xb, db in zip(self._blocks(x), self._blocks(dy), strict=True):
            part = self._block.array[: len(xb)]
            np.subtract(xb, self._a.array, out=part)
            np.multiply(part, db, out=part)
            columns.add(part)
        columns.end(dscale)
        np.multiply(dscale, inverse, out=dscale)
        if wants[1]:
            np.copyto(call.dx[1], dscale)
        if wants[2]:
            np.copyto(call.dx[2], dbias)
        if wants[0]:
            self._input_gradient(call, x, dy, mean, inverse)

    def _input_gradient(self, call: Call, x: Array, dy: Array, mean: Array, inverse: Array) -> None:
        """dx = a·dy + b·x + c, with a = scale/σ, b = −a·dscale/(M·σ), c = −a·dbias/M − b·mean."""
        columns = self._columns
        a = call.inputs[1] * inverse
        b = -a * self._dscale.array * inverse / columns.rows
        columns.repeat(a, self._a.array)
        columns.repeat(b, self._b.array)
        columns.repeat(-a * self._dbias.array / columns.rows - b * mean, self._c.array)
        dx = call.dx[0] if self._last else self._moved[2].array
        for xb, db, out in zip(self._blocks(x), self._blocks(dy), self._blocks(dx), strict=True):
            part = self._block.array[: len(xb)]
            np.multiply(xb, self._b.array, out=part)
            np.add(part, self._c.array, out=part)
            np.multiply(db, self._a.array, out=out)
            np.add(out, part, out=out)
        if not self._last:
            np.copyto(np.moveaxis(call.dx[0], 1, -1), dx)

    def _statistics(self, x: Array, mean: Array) -> Array:
        """Write the mean over rows; return the population variance, from centered values (E x² − mean² loses digits)."""
        columns, variance = self._columns, self._sum.array
        columns.sums(x, mean)
        np.divide(mean, columns.rows, out=mean)
        columns.repeat(mean, self._a.array)
        columns.begin()
        for xb in self._blocks(x):
            part = self._block.array[: len(xb)]
            np.subtract(xb, self._a.array, out=part)
            np.multiply(part, part, out=part)
            columns.add(part)
        columns.end(variance)
        np.divide(variance, columns.rows, out=variance)
        return variance

    def _blocks(self, x: Array) -> list[Array]:
        wide, step = self._columns.wide(x), self._columns.block
        return [wide[start : start + step] for start in range(0, len(wide), step)]

    def _load(self, array: Array, index: int) -> Array:
        """The array with its channels last."""
        if self._last:
            return array
        moved = self._moved[index].array
        np.copyto(moved, np.moveaxis(array, 1, -1))
        return moved
