"""LayerNormalization: y = (x − mean) / √(variance + ε) · scale + bias, per line: a row's, or a position's, last axes.

Lines are worked on block by block, so that a block is read from memory once. Sums along lines and over lines are products
with vectors (GEMV), five times as fast as numpy's sums; scale and bias are repeated into wide rows (see `channels`).

Gradient, with x̂ = (x − mean)/σ, g = dy · scale, and means along each line of N elements: dbias = Σ dy, dscale = Σ dy·x̂,
dx = (g − mean g − x̂ · mean(g·x̂)) / σ. Source: Ba, Kiros and Hinton 2016.
"""

from __future__ import annotations

import numpy as np

from p2pnn.engine.numpy.channels import fold
from p2pnn.engine.numpy.kernel import BLOCK_BYTES, Call, Kernel, Site, Slot, Spec
from p2pnn.engine.numpy.layout import Array, onnx_view
from p2pnn.model.graph import elements


class LayerNormalization(Kernel):
    """inputs: x, scale, [bias]. stash: [mean, 1/σ] of every line."""

    in_place = in_place_backward = True

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        x = site.inputs[0]
        self._epsilon = site.op.number("epsilon")
        self._length = elements(x.onnx_shape[site.op.integer("axis") :])
        self._lines = elements(x.shape) // self._length
        self._fold = fold(self._lines, self._length)
        whole = max(1, BLOCK_BYTES // (2 * self._length * site.dtype.itemsize))
        self._block = min(self._lines, max(self._fold, whole // self._fold * self._fold))
        wide = (self._fold * self._length,)
        self._scale, self._bias = site.scratch(wide), site.scratch(wide)
        self._moments = site.scratch((2, self._lines))
        self._column = site.scratch((2, self._block))
        self._shares, self._ones = site.scratch((self._length,)), site.scratch((self._block,))
        self._part: list[Slot] = []
        if site.training:
            self.stash = (Spec((2, self._lines), site.dtype),)
        if any(site.wants):
            self.keeps = (0, 1)
            self._part = [site.scratch((self._block, self._length)) for _ in range(2)]
            self._sums = site.scratch((3, self._length))
        plain = x.order == "plain"
        self._moved = [site.scratch(x.onnx_shape) for _ in range(0 if plain else 2)]

    def forward(self, call: Call) -> None:
        x, y = self._load(call.inputs[0], 0), self._target(call.y)
        mean, inverse = call.stash[0] if call.stash else self._moments.array
        self._prepare(call)
        shares = self._shares.array
        for lines in self._blocks():
            xb, yb, m, i = x[lines], y[lines], mean[lines], inverse[lines]
            np.matmul(xb, shares, out=m)
            np.subtract(xb, m[:, None], out=yb)
            np.vecdot(yb, yb, out=i)
            np.multiply(i, 1 / self._length, out=i)
            np.add(i, self._epsilon, out=i)
            np.sqrt(i, out=i)
            np.reciprocal(i, out=i)
            np.multiply(yb, i[:, None], out=yb)
            wide = yb.reshape(-1, len(self._scale.array))
            np.multiply(wide, self._scale.array, out=wide)
            if len(call.inputs) > 2:
                np.add(wide, self._bias.array, out=wide)
        self._store(y, call.y)

    def backward(self, call: Call) -> None:
        x, dy, wants = self._load(call.inputs[0], 0), self._load(call.dy, 1), self.site.wants
        mean, inverse = call.stash[0]
        self._prepare(call)
        dscale, dbias, part = self._sums.array
        dscale.fill(0)
        dbias.fill(0)
        dx = self._target(call.dx[0]) if wants[0] else None
        for lines in self._blocks():
            db, i = dy[lines], inverse[lines]
            centered, product = (slot.array[: len(db)] for slot in self._part)
            np.subtract(x[lines], mean[lines][:, None], out=centered)
            np.multiply(centered, db, out=product)
            np.add(dscale, np.matmul(i, product, out=part), out=dscale)
            np.add(dbias, np.matmul(self._ones.array[: len(db)], db, out=part), out=dbias)
            if dx is not None:
                self._input_gradient(call.inputs[1].reshape(-1), db, centered, product, i, dx[lines])
        if wants[1]:
            np.copyto(call.dx[1], dscale.reshape(call.dx[1].shape))
        if len(wants) > 2 and wants[2]:
            np.copyto(call.dx[2], dbias.reshape(call.dx[2].shape))
        if dx is not None:
            self._store(dx, call.dx[0])

    def _input_gradient(
        self, scale: Array, dy: Array, centered: Array, product: Array, inverse: Array, dx: Array
    ) -> None:
        """dx = (g − mean g)/σ − (x − mean) · mean(g·(x − mean))/σ³."""
        of_g, of_product = self._column.array[:, : len(dy)]
        np.matmul(dy, scale, out=of_g)
        np.multiply(of_g, 1 / self._length, out=of_g)
        np.matmul(product, scale, out=of_product)
        np.multiply(of_product, 1 / self._length, out=of_product)
        for _ in range(3):
            np.multiply(of_product, inverse, out=of_product)
        np.multiply(centered, of_product[:, None], out=centered)
        width = len(self._scale.array)
        np.multiply(dy.reshape(-1, width), self._scale.array, out=dx.reshape(-1, width))
        np.subtract(dx, of_g[:, None], out=dx)
        np.multiply(dx, inverse[:, None], out=dx)
        np.subtract(dx, centered, out=dx)

    def _prepare(self, call: Call) -> None:
        """Repeat scale and bias into wide rows, and fill what sums are products with."""
        for slot, vector in zip((self._scale, self._bias), call.inputs[1:], strict=False):
            np.copyto(slot.array.reshape(self._fold, self._length), vector.reshape(-1))
        self._shares.array.fill(1 / self._length)
        self._ones.array.fill(1)

    def _blocks(self) -> list[slice]:
        return [slice(start, start + self._block) for start in range(0, self._lines, self._block)]

    def _load(self, array: Array, index: int) -> Array:
        """The array as lines."""
        if self._moved:
            moved = self._moved[index].array
            np.copyto(moved, onnx_view(array, self.site.inputs[0].order))
            array = moved
        return array.reshape(self._lines, self._length)

    def _target(self, array: Array) -> Array:
        """Where to write lines, which `_store` brings to `array`: over what `_load` gave second, or at once."""
        return (self._moved[1].array if self._moved else array).reshape(self._lines, self._length)

    def _store(self, lines: Array, array: Array) -> None:
        if self._moved:
            order = self.site.inputs[0].order
            np.copyto(onnx_view(array, order), lines.reshape(self.site.inputs[0].onnx_shape))
