"""What a kernel works in: scratch while it runs, arrays of its own for as long as the job runs, and stashes per frame.

The rules follow the numpy engine's kernels, rounded up where an exact figure would need their code: work goes in blocks of
images of at most BLOCK_BYTES, or of one row where a row is larger. A convolution of few channels runs as a product with a
banded matrix (`bands`); the matrix stays. One of 3 × 3 with many runs in tiles (`tiled`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from typing import Final

from p2pnn.model.graph import Op, Shape, elements
from p2pnn.model.verify import METRIC_OPS
from p2pnn.plan.buffers import VIEWS

BLOCK_BYTES: Final = 1 << 19
"""The size of a block that stays in a second-level cache, as the numpy engine takes it."""

WIDE: Final = 1024
"""Columns of a wide row, in which sums over rows are made."""

BANDED_ELEMENTS_MAX: Final = 1 << 18
BANDED_ACROSS_MAX: Final = 512
RUN_NS, ELEMENT_NS, ADDED_RUN_NS, ADDED_NS = 6.0, 0.12, 15.0, 0.35
FLOPS_PER_NS, HALF_OUTER, HALF_INNER, PHASED = 165.0, 6.0, 4.0, 2.0
"""The rates by which the numpy engine chooses a convolution's method."""

TILED_CHANNELS_MIN: Final = 24
TILED_BLOCK_BYTES: Final = 1 << 20
"""What a convolution in tiles of 4 × 4 inputs takes for the tiles of a block."""

QUERIES: Final = 128
ERF_BLOCK: Final = 8192
ONE_HOT_ROWS_MAX: Final = 512
"""The blocks and the choice of attention, of the error function and of tables, as the numpy engine takes them."""

_BROADCASTING: Final = ("Mul", "Add", "Sub", "Div", "Pow", "Where")
_COPYING: Final = (*VIEWS, "MatMul", "GlobalAveragePool")

SLOTS_BYTES: Final = 16 * 64
"""What aligning a kernel's arrays to cache lines can add."""


@dataclass(slots=True)
class Room:
    """Bytes: scratch, shared by the ops of a segment; own, per op and mode; stash, per op and frame."""

    scratch: float = 0.0
    own: float = 0.0
    stash: float = 0.0


@dataclass(frozen=True, slots=True)
class Window:
    """A convolution or pool of `images` images: input height, width, channels; output rows, columns, channels."""

    images: int
    height: int
    width: int
    channels: int
    out_rows: int
    out_columns: int
    outputs: int
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    group: int

    @classmethod
    def of(cls, op: Op, inputs: Sequence[Shape], output: Shape) -> Window:
        """That of a Conv or a pool, from concrete shapes in ONNX's order."""
        (images, channels, height, width), (_, outputs, rows, columns) = inputs[0], output
        convolves = op.kind == "Conv"
        kernel = inputs[1][2:] if convolves else op.integers("kernel_shape")
        dilations = tuple(op.integers("dilations")) if convolves else (1, 1)
        group = op.integer("group") if convolves else 1
        sides = (tuple(kernel), tuple(op.integers("strides")), tuple(op.integers("pads")), dilations)
        return cls(images, height, width, channels, rows, columns, outputs, *sides, group)


