"""Softmax and the losses.

A loss is the mean over the valid rows of a micro-batch; sums over rows are made in float64. Rows behind `context.rows` are
padding and count nowhere; training has none.
"""

from __future__ import annotations

import numpy as np

from p2pnn.engine.numpy.kernel import Call, Kernel, Site, Spec
from p2pnn.engine.numpy.layout import Array
from p2pnn.model.graph import elements

PROBABILITY_MIN = 1e-20
"""Below it a probability's own gradient counts as 0: e^−90 and the like turn into denormal numbers on their way back, on
which a GEMM is eight times slower (2.8 ms instead of 0.34 for LeNet-5's first layer)."""


class Softmax(Kernel):
    """y = e^x / Σ e^x along `axis`; dx = y · (dy − Σ dy·y)."""

    keeps_output = True
    in_place = True

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        axis = site.op.integer("axis")
        self._axis = {1: 3, 2: 1, 3: 2}[axis] if site.output.order == "channels_last" else axis
        shape = site.output.shape
        self._line = site.scratch((*shape[: self._axis], 1, *shape[self._axis + 1 :]))

    def forward(self, call: Call) -> None:
        softmax(call.inputs[0], call.y, self._line.array, self._axis)

    def backward(self, call: Call) -> None:
        dx, line = call.dx[0], self._line.array
        np.multiply(call.dy, call.y, out=dx)
        np.add.reduce(dx, axis=self._axis, keepdims=True, out=line)
        np.subtract(call.dy, line, out=dx)
        np.multiply(dx, call.y, out=dx)


class SoftmaxCrossEntropyLoss(Kernel):
    """−mean over rows of log softmax(scores)[label]; dscores = (softmax(scores) − one-hot(label)) · dy / rows."""

    keeps = (1,)

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        rows, classes = site.inputs[0].shape
        self._spec = Spec((rows, classes), site.dtype)
        if site.wants[0]:
            self.stash = (self._spec,)
        self._scores = site.scratch((rows, classes))
        self._line = site.scratch((rows, 1))
        self._rows = np.arange(rows)

    def forward(self, call: Call) -> None:
        scores, labels = call.inputs
        rows = call.context.rows
        probabilities = call.stash[0] if call.stash else self._scores.array
        call.y[...] = cross_entropy(scores, labels, probabilities, self._line.array, self._rows[:rows]) / rows

    def backward(self, call: Call) -> None:
        dx, rows = call.dx[0], call.context.rows
        np.multiply(call.stash[0], call.stash[0] >= PROBABILITY_MIN, out=dx)
        dx[self._rows, call.inputs[1]] -= 1
        np.multiply(dx, call.dy / rows, out=dx)


class MeanSquaredError(Kernel):
    """The mean of (prediction − target)² over rows and their elements; dprediction = 2 (prediction − target) · dy / count."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        shape = site.inputs[0].shape
        self._row_elements = elements(shape[1:])
        if site.wants[0]:
            self.stash = (Spec(shape, site.dtype),)
        self._difference = site.scratch(shape)
        self._square = site.scratch(shape)

    def forward(self, call: Call) -> None:
        rows = call.context.rows
        difference = call.stash[0] if call.stash else self._difference.array
        np.subtract(call.inputs[0], call.inputs[1], out=difference)
        square = self._square.array
        np.multiply(difference, difference, out=square)
        call.y[...] = np.add.reduce(square[:rows], axis=None, dtype=np.float64) / (rows * self._row_elements)

    def backward(self, call: Call) -> None:
        dx, rows = call.dx[0], call.context.rows
        np.multiply(call.stash[0], call.dy * (2 / (rows * self._row_elements)), out=dx)


def softmax(x: Array, y: Array, line: Array, axis: int) -> None:
    """y = softmax(x) along an axis. line: scratch of x's shape with 1 at the axis; it ends as Σ e^(x − max). y may be x."""
    np.maximum.reduce(x, axis=axis, keepdims=True, out=line)
    np.subtract(x, line, out=y)
    np.exp(y, out=y)
    np.add.reduce(y, axis=axis, keepdims=True, out=line)
    np.divide(y, line, out=y)


def cross_entropy(scores: Array, labels: Array, probabilities: Array, line: Array, rows: Array) -> float:
    """−Σ over `rows` of log softmax(scores)[label], in float64; fills `probabilities`, and overwrites `line`.

    It is log Σ e^(x − max) − (x[label] − max), which stays exact where a probability underflows.
    """
    np.maximum.reduce(scores, axis=1, keepdims=True, out=line)
    of_label = scores[rows, labels[: len(rows)]] - line[: len(rows), 0]
    softmax(scores, probabilities, line, 1)
    np.log(line, out=line)
    np.subtract(line[: len(rows), 0], of_label, out=of_label)
    return float(np.add.reduce(of_label, dtype=np.float64))
