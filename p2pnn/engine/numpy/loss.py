"""Softmax and the losses.

A loss is the mean over the valid rows of a micro-batch; sums over rows are made in float64. Rows behind `context.rows` are
padding and count nowhere; training has none.
"""

from __future__ import annotations

import numpy as np

from p2pnn.engine.numpy.kernel import BLOCK_BYTES, Call, Kernel, Site, Spec, Vector
from p2pnn.engine.numpy.layout import Array, engine_axis
from p2pnn.errors import DataError
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
        self._axis = engine_axis(site.op.integer("axis"), site.output.order)
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
    """−mean over positions of log softmax(scores)[label]; dscores = (softmax(scores) − one-hot(label)) · dy / positions.

    A position is a row, or a place in a row's sequence or image: every label is one.
    """

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._scores = Scores(site)
        self._probabilities = site.scratch(self._scores.shape)
        self._line = site.scratch((self._scores.shape[0], 1))
        self._step = max(1, BLOCK_BYTES // (4 * self._scores.shape[1]))  # positions that stay in the cache
        if site.wants[0]:
            self.stash = (Spec(self._scores.shape, site.dtype),)
            self.keeps = (1,)

    def forward(self, call: Call) -> None:
        scores, labels, count = self._scores.load(call)
        probabilities = call.stash[0] if call.stash else self._probabilities.array
        call.y[...] = cross_entropy(scores, labels[:count], probabilities, self._line.array) / count

    def backward(self, call: Call) -> None:
        labels, probabilities = self._scores.labels(call), call.stash[0]
        dx = self._scores.target(call.dx[0])
        for start in range(0, len(labels), self._step):
            part = probabilities[start : start + self._step]
            np.multiply(part, part >= PROBABILITY_MIN, out=dx[start : start + self._step])
        dx[self._scores.positions, labels] -= 1
        np.multiply(dx, call.dy / len(labels), out=dx)
        self._scores.store(dx, call.dx[0])


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


def cross_entropy(scores: Array, labels: Array, probabilities: Array, line: Array) -> float:
    """−Σ over positions of log softmax(scores)[label], in float64; fills `probabilities`, and overwrites `line`.

    scores: [positions, classes], of which the first len(labels) count. It is log Σ e^(x − max) − (x[label] − max), which
    stays exact where a probability underflows.
    """
    count = len(labels)
    np.maximum.reduce(scores, axis=1, keepdims=True, out=line)
    of_label = scores[np.arange(count), labels] - line[:count, 0]
    softmax(scores, probabilities, line, 1)
    np.log(line, out=line)
    np.subtract(line[:count, 0], of_label, out=of_label)
    return float(np.add.reduce(of_label, dtype=np.float64))


class Scores:
    """Scores as a matrix [positions, classes], whichever axis holds the classes; labels as a vector beside it.

    Where the classes lie last in memory (also at axis 1 of an image, which lies channels last) that is a view, else a copy.
    """

    def __init__(self, site: Site) -> None:
        self._site, operand = site, site.inputs[0]
        self._labels = Vector(site, site.inputs[1])
        axis = site.op.integer("axis")
        self._axis = axis if operand.order == "plain" else 3
        shape = operand.shape
        self.shape = (elements(shape) // shape[self._axis], shape[self._axis])
        self.positions = np.arange(self.shape[0])
        self._per_row = self.shape[0] // max(shape[0], 1)
        moved = (*shape[: self._axis], *shape[self._axis + 1 :], shape[self._axis])
        self._copy = None if self._axis == len(shape) - 1 else site.scratch(moved)

    def load(self, call: Call) -> tuple[Array, Array, int]:
        """(scores, labels, how many positions belong to valid rows). Raises DataError for a label that is no class."""
        scores, labels = call.inputs[0], self.labels(call)
        self._check(labels)
        if self._copy is not None:
            np.copyto(self._copy.array, np.moveaxis(scores, self._axis, -1))
            scores = self._copy.array
        return scores.reshape(self.shape), labels, call.context.rows * self._per_row

    def labels(self, call: Call) -> Array:
        """The labels in ONNX's order, as a vector."""
        return self._labels.of(call.inputs[1])

    def _check(self, labels: Array) -> None:
        least, most = int(labels.min()), int(labels.max())
        if least < 0 or most >= self.shape[1]:
            raise DataError(
                f"{self._site.op.name} was given the label {least if least < 0 else most} in {self._site.inputs[1].name}, but "
                f"there are {self.shape[1]} classes, 0 to {self.shape[1] - 1}; use labels that fit, or more classes"
            )

    def target(self, dx: Array) -> Array:
        """Where to write the scores' gradient, as such a matrix; `store` brings it to dx."""
        return (dx if self._copy is None else self._copy.array).reshape(self.shape)

    def store(self, made: Array, dx: Array) -> None:
        """Bring what was written into `target` to where it belongs."""
        if self._copy is not None:
            np.copyto(np.moveaxis(dx, self._axis, -1), made.reshape(self._copy.array.shape))
