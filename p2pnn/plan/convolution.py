"""How long a convolution takes by the method that the engine takes for it: arithmetic, and moving what the product reads.

By the rates with which the engine chooses a method (`scratch.bands`). They were measured on one machine; here they become
floating-point operations and bytes, so that a profile's own rates give the seconds. A convolution in tiles is told by
the profile's rate for convolutions instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from p2pnn.model.graph import elements
from p2pnn.plan import scratch
from p2pnn.plan.scratch import Window

LOSS: Final = 1.3
"""So many times longer than their operations do these products take, whose operands are small, at a large GEMM's rate."""

MOVED: Final = 2.0
"""So many times are the operands of a convolution of single points moved."""

BYTES_PER_NS: Final = 31.0
"""What a copy moved on the machine where the rates were measured."""


@dataclass(frozen=True, slots=True)
class Effort:
    """Of one pass over all images: operations at the rate of a GEMM, and bytes at that of a copy."""

    flops: float
    bytes: float


def efforts(w: Window, wants_input: bool) -> tuple[Effort, Effort, Effort] | None:
    """Forward, the weight's gradient, the input's gradient; None for a convolution in tiles."""
    if scratch.tiled(w):
        return None
    places, window = w.out_rows * w.out_columns, elements(w.kernel)
    if across := scratch.bands(w, wants_input):
        tiles, inner = places // across, scratch.band_piece(w, across)
        gather = tiles * (w.kernel[0] * scratch.RUN_NS + inner * scratch.ELEMENT_NS)
        add = tiles * (w.kernel[0] * scratch.ADDED_RUN_NS + inner * scratch.ADDED_NS)
        product = _flops(tiles, inner, across * w.outputs)
        return _of(w, product, gather), _of(w, product, gather), _of(w, product, add)
    copy = w.kernel[0] * scratch.RUN_NS + window * w.channels * scratch.ELEMENT_NS
    back = w.kernel[0] * scratch.RUN_NS + window * w.outputs * scratch.ELEMENT_NS
    if window == 1 and not any(w.pads):  # one product over all places, which reads and writes what memory holds
        copy = back = MOVED * 4 * (w.channels + w.outputs) / BYTES_PER_NS
    product = _flops(places, window * w.channels // w.group, w.outputs)
    area = w.height * w.width / elements(w.strides)
    gradient = _flops(w.height * w.width, window * w.outputs // w.group, w.channels) / elements(w.strides)
    return _of(w, product, places * copy), _of(w, product, places * copy), _of(w, gradient, area * back)


def _of(w: Window, flops: float, moving_ns: float) -> Effort:
    return Effort(w.images * flops * LOSS, w.images * moving_ns * BYTES_PER_NS)


def _flops(rows: float, inner: float, outer: float) -> float:
    return 2 * rows * inner * outer * (1 + scratch.HALF_OUTER / outer + scratch.HALF_INNER / inner)
