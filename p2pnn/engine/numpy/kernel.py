"""A kernel: one operator's forward and backward rule, bound to one op and its shapes.

A kernel owns no values. Its arrays are handed to it in a `Call`: `inputs` and `y` in both directions, `dy` and `dx` in
backward, all C-contiguous and already allocated. It overwrites `y`, and every `dx[i]` with `site.wants[i]`. What backward
needs it declares, so that the program keeps only that per micro-batch in flight:

* `keeps`, `keeps_output`: which inputs, and whether y, still hold their values in backward (the others may not);
* `stash`: arrays of its own that forward fills and backward reads, one set per frame;
* scratch from the workspace: lasts for one call and is shared by all kernels of a program, since they run one by one;
* `in_place`: y may lie over inputs[0]; `in_place_backward`: dx[0] may lie over dy.

A program makes each `Call` once, per op, frame and direction, when it first sees the frame's arrays, and from then on runs
the same Call in every step: its arrays stay, but for parameters (of which each step may have other versions) and `context`. So
what a rule would work out anew each time from the other arrays alone (views, the addresses of a `blas.Product`) may be made
once, by `bind_forward` and `bind_backward`; the rule finds what they returned in `call.bound`. Scratch has its arrays by then.
Most kernels bind nothing.

Where `site.fused` names an input, backward updates that parameter: dx[i] ← newest[i] − context.rate · gradient, after every use
of inputs[i], whose memory dx[i] may be. Updates in place have newest[i] there too.

What a kernel computes depends on op, shapes and data alone: never on the segment, the frame or the time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from p2pnn.engine.base import Context, Tensors
from p2pnn.engine.numpy.layout import Array, Operand, onnx_view
from p2pnn.model.graph import Op, Shape

ALIGNMENT_BYTES = 64
"""Of every buffer: a cache line, and the widest vector register."""

BLOCK_BYTES = 1 << 19
"""What a block of work may occupy so that it stays in a core's second-level cache together with its operands.

Measured from 256 KiB to 2 MiB on a core with 2 MiB (AVX-512, one thread): 512 KiB is best for normalization and within 8 %
of the best for every convolution and pool; 256 KiB costs convolutions up to a third, 1 MiB costs normalization 15 %.
"""


@dataclass(frozen=True, slots=True)
class Spec:
    """An array to be allocated."""

    shape: Shape
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        count = self.dtype.itemsize
        for extent in self.shape:
            count *= extent
        return count


class Slot:
    """A scratch array; `array` is there once the program is compiled."""

    __slots__ = ("array", "offset", "spec")

    def __init__(self, spec: Spec, offset: int) -> None:
        self.spec, self.offset = spec, offset
        self.array: Array = np.empty(0, spec.dtype)

    def head(self, shape: Shape) -> Array:
        """The beginning of the array, in another shape."""
        return self.array.reshape(-1)[: math.prod(shape)].reshape(shape)


class Workspace:
    """Scratch that all kernels of a program share, and what single kernels keep for themselves."""

    def __init__(self) -> None:
        self._slots: list[Slot] = []
        self._offset = self._bytes = self._owned_bytes = 0

    def next_kernel(self) -> None:
        """Scratch of different kernels may overlap."""
        self._offset = 0

    def scratch(self, shape: Shape, dtype: np.dtype[Any]) -> Slot:
        """An array whose contents last for one call of the kernel."""
        slot = Slot(Spec(shape, dtype), self._offset)
        self._offset = aligned(self._offset + slot.spec.nbytes)
        self._bytes = max(self._bytes, self._offset)
        self._slots.append(slot)
        return slot

    def own(self, shape: Shape, dtype: np.dtype[Any]) -> Array:
        """A zeroed array that stays the kernel's. It must not carry anything from one micro-batch to another."""
        array: Array = np.zeros(shape, dtype)
        self._owned_bytes += array.nbytes
        return array

    def allocate(self) -> int:
        """Give every slot its array; returns the bytes that were taken, with what kernels own."""
        memory = arena(self._bytes)
        for slot in self._slots:
            slot.array = carve(memory, slot.offset, slot.spec)
        return memory.nbytes + self._owned_bytes


