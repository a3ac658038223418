"""The square of a gradient's norm in one pass, which also tells whether all of it is finite."""

from __future__ import annotations

from typing import Final

import numpy as np

from p2pnn.ps.space import Flat

BLOCK: Final = 262_144
"""As many as float32 sums well; on a busy machine half the time of 16,384, in which the calls count."""


def norm_squared(x: Flat) -> float:
    """Σ x², blocks in float32 and their sum in float64; NaN or infinite where x is not finite, or its squares are not.

    It is to compare and to guard with: its last bits depend on the BLAS, so nothing is computed from it. (A test for finite
    elements alone takes three times as long, as it writes what it finds.)
    """
    total = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, x.size, BLOCK):
            block = x[start : start + BLOCK]
            total += float(np.dot(block, block))
    return total
