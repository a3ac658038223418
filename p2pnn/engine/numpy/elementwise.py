"""Elementwise functions of one value (Erf and Gelu are in `erf`)."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from p2pnn.engine.base import Context
from p2pnn.engine.numpy.kernel import Call, Kernel, Site, Spec
from p2pnn.engine.numpy.layout import Array

_BOOL = np.dtype(np.bool_)
_FLOAT32 = np.dtype(np.float32)


class Relu(Kernel):
    """y = max(x, 0); dx = dy where y > 0."""

    keeps_output = True
    in_place = in_place_backward = True

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        if site.wants[0]:
            self._mask = site.scratch(site.output.shape, _BOOL)

    def forward(self, call: Call) -> None:
        np.maximum(call.inputs[0], 0, out=call.y)

    def backward(self, call: Call) -> None:
        mask = self._mask.array
        np.greater(call.y, 0, out=mask)
        np.multiply(call.dy, mask, out=call.dx[0])


class Sigmoid(Kernel):
    """y = 1 / (1 + e^−x), computed as (1 + tanh(x/2)) / 2, which cannot overflow; dx = dy · y · (1 − y)."""

    keeps_output = True
    in_place = True

    def forward(self, call: Call) -> None:
        y = call.y
        np.multiply(call.inputs[0], 0.5, out=y)
        np.tanh(y, out=y)
        np.add(y, 1, out=y)
        np.multiply(y, 0.5, out=y)

    def backward(self, call: Call) -> None:
        dx = call.dx[0]
        np.subtract(1, call.y, out=dx)
        np.multiply(dx, call.y, out=dx)
        np.multiply(dx, call.dy, out=dx)


class Tanh(Kernel):
    """y = tanh x; dx = dy · (1 − y²)."""

    keeps_output = True
    in_place = True

    def forward(self, call: Call) -> None:
        np.tanh(call.inputs[0], out=call.y)

    def backward(self, call: Call) -> None:
        dx = call.dx[0]
        np.multiply(call.y, call.y, out=dx)
        np.subtract(1, dx, out=dx)
        np.multiply(dx, call.dy, out=dx)


class Exp(Kernel):
    """y = e^x; dx = dy · y."""

    keeps_output = True
    in_place = in_place_backward = True

    def forward(self, call: Call) -> None:
        np.exp(call.inputs[0], out=call.y)

    def backward(self, call: Call) -> None:
        np.multiply(call.dy, call.y, out=call.dx[0])


class Log(Kernel):
    """y = ln x; dx = dy / x."""

    in_place = in_place_backward = True

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.keeps = (0,) if site.wants[0] else ()

    def forward(self, call: Call) -> None:
        np.log(call.inputs[0], out=call.y)

    def backward(self, call: Call) -> None:
        np.divide(call.dy, call.inputs[0], out=call.dx[0])


class Sqrt(Kernel):
    """y = √x; dx = dy / 2y."""

    keeps_output = True
    in_place = in_place_backward = True

    def forward(self, call: Call) -> None:
        np.sqrt(call.inputs[0], out=call.y)

    def backward(self, call: Call) -> None:
        np.divide(call.dy, call.y, out=call.dx[0])
        np.multiply(call.dx[0], 0.5, out=call.dx[0])


class Neg(Kernel):
    """y = −x; dx = −dy."""

    in_place = in_place_backward = True

    def forward(self, call: Call) -> None:
        np.negative(call.inputs[0], out=call.y)

    def backward(self, call: Call) -> None:
        np.negative(call.dy, out=call.dx[0])


class Identity(Kernel):
    """y = x; dx = dy."""

    in_place = in_place_backward = True

    def forward(self, call: Call) -> None:
        np.copyto(call.y, call.inputs[0])

    def backward(self, call: Call) -> None:
        np.copyto(call.dx[0], call.dy)


class Clip(Kernel):
    """y = x, but at least `min` and at most `max`; dx = dy where min ≤ x ≤ max, as PyTorch's clamp has it, else 0."""

    in_place = in_place_backward = True

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._least, self._most = site.op.number("min"), site.op.number("max")
        if site.wants[0]:
            self.stash = (Spec(site.output.shape, _BOOL),)
            self._above = site.scratch(site.output.shape, _BOOL)

    def forward(self, call: Call) -> None:
        x = call.inputs[0]
        if call.stash:
            np.less_equal(self._least, x, out=call.stash[0])
            np.less_equal(x, self._most, out=self._above.array)
            np.logical_and(call.stash[0], self._above.array, out=call.stash[0])
        np.maximum(x, self._least, out=call.y)
        np.minimum(call.y, self._most, out=call.y)

    def backward(self, call: Call) -> None:
        np.multiply(call.dy, call.stash[0], out=call.dx[0])


class Dropout(Kernel):
    """In training y = x · mask / (1 − ratio), where a mask entry is 0 with probability `ratio`; else y = x.

    The mask comes from a counter-based generator keyed by (seed, step, micro-batch, op): whoever runs the op draws the
    same mask, whatever ran before. It does not depend on the floating dtype.
    """

    in_place = in_place_backward = True

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._ratio = site.op.number("ratio")
        self._active = site.training and self._ratio > 0
        if self._active:
            self._dice = Dice(site.index)
            self._uniform = site.scratch(site.output.shape, _FLOAT32)
            self.stash = (Spec(site.output.shape, _BOOL),)

    def forward(self, call: Call) -> None:
        if self._active:
            uniform = self._uniform.array
            self._dice.keyed(call.context).random(dtype=np.float32, out=uniform)
            np.greater_equal(uniform, np.float32(self._ratio), out=call.stash[0])
        self._scale(call.inputs[0], call, call.y)

    def backward(self, call: Call) -> None:
        self._scale(call.dy, call, call.dx[0])

    def _scale(self, x: Array, call: Call, out: Array) -> None:
        if self._active:
            np.multiply(x, call.stash[0], out=out)
            np.multiply(out, 1 / (1 - self._ratio), out=out)
        else:
            np.copyto(out, x)


class Dice:
    """The generator of one op: Philox, keyed by SHA-256 anew for each micro-batch.

    One generator is rewound instead of a new one made each time, which would cost 13 µs instead of 3.
    """

    def __init__(self, index: int) -> None:
        self._index = index
        self._philox = np.random.Philox(key=0)
        self._generator = np.random.Generator(self._philox)
        self._start: Any = self._philox.state  # counter 0 and nothing drawn yet; its arrays are copies

    def keyed(self, context: Context) -> np.random.Generator:
        """The generator, at the start of what this pass draws."""
        text = f"dropout {context.seed} {context.step} {context.micro_batch} {self._index}"
        self._start["state"]["key"] = np.frombuffer(hashlib.sha256(text.encode()).digest(), "<u8", 2)
        self._philox.state = self._start
        return self._generator
