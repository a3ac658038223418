"""Clipping by the global norm, with the same bits on every node.

The norm is over all parameters, wherever they lie. Each node sums the squares of its own gradients in float64, one number
per parameter; every node gets all of them and adds them in graph order. So the sum does not depend on the partition.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from p2pnn.model.graph import Graph

BLOCK: Final = 16_384


def squares(gradient: NDArray[Any]) -> float:
    """Σ g² of a float32 array in float64, block by block: the same for the same array, wherever it lies."""
    flat = gradient.reshape(-1)
    block = np.empty(min(BLOCK, flat.size), np.float64)
    total = 0.0
    for start in range(0, flat.size, BLOCK):
        part = block[: min(BLOCK, flat.size - start)]
        part[:] = flat[start : start + BLOCK]
        total += float(np.dot(part, part))
    return total


def norm(graph: Graph, owned: Sequence[Sequence[str]], by_node: Mapping[int, Sequence[float]]) -> float:
    """The global norm. owned: per node its parameters in graph order; by_node: their squares, in that order."""
    by_name = {
        name: square for node, values in by_node.items() for name, square in zip(owned[node], values, strict=True)
    }
    total = 0.0
    for parameter in graph.parameters:
        total += by_name.get(parameter.name, 0.0)
    return math.sqrt(total) if total >= 0 else total  # NaN stays NaN


def scale(global_norm: float, clip_norm: float) -> float:
    """What to multiply gradients by: min(1, clip_norm / (norm + 1e-6)), as in torch.nn.utils.clip_grad_norm_."""
    return min(1.0, clip_norm / (global_norm + 1e-6))
