"""The numbers of one convolution, by name, and what a method is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from p2pnn.engine.numpy.kernel import Site

Steps = list[Callable[[], Any]]
"""Calls bound to their arrays. A method makes them once per pass of a frame, and the pass runs them in order: what to
slice, and which products there are, costs nothing while a job runs."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """Input [images, height, width, channels], output [images, out_rows, out_columns, outputs].

    pads: top, left, bottom, right.
    """

    images: int
    height: int
    width: int
    channels: int
    out_rows: int
    out_columns: int
    outputs: int
    kernel: Sequence[int]
    strides: Sequence[int]
    pads: Sequence[int]
    dilations: Sequence[int]
    group: int

    @classmethod
    def of(cls, site: Site) -> Geometry:
        """That of a Conv op."""
        op, kernel = site.op, site.inputs[1].shape[:2]
        images, height, width, channels = site.inputs[0].shape
        _, out_rows, out_columns, outputs = site.output.shape
        strides, pads, dilations = (op.integers(name) for name in ("strides", "pads", "dilations"))
        extents = (images, height, width, channels, out_rows, out_columns, outputs)
        return cls(*extents, kernel, strides, pads, dilations, op.integer("group"))
