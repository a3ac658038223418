"""Initial values, keyed by (seed, parameter name): the same on every node, whatever else the model holds.

Each parameter has a stream of its own: numpy's Philox (Salmon et al. 2011, counter-based), its 128-bit key taken from
SHA-256 of the seed, a purpose and the name. So a node draws only what it owns, in any order.
"""

from __future__ import annotations

import hashlib

import msgspec
import numpy as np
from numpy.typing import NDArray

from p2pnn.model.graph import Parameter


def initial(parameter: Parameter, seed: int) -> NDArray[np.float32]:
    """A parameter's (or state's) first value: float32 of its shape, in ONNX's layout, C-contiguous.

    `constant`: value everywhere; `uniform`: in [−scale, scale); `normal`: mean 0, standard deviation scale.
    """
    start = parameter.initializer
    if start.kind == "constant":
        return np.full(parameter.shape, start.value, np.float32)
    generator = np.random.Generator(np.random.Philox(key=_key(seed, parameter.name)))
    if start.kind == "normal":
        drawn = generator.standard_normal(parameter.shape, dtype=np.float32)
        drawn *= np.float32(start.scale)
        return drawn
    drawn = generator.random(parameter.shape, dtype=np.float32)
    drawn *= np.float32(2 * start.scale)
    drawn -= np.float32(start.scale)
    return drawn


def _key(seed: int, name: str) -> int:
    """128 bits of SHA-256 over MessagePack of [seed, "initial", name], little-endian."""
    return int.from_bytes(hashlib.sha256(msgspec.msgpack.encode([seed, "initial", name])).digest()[:16], "little")