def bands(w: Window, wants_input: bool) -> int:
    """How many outputs of a row the engine computes together by a banded matrix; 0 where it takes another method.

    It decides by shapes alone.
    """
    if w.group != 1 or tiled(w) or ({*w.kernel, *w.strides} == {1} and not any(w.pads)):
        return 0
    most = min(w.out_columns, BANDED_ACROSS_MAX)
    ways = [(_banded_ns(w, k, wants_input), k) for k in range(1, most + 1) if w.out_columns % k == 0]
    banded, across = min(ways)
    most = max(across * w.outputs, w.out_rows * w.out_columns // across)
    if band_piece(w, across) * most > BANDED_ELEMENTS_MAX:
        return 0
    window = elements(w.kernel)

    def columns_ns(places: int, inner: int, outer: int) -> float:
        copy = places * (w.kernel[0] * RUN_NS + window * inner * ELEMENT_NS)
        return copy + _gemm_ns(places, window * inner, outer)

    columns = 2 * columns_ns(w.out_rows * w.out_columns, w.channels, w.outputs)
    phases = elements(w.strides)
    backward = columns_ns(w.height * w.width, w.outputs, w.channels) / phases * (PHASED if phases > 1 else 1.0)
    columns += wants_input * backward
    return 0 if columns < banded else across


def band_piece(w: Window, across: int) -> int:
    """Numbers that a tile of so many outputs sees."""
    span = (across - 1) * w.strides[1] + (w.kernel[1] - 1) * w.dilations[1] + 1
    return w.kernel[0] * span * w.channels


def _banded_ns(w: Window, across: int, wants_input: bool) -> float:
    tiles, inner = w.out_rows * w.out_columns // across, band_piece(w, across)
    gather = tiles * (w.kernel[0] * RUN_NS + inner * ELEMENT_NS)
    add = tiles * (w.kernel[0] * ADDED_RUN_NS + inner * ADDED_NS)
    product = _gemm_ns(tiles, inner, across * w.outputs)
    return 2 * (gather + product) + wants_input * (add + product)


def _gemm_ns(rows: int, inner: int, outer: int) -> float:
    return 2 * rows * inner * outer * (1 + HALF_OUTER / outer + HALF_INNER / inner) / FLOPS_PER_NS


def tiled(w: Window) -> bool:
    """Whether the engine convolves in tiles of 4 × 4 inputs and 2 × 2 outputs. It decides by shapes alone, and first."""
    plain = w.group == 1 and set(w.strides) | set(w.dilations) == {1} and w.kernel == (3, 3)
    return plain and max(w.pads) <= 2 and min(w.channels, w.outputs) >= TILED_CHANNELS_MIN


def room(op: Op, inputs: Sequence[Shape], output: Shape, wanted: Sequence[bool], *, training: bool) -> Room:
    """What the op's kernel takes in one mode. wanted: per input, whether a gradient is computed for it (else all False)."""
    made, read = 4 * elements(output), 4 * elements(inputs[0])
    found = Room(scratch=SLOTS_BYTES)
    kind, back = op.kind, any(wanted)
    if kind == "Conv":
        _conv(found, Window.of(op, inputs, output), wanted, bias=len(inputs) > 2)
    elif kind in ("MaxPool", "AveragePool"):
        _pool(found, Window.of(op, inputs, output), kind, back)
    elif kind == "BatchNormalization":
        channels = inputs[0][1]
        _columns(found, elements(inputs[0]) // channels, channels)
        found.scratch += 3 * 4 * max(WIDE, channels) + min(read, max(BLOCK_BYTES, 4 * channels)) + 12 * channels
        found.scratch += 3 * read if len(inputs[0]) not in (2, 4) else 0
        found.stash = 8 * channels if training else 0
    elif kind == "Gemm" and len(inputs) > 2:
        _columns(found, elements(output[:-1]), output[-1])
    elif kind in (*_COPYING, *_BROADCASTING):
        _moves(found, op, inputs, output, back)
    elif kind in _READING:
        _READING[kind](found, op, inputs, output, wanted, training)
    elif kind == "Relu":
        found.scratch += made // 4 if back else 0
    elif kind == "Dropout" and training:
        found.scratch, found.stash = found.scratch + made, made // 4
    elif kind == "Clip":
        found.scratch, found.stash = found.scratch + (made // 4 if back else 0), made // 4 if back else 0
    elif kind == "ReduceMax":
        found.scratch += read // 4 + made if back else 0
    elif kind == "Softmax":
        found.scratch += made
    elif kind in ("SoftmaxCrossEntropyLoss", "MeanSquaredError"):
        found.scratch, found.stash = found.scratch + 2 * read + 4 * _positions(op, inputs), read if back else 0
        found.scratch += _reordered(inputs[1])
        found.scratch += read if _moved(op, inputs) else 0
    elif kind in METRIC_OPS:
        found.scratch += read + 4 * _positions(op, inputs) + _reordered(inputs[1])
        found.scratch += read if _moved(op, inputs) else 0
    return found


def _columns(found: Room, rows: int, columns: int) -> None:
    """A vector of ones as long as there are wide rows, and a sum; for a convolution, a repeated bias."""
    most = min(rows, max(1, WIDE // max(columns, 1)))
    fold = next((k for k in range(most, 1, -1) if rows % k == 0), 1)
    found.own += 4 * (rows // fold)
    found.scratch += 2 * 4 * fold * columns


def _moves(found: Room, op: Op, inputs: Sequence[Shape], output: Shape, back: bool) -> None:
    """Ops that copy between layouts, or sum what was repeated."""
    made, read = 4 * elements(output), 4 * elements(inputs[0])
    if op.kind == "GlobalAveragePool":
        found.own = 4 * elements(inputs[0][2:])
    elif op.kind in VIEWS:
        found.scratch += read if len(inputs[0]) == len(output) == 4 else 0
    elif op.kind == "MatMul":
        copied = any(len(shape) == 4 for shape in (*inputs, output))
        found.scratch += made + 4 * sum(elements(shape) for shape in inputs) if copied else 0
        for own in inputs if back else ():
            found.scratch += 4 * elements((*output[:-2], *own[-2:])) if copied or own[:-2] != output[:-2] else 0
    else:
        found.scratch += made if op.kind not in ("Add", "Sub") and back else 0
        found.scratch += made + made // 2 if op.kind == "Pow" and back else 0
        if back and any(elements(shape) < elements(output) for shape in inputs):
            found.own, found.scratch = made // max(1, output[-1]), found.scratch + 12 * max(WIDE, output[-1])


def _layer_normalization(
    found: Room, op: Op, inputs: Sequence[Shape], output: Shape, wanted: Sequence[bool], training: bool
) -> None:
    """Lines of the normalized axes: vectors as long as one or as many, and two blocks to go back."""
    length, read = elements(inputs[1]), 4 * elements(inputs[0])
    lines, wide = read // 4 // length, 4 * max(WIDE, length)
    block = min(read, max(BLOCK_BYTES // 2, wide))
    found.scratch += 2 * wide + 8 * lines + 3 * block // length + 4 * length
    found.scratch += 2 * read if len(inputs[0]) == 4 else 0
    found.scratch += 2 * block + 12 * length if any(wanted) else 0
    found.stash = 8 * lines if training else 0


def _attention(
    found: Room, op: Op, inputs: Sequence[Shape], output: Shape, wanted: Sequence[bool], training: bool
) -> None:
    """Scores of as many heads and rows as stay in the cache, and beside them to go back; one number per query is kept."""
    (rows, n, width), m = inputs[0], inputs[1][1]
    heads, shared = op.integer("q_num_heads"), op.integer("kv_num_heads")
    causal = op.integer("is_causal")
    queries = min(n, QUERIES) if causal else n
    fitting = max(1, BLOCK_BYTES // (8 * heads // shared * queries * m))
    most = min(shared, fitting) * max(1, min(rows, fitting // shared)) * (heads // shared)
    found.scratch += 4 * most * queries * (m + width // heads + 2)
    found.own = 4 * m + (4 * queries * queries if causal else 0)
    if any(wanted):
        found.scratch += 4 * most * m * (queries + max(width // heads, inputs[2][2] // shared))
    found.stash = 4 * rows * heads * n if training else 0


def _gather(
    found: Room, op: Op, inputs: Sequence[Shape], output: Shape, wanted: Sequence[bool], training: bool
) -> None:
    """One-hot blocks and a table for a small one, sorted gradients for a large one."""
    rows, made = inputs[0][0], 4 * elements(output)
    found.scratch += _reordered(inputs[1])
    found.scratch += made if len(output) == 4 else 0
    if wanted[0] and rows <= ONE_HOT_ROWS_MAX:
        found.scratch += min(elements(inputs[1]) * rows * 4, max(BLOCK_BYTES, 4 * rows)) + 4 * elements(inputs[0])
    elif wanted[0]:
        found.scratch += made + min(made, 4 * elements(inputs[0]))


def _erf(found: Room, op: Op, inputs: Sequence[Shape], output: Shape, wanted: Sequence[bool], training: bool) -> None:
    """Three blocks; the derivative is kept."""
    found.scratch += 3 * 4 * ERF_BLOCK
    found.stash = 4 * elements(output) if wanted[0] else 0


_READING: Final = {
    "LayerNormalization": _layer_normalization,
    "Attention": _attention,
    "Gather": _gather,
    "Gelu": _erf,
    "Erf": _erf,
}


def _reordered(numbers: Shape) -> int:
    """Labels and indices are read in ONNX's order: those of rank 4, which lie channels last, from a copy."""
    return 8 * elements(numbers) if len(numbers) == 4 else 0


def _positions(op: Op, inputs: Sequence[Shape]) -> int:
    """How many labels or, for other losses and metrics, rows there are."""
    return elements(inputs[1]) if "axis" in op.attributes else inputs[0][0]


def _moved(op: Op, inputs: Sequence[Shape]) -> bool:
    """Whether scores are copied, because their classes are not the last in memory."""
    return "axis" in op.attributes and op.integer("axis") < len(inputs[0]) - 1 and len(inputs[0]) != 4


def _pool(found: Room, w: Window, kind: str, back: bool) -> None:
    height, width = w.height + w.pads[0] + w.pads[2], w.width + w.pads[1] + w.pads[3]
    padded = height * width * w.channels * 4
    count = max(1, min(w.images, BLOCK_BYTES // max(1, 2 * padded)))
    rows, made = count * w.out_rows * width * w.channels * 4, count * w.out_rows * w.out_columns * w.channels * 4
    sources = count * padded if any(w.pads) else 0
    found.scratch += rows + sources * (1 + back)
    if kind == "MaxPool":
        found.scratch += 3 * rows if back else 0
    else:
        found.scratch += made if back else 0
        found.own = w.out_rows * w.out_columns * w.channels * 4


def _conv(found: Room, w: Window, wanted: Sequence[bool], bias: bool) -> None:
    if bias:
        _columns(found, w.images * w.out_rows * w.out_columns, w.outputs)
    if tiled(w):
        _tiles(found, w, wanted)
        return
    if across := bands(w, wanted[0]):
        piece, tiles = 4 * band_piece(w, across), w.out_rows * w.out_columns // across
        found.own += piece * across * w.outputs
        images = max(1, min(w.images, BLOCK_BYTES // (tiles * piece)))
        found.scratch += images * tiles * piece + (2 * piece * across * w.outputs if wanted[1] else 0)
        if any(w.pads):
            padded = (w.height + w.pads[0] + w.pads[2]) * (w.width + w.pads[1] + w.pads[3])
            found.scratch += 4 * images * padded * w.channels
        return
    inner, outer, window = w.channels // w.group, w.outputs // w.group, elements(w.kernel)
    row = w.out_columns * window * inner * 4
    columns = _block(w.images, w.out_rows, row)
    if any(w.pads):
        padded = (w.height + w.pads[0] + w.pads[2]) * (w.width + w.pads[1] + w.pads[3]) * w.channels * 4
        found.scratch += padded * max(1, min(w.images, BLOCK_BYTES // max(1, w.out_rows * row)))
    if wanted[1]:
        found.scratch += 4 * window * inner * outer
    if wanted[0]:
        columns = max(columns, _phases(found, w, inner, outer))
    found.scratch += columns


def _tiles(found: Room, w: Window, wanted: Sequence[bool]) -> None:
    """Padded rows, tiles and their products for a block, forward or backward, whichever is more; and the kernel's tiles."""
    sweeps = [(w.out_rows, w.out_columns, w.channels, w.outputs)]
    if wanted[0]:
        sweeps.append((w.height, w.width, w.outputs, w.channels))
    most = [0.0, 0.0, 0.0]
    for rows, columns, inner, outer in sweeps:
        down, along = -(-rows // 2), -(-columns // 2)
        fitting = max(1, TILED_BLOCK_BYTES // (64 * along * (inner + outer)))
        images, tiles = max(1, min(w.images, fitting // down)), min(down, fitting)
        places = images * tiles * along
        sizes = (
            8 * images * (2 * tiles + 2) * (along + 1) * inner,
            64 * places * inner,
            max(64 * places * outer, 32 * images * tiles * (along + 1) * inner),
        )
        most = [max(pair) for pair in zip(most, sizes, strict=True)]
    found.scratch += sum(most) + (64 + 4 * wanted[1]) * w.channels * w.outputs


def _phases(found: Room, w: Window, inner: int, outer: int) -> float:
    """An input gradient: columns of dy for the places of each phase, which this returns, and what else it takes."""
    steps = [s // gcd(s, d) for s, d in zip(w.strides, w.dilations, strict=True)]
    most = [-(-k // s) for k, s in zip(w.kernel, steps, strict=True)]
    least = [max(1, k // s) for k, s in zip(w.kernel, steps, strict=True)]
    rows, columns = -(-w.height // w.strides[0]), -(-w.width // w.strides[1])
    smallest = (w.height // w.strides[0]) * (w.width // w.strides[1]) * elements(tuple(least)) * outer * 4
    images = max(1, min(w.images, BLOCK_BYTES // max(1, smallest)))
    extents = [
        max(out, -(-(size + pad) // s)) + 2 * (k - 1) * d
        for out, size, pad, s, k, d in zip(
            (w.out_rows, w.out_columns), (w.height, w.width), w.pads[:2], w.strides, w.kernel, w.dilations, strict=True
        )
    ]
    found.scratch += 4 * elements(w.kernel) * inner * w.outputs + 4 * images * elements(tuple(extents)) * w.outputs
    if set(w.strides) != {1}:
        found.scratch += 4 * images * rows * columns * w.channels
    return _block(w.images, rows, columns * elements(tuple(most)) * outer * 4)


def _block(images: int, rows: int, row_bytes: int) -> float:
    """At most a block, or one row, or everything."""
    return min(images * rows * row_bytes, max(BLOCK_BYTES, row_bytes))