@dataclass(frozen=True, slots=True)
class Site:
    """Where a kernel is bound.

    wants[i]: whether a gradient for inputs[i] is to be computed (all False outside training). fused: positions of
    parameters that backward updates instead of handing out their gradient.
    """

    index: int
    op: Op
    inputs: tuple[Operand, ...]
    outputs: tuple[Operand, ...]
    wants: tuple[bool, ...]
    training: bool
    dtype: np.dtype[Any]
    workspace: Workspace
    tensors: Tensors
    fused: frozenset[int] = frozenset()

    @property
    def output(self) -> Operand:
        """The first output: nearly all kinds have only one."""
        return self.outputs[0]

    def scratch(self, shape: Shape, dtype: np.dtype[Any] | None = None) -> Slot:
        """Scratch of the engine's floating dtype unless said."""
        return self.workspace.scratch(shape, dtype or self.dtype)


@dataclass(slots=True)
class Call:
    """The arrays of one op's passes in one direction; in forward those from dys on are empty.

    ys, dys: one per output (dy is zeros where nothing that a loss sees depends on it); y and dy are the first of them.
    dx[i] is NOTHING where no gradient is wanted. newest: by position, the fused parameters before the update.
    bound: what `Kernel.bind_…` made.
    """

    context: Context
    inputs: Sequence[Array]
    ys: Sequence[Array]
    stash: Sequence[Array]
    dys: Sequence[Array] = ()
    dx: list[Array] = field(default_factory=list)
    newest: dict[int, Array] = field(default_factory=dict)
    bound: Any = None

    @property
    def y(self) -> Array:
        """The first output."""
        return self.ys[0]

    @property
    def dy(self) -> Array:
        """The first output's gradient."""
        return self.dys[0]


class Vector:
    """An operand's elements in ONNX's order, behind each other: a view, or where it lies otherwise a copy in scratch."""

    def __init__(self, site: Site, operand: Operand) -> None:
        self._order = operand.order
        self._copy = None if operand.order == "plain" else site.scratch(operand.onnx_shape, operand.dtype)

    def of(self, array: Array) -> Array:
        """The elements of the operand's array."""
        if self._copy is not None:
            np.copyto(self._copy.array, onnx_view(array, self._order))
            array = self._copy.array
        return array.reshape(-1)


NOTHING: Array = np.empty(0)


class Kernel:
    """Base of all kernels: see the module's docstring."""

    keeps: tuple[int, ...] = ()
    keeps_output = False
    in_place = False
    in_place_backward = False
    stash: tuple[Spec, ...] = ()

    def __init__(self, site: Site) -> None:
        self.site = site

    def bind_forward(self, call: Call) -> Any:
        """What `forward` wants to find in `call.bound`: made once, over arrays that stay where they are."""
        return None

    def bind_backward(self, call: Call) -> Any:
        """The same for `backward`."""
        return None

    def forward(self, call: Call) -> None:
        """Write y."""
        raise NotImplementedError

    def backward(self, call: Call) -> None:
        """Write every dx[i] that is wanted. Kernels without gradients have no such rule."""
        raise NotImplementedError


def aligned(offset: int) -> int:
    """The next multiple of the alignment."""
    return -(-offset // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def arena(nbytes: int) -> Array:
    """Zeroed bytes that begin at an aligned address."""
    memory: Array = np.zeros(nbytes + ALIGNMENT_BYTES if nbytes else 0, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT_BYTES
    return memory[start : start + nbytes]


def carve(memory: Array, offset: int, spec: Spec) -> Array:
    """The array that lies at this offset of an arena."""
    return memory[offset : offset + spec.nbytes].view(spec.dtype).reshape(spec.shape)


def blocks(images: int, rows: int, row_bytes: int) -> tuple[int, int]:
    """How many images, and how many output rows of one image, make up a block of at most BLOCK_BYTES.

    Whole images where one fits (then rows is unchanged), else rows of a single image.
    """
    image_bytes = max(rows * row_bytes, 1)
    if image_bytes <= BLOCK_BYTES:
        return max(1, min(images, BLOCK_BYTES // image_bytes)), rows
    return 1, max(1, BLOCK_BYTES // max(row_bytes, 1))
