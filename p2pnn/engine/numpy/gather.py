"""Gather: rows of a table chosen by indices, as an embedding does; and the gradient of the table.

The gradient adds up every chosen row's gradient. The order of that sum must not depend on anything but the data and shapes:

* a small table: blocks of indices become one-hot matrices, and a GEMM adds up (65 rows × 128 columns, 768 indices: 0.2 ms,
  where `np.add.at` takes 5);
* a large one: indices are sorted, stably, and neighbours summed.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from p2pnn.engine.numpy.kernel import BLOCK_BYTES, Call, Kernel, Site, Vector
from p2pnn.engine.numpy.layout import Array, onnx_view
from p2pnn.errors import DataError
from p2pnn.model.graph import elements

ONE_HOT_ROWS_MAX: Final = 512
"""Rows of a table up to which one-hot products are faster than sorting."""


class Gather(Kernel):
    """y[…, :] = table[indices[…], :]; dtable[v] = Σ dy where the index is v."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        table, indices, y = site.inputs[0], site.inputs[1], site.output
        self._indices = Vector(site, indices)
        self._rows, self._width = table.shape[0], elements(table.shape[1:])
        self._count = elements(indices.shape)
        self._plain = None if y.order == "plain" else site.scratch(y.onnx_shape)
        if site.wants[0]:
            self.keeps = (1,)
            self._one_hot = self._rows <= ONE_HOT_ROWS_MAX
            self._block = max(1, min(self._count, BLOCK_BYTES // (self._rows * site.dtype.itemsize)))
            if self._one_hot:
                self._hot = site.scratch((self._block, self._rows))
                self._part = site.scratch((self._rows, self._width))
            else:
                self._sorted = site.scratch((self._count, self._width))
                self._sums = site.scratch((min(self._count, self._rows), self._width))

    def forward(self, call: Call) -> None:
        table, indices = call.inputs[0].reshape(self._rows, self._width), self._indices.of(call.inputs[1])
        y = call.y if self._plain is None else self._plain.array
        self._check(indices)
        np.take(table, indices, axis=0, out=y.reshape(self._count, self._width), mode="clip")
        if self._plain is not None:
            np.copyto(onnx_view(call.y, self.site.output.order), y)

    def backward(self, call: Call) -> None:
        dy = call.dy
        if self._plain is not None:
            dy = self._plain.array
            np.copyto(dy, onnx_view(call.dy, self.site.output.order))
        dy, indices = dy.reshape(self._count, self._width), self._indices.of(call.inputs[1])
        total = call.dx[0].reshape(self._rows, self._width)
        if self._one_hot:
            self._products(dy, indices, total)
        else:
            self._segments(dy, indices, total)

    def _products(self, dy: Array, indices: Array, total: Array) -> None:
        part = total
        for start in range(0, self._count, self._block):
            chosen = indices[start : start + self._block]
            hot = self._hot.array[: len(chosen)]
            hot.fill(0)
            hot[np.arange(len(chosen)), chosen] = 1
            np.matmul(hot.T, dy[start : start + self._block], out=part)
            if part is not total:
                np.add(total, part, out=total)
            part = self._part.array

    def _segments(self, dy: Array, indices: Array, total: Array) -> None:
        order = np.argsort(indices, kind="stable")
        chosen = indices[order]
        np.take(dy, order, axis=0, out=self._sorted.array, mode="clip")
        starts = np.flatnonzero(np.concatenate(([True], chosen[1:] != chosen[:-1])))
        total.fill(0)
        sums = self._sums.array[: len(starts)]
        np.add.reduceat(self._sorted.array, starts, axis=0, out=sums)
        total[chosen[starts]] = sums

    def _check(self, indices: Array) -> None:
        """Raise DataError for an index that the table does not have, which would be another row's silently."""
        least, most = int(indices.min()), int(indices.max())
        if least < 0 or most >= self._rows:
            operand = self.site.inputs[1]
            raise DataError(
                f"{self.site.op.name} was given the index {least if least < 0 else most} in {operand.name}, but its table "
                f"{self.site.inputs[0].name} has rows 0 to {self._rows - 1}; use data that fits, or a larger table"
            )
