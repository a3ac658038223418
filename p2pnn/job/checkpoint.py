"""What a checkpoint is: one manifest, and one safetensors part per node that took part.

A manifest is complete when every part was verified on two nodes (on all where there are fewer); only complete ones are
kept as records. A run resumes on any nodes: parts are read by tensor name, not by node.
"""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec

from p2pnn.types import BlobId, JobId

FORMAT: Final = 1


class PartTensor(msgspec.Struct, frozen=True):
    """One tensor of a part. name: a parameter or state name, or `optimizer/<slot>/<parameter>`. digest: SHA-256 of its
    bytes in ONNX's layout, hexadecimal."""

    name: str
    digest: str


class Part(msgspec.Struct, frozen=True):
    """One node's file of a checkpoint: a safetensors blob of `size` bytes."""

    blob: BlobId
    size: int
    tensors: tuple[PartTensor, ...]


class Manifest(msgspec.Struct, frozen=True):
    """One cut of a run after `step` updates, with everything that `jobs resume` needs beside the spec.

    best: the best monitored value so far and its epoch (patience counts from there). history: one record per epoch, as in
    metrics.jsonl.
    """

    job: JobId
    spec: BlobId
    step: int
    epoch: int
    parts: tuple[Part, ...]
    best_value: float | None = None
    best_epoch: int = 0
    history: tuple[dict[str, float], ...] = ()
    finished: bool = False
    format: int = FORMAT


def fingerprint(parts: tuple[Part, ...], names: list[str]) -> str:
    """The run's bits: SHA-256 over the digests of `names` (parameters and state in graph order), as `9f3a-22c1-7d40`.

    The same for the same values, however they are spread over parts. Raises KeyError for a name in no part.
    """
    digests = {t.name: t.digest for part in parts for t in part.tensors}
    total = hashlib.sha256("\n".join(f"{name} {digests[name]}" for name in names).encode()).hexdigest()
    return f"{total[:4]}-{total[4:8]}-{total[8:12]}"
