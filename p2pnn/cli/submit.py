"""A prepared job and its way to the daemon: blobs in memory while there is room, and only what the daemon lacks is sent."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from p2pnn.cli.http import Daemon
from p2pnn.cli.results import to_safetensors
from p2pnn.data.blobs import blob_id
from p2pnn.data.ingest import Put
from p2pnn.errors import DataError
from p2pnn.job.spec import Dataset, JobSpec
from p2pnn.types import BlobId

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

KEPT_BYTES: Final = 256 << 20
"""Chunks kept in memory between checking and sending. More would spare large data its second reading."""

INITIAL_BYTES: Final = 4 << 20
"""Parameters to start from travel in blobs of about this size; a larger tensor makes a larger blob."""

ASKED_BLOBS: Final = 1000
"""How many blobs are asked for in one question: 67 KB of names."""


@dataclass(slots=True)
class Prepared:
    """A job, ready to be sent. kept: blobs in memory. again: gives all data chunks once more, to a function that stores.

    files: of rows that are an image each, the file of each.
    """

    name: str
    spec: JobSpec
    kept: dict[BlobId, bytes]
    again: Callable[[Put], object]
    remarks: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)


class Keeper:
    """Names chunks, and keeps them while there is room."""

    def __init__(self) -> None:
        self.kept: dict[BlobId, bytes] = {}
        self._bytes = 0

    def put(self, data: bytes) -> BlobId:
        name = blob_id(data)
        if name not in self.kept and self._bytes + len(data) <= KEPT_BYTES:
            self.kept[name] = data
            self._bytes += len(data)
        return name


def parts(tensors: Mapping[str, NDArray[np.float32]], keeper: Keeper) -> tuple[BlobId, ...]:
    """Tensors as safetensors blobs of about INITIAL_BYTES. They are always kept: nothing could give them again."""
    cut: list[dict[str, NDArray[np.float32]]] = [{}]
    room = INITIAL_BYTES
    for name, tensor in tensors.items():
        if cut[-1] and tensor.nbytes > room:
            cut.append({})
            room = INITIAL_BYTES
        cut[-1][name] = tensor
        room -= tensor.nbytes
    names = []
    for part in cut:
        data = to_safetensors(part, {})
        names.append(blob_id(data))
        keeper.kept[names[-1]] = data
    return tuple(names)


def plain(name: str) -> str:
    """A name for a job and a folder: letters, digits, `-`, `_`."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:60] or "job"


def send(daemon: Daemon, prepared: Prepared, remark: Callable[[str], None] = lambda line: None) -> str:
    """Give the daemon what it lacks, submit the job, and return its id."""
    encoded = msgspec.msgpack.encode(prepared.spec)
    missing = _missing(daemon, _chunks(prepared.spec) + list(prepared.spec.initial))
    elsewhere = missing - prepared.kept.keys()
    for name in missing - elsewhere:
        daemon.put(f"blobs/{name}", prepared.kept[name])
    if elsewhere:
        remark(f"sending {len(elsewhere):,} chunks of {prepared.name} to the daemon")

        def put(data: bytes) -> BlobId:
            name = blob_id(data)
            if name in elsewhere:
                daemon.put(f"blobs/{name}", data)
                elsewhere.discard(name)
            return name

        prepared.again(put)
        if elsewhere:
            raise DataError(f"the data of {prepared.name} changed while it was being sent; start again")
    name = blob_id(encoded)
    daemon.put(f"blobs/{name}", encoded)
    return str(daemon.post("jobs", {"spec": name})["job"])


def _missing(daemon: Daemon, names: Sequence[BlobId]) -> set[BlobId]:
    missing: set[BlobId] = set()
    for start in range(0, len(names), ASKED_BLOBS):
        missing |= set(daemon.post("blobs/missing", {"blobs": names[start : start + ASKED_BLOBS]})["missing"])
    return missing


def _chunks(spec: JobSpec) -> list[BlobId]:
    datasets: Iterable[Dataset] = [split.dataset for split in (spec.train, spec.validation, spec.test) if split]
    return list(dict.fromkeys(chunk.blob for d in datasets for column in d.columns for chunk in column.chunks))
