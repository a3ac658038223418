"""What a checkpoint is: one manifest, and one safetensors part per node that took part.

A manifest is complete when every part was verified on two nodes (on all where there are fewer); only complete ones are
kept as records. A run resumes on any nodes: parts are read by tensor name, not by node.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

import msgspec

from p2pnn.types import BlobId, JobId

FORMAT: Final = 1
RECUT: Final = ">"


class Part(msgspec.Struct, frozen=True):
    """One node's file of a checkpoint: a safetensors blob of `size` bytes.

    bits: the sum of `tensor_bits` over its parameters and state, 32 bytes, big-endian, modulo 2^256.
    """

    blob: BlobId
    size: int
    bits: bytes


class Manifest(msgspec.Struct, frozen=True):
    """One cut of a run after `step` updates, with everything that `jobs resume` needs beside the spec.

    best_value, best_epoch: the best monitored value so far (patience counts from there). cut: `job.plan.cut` of the plan
    that it was written under, behind RECUT where the run had another one before. uneven: how many batches of the epoch under way
    were trained more often than once, and how many were given up.
    """

    job: JobId
    spec: BlobId
    step: int
    epoch: int
    parts: tuple[Part, ...]
    best_value: float | None = None
    best_epoch: int = 0
    finished: bool = False
    format: int = FORMAT
    cut: str = ""
    uneven: tuple[int, int] = (0, 0)


def version_name(updates: int, parameter: str) -> str:
    """The name under which a part holds a parameter as it was after so many updates: only those that coming steps read, of
    a run with several mini-batches in flight."""
    return f"version/{updates}/{parameter}"


def tensor_bits(name: str, data: bytes | memoryview) -> int:
    """One tensor's share of a fingerprint: SHA-256 of its name and of its bytes (ONNX's layout, little-endian)."""
    inner = hashlib.sha256(data).digest()
    return int.from_bytes(hashlib.sha256(name.encode() + b"\0" + inner).digest())


def add_bits(shares: Iterable[int]) -> bytes:
    """The sum of shares as `Part.bits` holds it. A sum, so that it does not matter how tensors are spread over parts."""
    return (sum(shares) % (1 << 256)).to_bytes(32)


def fingerprint(parts: Iterable[Part]) -> str:
    """The run's bits, as `9f3a-22c1-7d40`: the same for the same parameters and state, however they are spread over parts.

    It tells honest runs apart; it is no proof against somebody who looks for two runs with one fingerprint.
    """
    total = add_bits(int.from_bytes(part.bits) for part in parts).hex()
    return f"{total[:4]}-{total[4:8]}-{total[8:12]}"
