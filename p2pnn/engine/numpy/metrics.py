"""Metrics: float64[2] = (sum, count) over the valid rows' positions of a micro-batch. They have no gradients."""

from __future__ import annotations

import numpy as np

from p2pnn.engine.numpy.kernel import BLOCK_BYTES, Call, Kernel, Site
from p2pnn.engine.numpy.layout import Array
from p2pnn.engine.numpy.loss import Scores, cross_entropy


class _Classification(Kernel):
    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._scores = Scores(site)

    def _load(self, call: Call) -> tuple[Array, Array]:
        """The valid rows' scores [positions, classes] and labels [positions]."""
        scores, labels, count = self._scores.load(call)
        return scores[:count], labels[:count]


class Accuracy(_Classification):
    """Positions whose largest score (the first of equals) is the label's."""

    def forward(self, call: Call) -> None:
        scores, labels = self._load(call)
        call.y[0] = np.count_nonzero(np.argmax(scores, axis=1) == labels)
        call.y[1] = len(labels)


class TopKAccuracy(_Classification):
    """Positions in which fewer than k scores come before the label's: larger ones, and equal ones of smaller index."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._step = max(1, BLOCK_BYTES // (8 * self._scores.shape[1]))  # positions whose comparisons stay in the cache

    def forward(self, call: Call) -> None:
        k, (scores, labels) = self.site.op.integer("k"), self._load(call)
        found, classes = 0, np.arange(scores.shape[1])
        for start in range(0, len(labels), self._step):
            part, label = scores[start : start + self._step], labels[start : start + self._step, None]
            of_label = np.take_along_axis(part, label, axis=1)
            before = np.count_nonzero((part > of_label) | ((part == of_label) & (classes < label)), axis=1)
            # A score that is not a number comes before nothing; a row of them must not count as right.
            found += int(np.count_nonzero((before < k) & np.isfinite(of_label[:, 0])))
        call.y[...] = found, len(labels)


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


class TokenLoss(_Classification):
    """Σ over positions of −log softmax(scores)[label]; e to its mean is the perplexity."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        positions, classes = self._scores.shape
        self._probabilities = site.scratch((positions, classes))
        self._line = site.scratch((positions, 1))

    def forward(self, call: Call) -> None:
        scores, labels = self._load(call)
        count = len(labels)
        call.y[0] = cross_entropy(scores, labels, self._probabilities.array[:count], self._line.array[:count])
        call.y[1] = count
