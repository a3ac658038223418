"""Metrics: float64[2] = (sum, count) over the valid rows of a micro-batch. They have no gradients."""

from __future__ import annotations

import numpy as np

from p2pnn.engine.numpy.kernel import Call, Kernel, Site
from p2pnn.engine.numpy.loss import cross_entropy


class Accuracy(Kernel):
    """Rows whose largest score (the first of equals) is the label's."""

    def forward(self, call: Call) -> None:
        rows = call.context.rows
        call.y[0] = np.count_nonzero(np.argmax(call.inputs[0][:rows], axis=1) == call.inputs[1][:rows])
        call.y[1] = rows


class TopKAccuracy(Kernel):
    """Rows in which fewer than k scores come before the label's: larger ones, and equal ones of smaller index."""

    def forward(self, call: Call) -> None:
        rows, k = call.context.rows, self.site.op.integer("k")
        scores, labels = call.inputs[0][:rows], call.inputs[1][:rows]
        of_label = scores[np.arange(rows), labels][:, None]
        earlier = np.arange(scores.shape[1]) < labels[:, None]
        before = np.count_nonzero((scores > of_label) | ((scores == of_label) & earlier), axis=1)
        # A score that is not a number comes before nothing; a row of them must not count as right.
        call.y[0] = np.count_nonzero((before < k) & np.isfinite(of_label[:, 0]))
        call.y[1] = rows


class _Error(Kernel):
    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._difference = site.scratch(site.inputs[0].shape)

    def forward(self, call: Call) -> None:
        rows, difference = call.context.rows, self._difference.array
        np.subtract(call.inputs[0], call.inputs[1], out=difference)
        if self._squared:
            np.multiply(difference, difference, out=difference)
        else:
            np.absolute(difference, out=difference)
        call.y[0] = np.add.reduce(difference[:rows], axis=None, dtype=np.float64)
        call.y[1] = difference[:rows].size

    _squared = False


class AbsoluteError(_Error):
    """Σ |prediction − target|, and the number of elements."""


class SquaredError(_Error):
    """Σ (prediction − target)², and the number of elements."""

    _squared = True


class TokenLoss(Kernel):
    """Σ over rows of −log softmax(scores)[label]; e to its mean is the perplexity."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        rows, classes = site.inputs[0].shape
        self._probabilities = site.scratch((rows, classes))
        self._line = site.scratch((rows, 1))
        self._rows = np.arange(rows)

    def forward(self, call: Call) -> None:
        scores, labels = call.inputs
        rows = self._rows[: call.context.rows]
        call.y[0] = cross_entropy(scores, labels, self._probabilities.array, self._line.array, rows)
        call.y[1] = len(rows)
