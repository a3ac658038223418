"""Checkpoint parts: safetensors files with one node's tensors, in ONNX's layout and under ONNX-side names.

A part holds parameters, state, optimizer arrays as `optimizer/<slot>/<parameter>`, and what else the run goes on from, older
versions of parameters as `version/<number>/<parameter>`. Shards of the parameter server hold *pieces* of tensors: elements
[start, stop) of the flattened tensor lie under `<name>/<start>-<stop>`. Reading goes by name over any number of parts, and puts
pieces together, so a run goes on with another partition, and with another number of shards, than it was cut with. The header's
metadata carries the format number under `p2pnn`; files from elsewhere have none and are read by their tensor names alone.

Writing streams tensor by tensor, so a checkpoint takes the memory of its largest tensor, and a full disk is an OSError
at the byte where it shows. The file is little-endian, as everything here.
"""

from __future__ import annotations

import contextlib
import json
import re
import struct
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from p2pnn.data.blobs import BlobStore
from p2pnn.errors import CheckpointError, StorageError
from p2pnn.job.checkpoint import FORMAT, Part, add_bits, tensor_bits
from p2pnn.types import BlobId

Tensor = NDArray[np.float32]
Entry = tuple[str, tuple[int, ...], Callable[[], Tensor]]
"""A tensor's name and shape, and how to get its float32 array."""

ALIGNMENT: Final = 64

_PIECE: Final = re.compile(r"(.+)/([0-9]{1,15})-([0-9]{1,15})")


def piece_name(name: str, start: int, stop: int) -> str:
    """The name of elements [start, stop) of a flattened tensor."""
    return f"{name}/{start}-{stop}"


def write(blobs: BlobStore, named: Sequence[Entry], more: Sequence[Entry] = ()) -> Part:
    """Write a part and put it among the blobs. Parameters and state (`named`) count for its bits, `more` does not.

    Raises StorageError for a disk that is full or fails; nothing is left of what was written.
    """
    temporary = blobs.temporary()
    try:
        bits = _write(temporary, named, more)
        size = temporary.stat().st_size
        return Part(blobs.adopt(temporary), size, bits)
    except OSError as error:
        raise StorageError(f"the checkpoint was not written to {blobs.root}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _write(path: Path, named: Sequence[Entry], more: Sequence[Entry]) -> bytes:
    """Write the file; returns the bits of what is `named`."""
    header: dict[str, Any] = {"__metadata__": {"p2pnn": str(FORMAT)}}
    end = 0
    for name, shape, _ in (*named, *more):
        start, end = end, end + 4 * int(np.prod(shape, dtype=np.int64))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    shares = []
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for position, (name, shape, get) in enumerate((*named, *more)):
            array = np.ascontiguousarray(get(), dtype="<f4").reshape(shape)
            data = array.reshape(-1).view(np.uint8).data
            if position < len(named):
                shares.append(tensor_bits(name, data))
            file.write(data)
    return add_bits(shares)


class Parts:
    """Tensors by name over several parts. Raises CheckpointError for a part that is missing, damaged or newer."""

    def __init__(self, blobs: BlobStore, parts: Iterable[BlobId]) -> None:
        self._files: dict[str, Path] = {}
        for part in parts:
            path = blobs.path(part)
            with _opened(path) as file:
                _check_format(path, file.metadata() or {})
                self._files.update(dict.fromkeys(file.keys(), path))
        self._pieces: dict[str, list[tuple[int, int]]] = {}
        for name in self._files:
            if found := _PIECE.fullmatch(name):
                self._pieces.setdefault(found[1], []).append((int(found[2]), int(found[3])))

    def __contains__(self, name: str) -> bool:
        return name in self._files or name in self._pieces

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """One float32 array, put together where it lies in pieces. Raises CheckpointError where it, or a piece of it, is missing
        or of another shape."""
        if name not in self._files and name in self._pieces:
            return self._join(name, shape)
        return self._read(name, shape)

    def _read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        path = self._files.get(name)
        if path is None:
            raise CheckpointError(f"the checkpoint has no tensor {name}, which the model needs")
        with _opened(path) as file:
            array: NDArray[Any] = file.get_tensor(name)
        if array.shape != shape:
            raise CheckpointError(f"tensor {name} of the checkpoint is {array.shape}, but the model's is {shape}")
        return np.ascontiguousarray(array, dtype=np.float32)

    def _join(self, name: str, shape: tuple[int, ...]) -> Tensor:
        whole = np.empty(int(np.prod(shape, dtype=np.int64)), np.float32)
        end = 0
        for start, stop in sorted(self._pieces[name]):
            if start != end or not start < stop <= whole.size:
                break
            whole[start:stop] = self._read(piece_name(name, start, stop), (stop - start,))
            end = stop
        if end != whole.size or sorted(self._pieces[name])[-1][1] != end:
            held = ", ".join(f"{start}-{stop}" for start, stop in sorted(self._pieces[name])[:4])
            raise CheckpointError(
                f"the pieces of tensor {name} in the checkpoint ({held}) are not the {whole.size} elements that the model needs"
            )
        return whole.reshape(shape)


@contextlib.contextmanager
def _opened(path: Path) -> Any:
    try:
        with safe_open(str(path), framework="np") as file:
            yield file
    except (SafetensorError, OSError, TypeError) as error:
        raise CheckpointError(f"checkpoint part {path} cannot be read: {error}") from error


def _check_format(path: Path, metadata: dict[str, str]) -> None:
    number = metadata.get("p2pnn", "1")
    if not number.isdigit() or int(number) > FORMAT:
        raise CheckpointError(
            f"checkpoint part {path} has format {number}, written by a newer p2pnn; this one reads up to {FORMAT}"
        )
