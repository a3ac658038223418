"""Attention: softmax(scale · Q·Kᵀ) · V per row and head, over values [rows, positions, heads · size].

A head is a slice of the last axis: BLAS reads it in place, as a matrix whose lines lie apart. Scores are made for some heads
and rows at a time, so that they stay in a core's cache, and are not kept: backward makes them again from Q, K and one number
per query, the logarithm of its sum. So memory grows with the positions, not with their square. Where the attention is
causal, a block of queries meets only the keys up to its last one, which halves the work on long sequences.

Scores lie as [keys, queries]: then a query's greatest score is found along whole lines of memory, three times as fast as
within them, and its sum is a product with a vector of ones.

With P the probabilities and dP = dO·Vᵀ: dV = Pᵀ·dO, dS = P · (dP − Σ dP·P), dQ = scale · dS·K, dK = scale · dSᵀ·Q.
Several query heads may share a key head (grouped-query attention); their gradients for it add up.
Source: Vaswani et al. 2017, §3.2; making the scores again: Dao et al. 2022, §3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from p2pnn.engine.numpy.kernel import BLOCK_BYTES, Call, Kernel, Site, Spec
from p2pnn.engine.numpy.layout import Array

QUERIES: Final = 128
"""Queries in a block of a causal attention: enough for a GEMM, few enough to leave out most masked keys."""


@dataclass(frozen=True, slots=True)
class _Block:
    """Some rows, key heads and queries; the keys are those up to `keys`."""

    rows: slice
    heads: slice
    queries: slice
    keys: int

    def of_queries(self, view: Array) -> Array:
        return view[self.rows, self.heads, :, self.queries]

    def of_keys(self, view: Array) -> Array:
        return view[self.rows, self.heads, :, : self.keys]


class Attention(Kernel):
    """inputs: Q, K, V. stash: log Σ e^score per (row, key head, head of its group, query)."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        op, (q, k, v) = site.op, (operand.shape for operand in site.inputs)
        heads, self._shared = op.integer("q_num_heads"), op.integer("kv_num_heads")
        self._group = heads // self._shared
        self._causal, self._scale = bool(op.integer("is_causal")), op.number("scale")
        self._rows, self._n, self._m = q[0], q[1], k[1]
        self._queries = min(self._n, QUERIES) if self._causal else self._n
        self._size = q[2] // heads
        head_bytes = self._group * self._queries * self._m * site.dtype.itemsize
        fitting = max(1, BLOCK_BYTES // (2 * head_bytes))
        self._heads_at_once = min(self._shared, fitting)
        self._rows_at_once = max(1, min(self._rows, fitting // self._shared))
        most = self._rows_at_once * self._heads_at_once * self._group
        self._scores = site.scratch((most * self._queries * self._m,))
        self._scaled = site.scratch((most * self._queries * self._size,))
        self._line = site.scratch((2, most * self._queries))
        self._ones = site.workspace.own((self._m,), site.dtype)
        self._ones.fill(1)
        self._mask = site.workspace.own((self._queries, self._queries) if self._causal else (0, 0), site.dtype)
        self._mask[np.tril_indices(len(self._mask), -1)] = -np.inf
        if site.training:
            self.stash = (Spec((self._rows, self._shared, self._group, self._n), site.dtype),)
        if any(site.wants):
            self.keeps = (0, 1, 2)
            self._gradient = site.scratch((most * self._queries * self._m,))
            self._part = site.scratch((most * self._m * max(self._size, v[2] // self._shared),))

    def forward(self, call: Call) -> None:
        q, k, v = self._operands(call.inputs)
        y = self._view(call.y, self._group)
        for block in self._blocks():
            scores, _ = self._score(block, block.of_queries(q), block.of_keys(k))
            most, total = (line[: scores[..., 0, :].size].reshape(scores[..., 0, :].shape) for line in self._line.array)
            np.maximum.reduce(scores, axis=-2, out=most)
            np.subtract(scores, most[..., None, :], out=scores)
            np.exp(scores, out=scores)
            np.matmul(self._ones[: block.keys], scores, out=total)
            out = block.of_queries(y)
            np.matmul(scores.swapaxes(-1, -2), block.of_keys(v), out=out)
            np.divide(out, total[..., None], out=out)
            if call.stash:
                np.log(total, out=total)
                np.add(total, most, out=call.stash[0][block.rows, block.heads, :, block.queries])

    def backward(self, call: Call) -> None:
        wants = self.site.wants
        q, k, v = self._operands(call.inputs)
        dy = self._view(call.dy, self._group)
        dq = self._view(call.dx[0], self._group) if wants[0] else None
        dk, dv = (self._view(call.dx[i]) if wants[i] else None for i in (1, 2))
        for total in (dk, dv):
            if total is not None and not self._direct:
                total.fill(0)
        for block in self._blocks():
            keys, db = block.of_keys(k), block.of_queries(dy)
            p, scaled = self._score(block, block.of_queries(q), keys)
            np.subtract(p, call.stash[0][block.rows, block.heads, :, None, block.queries], out=p)
            np.exp(p, out=p)
            if dv is not None:
                self._add(p, db, block.of_keys(dv))
            if dq is None and dk is None:
                continue
            ds = self._gradient.head(p.shape)
            np.matmul(block.of_keys(v), db.swapaxes(-1, -2), out=ds)
            np.multiply(ds, p, out=ds)
            total = self._line.array[0, : p[..., 0, :].size].reshape(p[..., 0, :].shape)
            np.matmul(self._ones[: block.keys], ds, out=total)
            np.multiply(p, total[..., None, :], out=p)
            np.subtract(ds, p, out=ds)
            if dk is not None:
                self._add(ds, scaled, block.of_keys(dk))
            if dq is not None:
                out = block.of_queries(dq)
                np.matmul(ds.swapaxes(-1, -2), keys, out=out)
                np.multiply(out, self._scale, out=out)

    def _score(self, block: _Block, q: Array, k: Array) -> tuple[Array, Array]:
        """(scale · K·Qᵀ, −∞ where a key is masked: [rows, heads, group, keys, queries]; scale · Q)."""
        scaled = self._scaled.head(q.shape)
        np.multiply(q, self._scale, out=scaled)
        scores = self._scores.head((*q.shape[:3], block.keys, q.shape[3]))
        np.matmul(k, scaled.swapaxes(-1, -2), out=scores)
        masked = block.keys - block.queries.start
        if self._causal and masked > 0:
            diagonal = scores[..., block.queries.start :, :]
            np.add(diagonal, self._mask[:masked, : q.shape[3]], out=diagonal)
        return scores, scaled

    @property
    def _direct(self) -> bool:
        """Whether a key meets all its queries in one block and one head."""
        return self._group == 1 and self._queries == self._n and (not self._causal or self._m <= self._n)

    def _add(self, left: Array, right: Array, total: Array) -> None:
        """total [rows, heads, 1, keys, …] += Σ over the group of left·right."""
        if self._direct:
            np.matmul(left, right, out=total)
            return
        part = self._part.head((*left.shape[:-1], right.shape[-1]))
        np.matmul(left, right, out=part)
        for member in range(part.shape[2]):
            np.add(total[:, :, 0], part[:, :, member], out=total[:, :, 0])

    def _operands(self, inputs: Sequence[Array]) -> tuple[Array, Array, Array]:
        return self._view(inputs[0], self._group), self._view(inputs[1]), self._view(inputs[2])

    def _view(self, array: Array, group: int = 1) -> Array:
        """[rows, positions, heads · size] as [rows, key heads, heads of a group, positions, size]."""
        rows, positions, width = array.shape
        heads = self._shared * group
        return array.reshape(rows, positions, self._shared, group, width // heads).transpose(0, 2, 3, 1, 4)

    def _blocks(self) -> Iterator[_Block]:
        for row in range(0, self._rows, self._rows_at_once):
            for head in range(0, self._shared, self._heads_at_once):
                for start in range(0, self._n, self._queries):
                    end = min(start + self._queries, self._n)
                    keys = min(self._m, end) if self._causal else self._m
                    rows, heads = slice(row, row + self._rows_at_once), slice(head, head + self._heads_at_once)
                    yield _Block(rows, heads, slice(start, end), keys)
