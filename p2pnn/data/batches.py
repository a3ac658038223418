"""Which rows a batch holds, and how their numbers come out of the chunks.

Order is a pure function: all nodes know it without being told. A permutation of n rows is the order in which n raw 64-bit
numbers of a Philox generator sort (equal numbers keep their order), with the generator's 128-bit key taken from the
SHA-256 of what the permutation is for. Philox's raw stream is fixed by its definition (Salmon et al. 2011), so that no
release of a library changes an order.

There are two permutations. A split is a range of the permutation of the whole dataset (seed of the split); an epoch is a
permutation of the split (seed of the job, number of the epoch).
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from p2pnn.data import chunks
from p2pnn.data.blobs import BlobStore
from p2pnn.errors import DataError, StorageError
from p2pnn.job.spec import Column, Split
from p2pnn.model.graph import Scaling

MAPS_OPEN_MAX: Final = 64
"""Chunks that one reader keeps mapped. Each costs a file descriptor (the system's usual limit is 1,024); more would spare
re-opening, at some 20 µs each, when batches are drawn from more than 256 MiB."""


def epoch_order(split: Split, seed: int, epoch: int) -> NDArray[np.int64]:
    """Dataset row numbers of the split, int64[rows], in the order in which epoch `epoch` (from 0) trains on them."""
    rows = split_order(split)
    return rows[_permutation(rows.size, seed, "epoch", epoch)]


def split_order(split: Split) -> NDArray[np.int64]:
    """Dataset row numbers of the split, int64[rows], in the split's own order: what evaluation runs through."""
    if not 0 <= split.start <= split.stop <= split.dataset.rows:
        raise DataError(
            f"rows {split.start} to {split.stop} were asked of data set {split.dataset.name}, "
            f"which has {split.dataset.rows}"
        )
    if split.seed < 0:
        return np.arange(split.start, split.stop, dtype=np.int64)
    return _permutation(split.dataset.rows, split.seed, "split")[split.start : split.stop]


def scale(raw: NDArray[Any], scaling: Scaling, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """(raw − shift) · scale in float32 arithmetic, for rows [n, *shape] of any dtype.

    With several shifts or scales there is one per entry of axis 1 (channels or features). out: float32 of raw's shape, to
    write into. Raises DataError where their number does not fit the rows.
    """
    if out is None:
        out = np.empty(raw.shape, np.float32)
    np.copyto(out, raw, casting="unsafe")
    np.subtract(out, _along_axis_1(scaling.shift, raw.shape, "shifts"), out=out)
    np.multiply(out, _along_axis_1(scaling.scale, raw.shape, "scales"), out=out)
    return out


class SplitReader:
    """Gathers rows of one column of a split's dataset from its chunks.

    dtype, shape: of a stored row. Opening reads nothing; a chunk is mapped when a row of it is first asked for, and
    stays mapped while it is among the last MAPS_OPEN_MAX that were used.
    """

    def __init__(self, split: Split, column: str, blobs: BlobStore) -> None:
        self.column = _column(split, column)
        self.dtype = np.dtype(self.column.dtype)
        self.shape = self.column.shape
        self._blobs = blobs
        counts = [chunk.rows for chunk in self.column.chunks]
        self._starts = np.concatenate(([0], np.cumsum(counts, dtype=np.int64))).astype(np.int64)
        if self._starts[-1] != split.dataset.rows:
            raise DataError(
                f"column {column} of data set {split.dataset.name} has {self._starts[-1]} rows in its chunks, "
                f"not {split.dataset.rows}"
            )
        self._maps: OrderedDict[int, NDArray[Any]] = OrderedDict()

    def rows(self, indices: NDArray[np.int64], out: NDArray[Any]) -> None:
        """Put the dataset's rows `indices`, in their order, into out[: len(indices)] (shape [≥ n, *shape]).

        out may have a wider dtype than the chunks (labels of uint8 into int64). Raises DataError for a row that does
        not exist or an `out` that does not fit, StorageError for a chunk that is missing or damaged.
        """
        if out.shape[1:] != self.shape or len(out) < len(indices):
            raise DataError(
                f"rows of column {self.column.name} are {self.shape}; {len(indices)} of them do not go into {out.shape}"
            )
        if not np.can_cast(self.dtype, out.dtype, "same_kind"):
            raise DataError(f"column {self.column.name} holds {self.dtype}, which does not go into {out.dtype}")
        if not len(indices):
            return
        if indices.min() < 0 or indices.max() >= self._starts[-1]:
            raise DataError(f"column {self.column.name} has {self._starts[-1]} rows, none with number {indices.max()}")
        where = np.searchsorted(self._starts, indices, side="right") - 1
        for number in np.unique(where):
            here = np.flatnonzero(where == number)
            out[here] = self._open(int(number))[indices[here] - self._starts[number]]

    def _open(self, number: int) -> NDArray[Any]:
        if number in self._maps:
            self._maps.move_to_end(number)
            return self._maps[number]
        chunk = self.column.chunks[number]
        rows = chunks.open(self._blobs.path(chunk.blob))
        if rows.dtype != self.dtype.newbyteorder("<") or rows.shape != (chunk.rows, *self.shape):
            raise StorageError(
                f"chunk {chunk.blob[:12]}… holds {rows.dtype}{list(rows.shape)}, "
                f"but column {self.column.name} says {self.dtype}{[chunk.rows, *self.shape]}"
            )
        if len(self._maps) >= MAPS_OPEN_MAX:
            self._maps.popitem(last=False)
        self._maps[number] = rows
        return rows


def _column(split: Split, name: str) -> Column:
    for column in split.dataset.columns:
        if column.name == name:
            return column
    names = ", ".join(column.name for column in split.dataset.columns)
    raise DataError(f"data set {split.dataset.name} has no column {name}; it has {names}")


def _permutation(count: int, seed: int, *purpose: str | int) -> NDArray[np.int64]:
    """A permutation of 0 … count − 1 that depends on nothing but its arguments."""
    text = "\0".join(str(part) for part in ("p2pnn", seed, *purpose))
    key = np.frombuffer(hashlib.sha256(text.encode()).digest()[:16], dtype="<u8")
    numbers = np.random.Philox(key=key).random_raw(count)
    return np.argsort(numbers, kind="stable").astype(np.int64, copy=False)


def _along_axis_1(numbers: tuple[float, ...], shape: tuple[int, ...], what: str) -> NDArray[np.float32]:
    if len(numbers) == 1:
        return np.array(numbers[0], np.float32)
    if len(shape) < 2 or shape[1] != len(numbers):
        raise DataError(f"{len(numbers)} {what} do not fit rows of shape {shape[1:]}")
    return np.array(numbers, np.float32).reshape(-1, *(1,) * (len(shape) - 2))
