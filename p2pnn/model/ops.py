"""The op table: one row per operator kind. (Being written: see Row.)"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from p2pnn.model.graph import Op, Shape, Value


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one forward pass: floating-point operations, and bytes read and written."""

    flops: float
    bytes: float


@dataclass(frozen=True, slots=True)
class Row:
    """infer gives the outputs' (dtype, shape) and raises ModelError; cost gets concrete shapes (batch filled in)."""

    domain: str
    infer: Callable[[Op, list[Value]], list[tuple[str, Shape]]]
    cost: Callable[[Op, list[Shape], list[Shape]], Cost]
    no_gradient: tuple[int, ...] = ()
    no_gradient_from: int = 1000

    def differentiable(self, position: int) -> bool:
        """Whether a gradient flows to the input at this position."""
        return position not in self.no_gradient and position < self.no_gradient_from


TABLE: dict[str, Row] = {}
