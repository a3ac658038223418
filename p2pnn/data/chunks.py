"""A chunk: a run of rows of one column, as the bytes of one blob.

    offset  size  field
         0     8  magic, b"p2pnnchk"
         8     4  format number, 1
        12     4  rank of a row (0 … 6)
        16     8  dtype as a numpy name, padded with zero bytes
        24     8  rows
        32     8  bytes of a row
        40    24  the row's shape: six numbers of 4 bytes, zeros behind the rank
        64        the rows, C order

All numbers are little endian. A chunk is about CHUNK_BYTES, so that a blob is small enough to fetch, check and drop as
one piece, and large enough that opening it costs nothing beside reading it. Chunks are read as memory maps: the data may be
larger than memory.
"""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from p2pnn.data.blobs import storage_error
from p2pnn.errors import DataError, StorageError

FORMAT: Final = 1
MAGIC: Final = b"p2pnnchk"
HEADER: Final = struct.Struct("<8sII8sQQ6I")
HEADER_BYTES: Final = 64
RANK_MAX: Final = 6
CHUNK_BYTES: Final = 4 << 20
"""What a chunk's rows take, if a row is not larger."""
CHUNK_BYTES_MAX: Final = 8 << 20
"""No row may be larger: a blob of this size is received, and hashed, as one piece."""

DTYPES: Final = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "int64", "float32", "float64")

assert HEADER.size == HEADER_BYTES
assert CHUNK_BYTES <= CHUNK_BYTES_MAX


def rows_per_chunk(dtype: str, shape: tuple[int, ...]) -> int:
    """How many rows of this dtype and shape go into one chunk.

    Raises DataError where one row exceeds CHUNK_BYTES_MAX.
    """
    row_bytes = _row_bytes(dtype, shape)
    if row_bytes > CHUNK_BYTES_MAX:
        raise DataError(f"a row of {dtype}{list(shape)} has {row_bytes} bytes; the limit is {CHUNK_BYTES_MAX}")
    return max(1, CHUNK_BYTES // max(1, row_bytes))


def write(rows: NDArray[Any]) -> bytes:
    """The chunk blob of an array: axis 0 counts the rows, dtype one of DTYPES, rank of a row at most 6.

    Raises DataError for a dtype or shape that a chunk cannot hold.
    """
    if rows.dtype.name not in DTYPES:
        raise DataError(f"dtype {rows.dtype} cannot be stored; use one of {', '.join(DTYPES)}")
    if not 1 <= rows.ndim <= RANK_MAX + 1:
        raise DataError(f"an array of {rows.ndim} dimensions cannot be stored; rows have at most {RANK_MAX}")
    shape = rows.shape[1:]
    if any(not 0 < extent < 1 << 32 for extent in shape):
        raise DataError(f"rows of shape {shape} cannot be stored: every extent must be positive")
    little = np.ascontiguousarray(rows, dtype=rows.dtype.newbyteorder("<"))
    header = HEADER.pack(
        MAGIC,
        FORMAT,
        len(shape),
        rows.dtype.name.encode(),
        rows.shape[0],
        _row_bytes(rows.dtype.name, shape),
        *shape,
        *(0,) * (RANK_MAX - len(shape)),
    )
    return header + little.tobytes()


def open(path: Path) -> NDArray[Any]:
    """The rows of a chunk as a read-only memory map, [rows, *shape]; the map closes with the last view of it.

    Raises StorageError for a file that cannot be read, is not a chunk, is cut short, or is of a newer format.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            dtype, rows, shape = _read_header(os.pread(descriptor, HEADER_BYTES, 0), size, path)
            mapped = mmap.mmap(descriptor, size, access=mmap.ACCESS_READ)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise storage_error(error, path) from error
    return np.frombuffer(mapped, dtype, offset=HEADER_BYTES).reshape(rows, *shape)


def _read_header(header: bytes, size: int, path: Path) -> tuple[np.dtype[Any], int, tuple[int, ...]]:
    if len(header) < HEADER_BYTES or header[:8] != MAGIC:
        raise StorageError(f"{path} is not a data chunk")
    _, format_number, rank, name, rows, row_bytes, *extents = HEADER.unpack(header)
    if format_number > FORMAT:
        raise StorageError(
            f"{path} is a data chunk of format {format_number}, written by a newer p2pnn; this one reads up to {FORMAT}"
        )
    dtype_name = name.rstrip(b"\0").decode("ascii", "replace")
    shape = tuple(extents[:rank])
    if format_number < 1 or rank > RANK_MAX or dtype_name not in DTYPES or rows < 1:
        raise StorageError(f"{path} is a damaged data chunk: its header makes no sense")
    if row_bytes != _row_bytes(dtype_name, shape) or HEADER_BYTES + rows * row_bytes != size:
        raise StorageError(f"{path} is a damaged data chunk: {rows} rows of {row_bytes} bytes in a file of {size}")
    return np.dtype(dtype_name).newbyteorder("<"), rows, shape


def _row_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    count = np.dtype(dtype).itemsize
    for extent in shape:
        count *= extent
    return count
