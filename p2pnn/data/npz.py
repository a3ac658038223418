"""npy and npz: numpy's files, read as streams, so that an array may be larger than memory.

An npz is a zip of npy files; each key is a column. Keys that end in `_test` are the part to test on, and `_train` may be
written after the others: `x_train, y_train, x_test, y_test` and `x, y, x_test, y_test` are the same data.

An npy file may hold pickled Python objects; such a file is refused from its header, before anything of it is read.
"""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from p2pnn.data.table import Source, Table, as_column, column_type, same_rows
from p2pnn.errors import DataError

NPY_MAGIC: Final = b"\x93NUMPY"
ZIP_MAGIC: Final = b"PK\x03\x04"
READ_ERRORS: Final = (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile, struct.error, NotImplementedError)


def open_npy(path: Path) -> Source:
    """One array as the column x."""
    return Source(path.stem, NpyTable(str(path), {"x": lambda: path.open("rb")}))


def open_npz(path: Path) -> Source:
    """Every key a column; those named `…_test` apart. Raises DataError for a file that is not what its name says."""
    try:
        with zipfile.ZipFile(path) as file:
            keys = [name.removesuffix(".npy") for name in file.namelist() if name.endswith(".npy")]
    except READ_ERRORS as error:
        raise DataError(f"{path} is not a readable npz file: {error}") from error
    for key in keys:
        if key.removesuffix("_train") in keys and key.endswith("_train"):
            plain = key.removesuffix("_train")
            raise DataError(
                f"{path} holds both {plain} and {key}, which are the same column; remove or rename one of them"
            )
    train = {key.removesuffix("_train"): key for key in keys if not key.endswith("_test")}
    test = {key.removesuffix("_test"): key for key in keys if key.endswith("_test")}
    if not train:
        raise DataError(f"{path} holds no arrays to train on; save it with numpy.savez(file, x=…, y=…)")
    if test and set(test) != set(train):
        raise DataError(
            f"{path} has {', '.join(sorted(train))} to train on but {', '.join(sorted(test))} to test on; "
            f"both parts need the same arrays"
        )
    return Source(path.stem, _npz_table(path, train), _npz_table(path, test) if test else None)


class NpyTable(Table):
    """Columns of npy streams. openers: name → a function that opens the stream at its beginning."""

    def __init__(self, place: str, openers: dict[str, Callable[[], IO[bytes]]]) -> None:
        self._openers = openers
        self._headers = {name: self._header(place, name) for name in openers}
        columns = {
            name: column_type(place, name, header.dtype, header.shape[1:]) for name, header in self._headers.items()
        }
        counts = {name: header.shape[0] for name, header in self._headers.items()}
        super().__init__(place, same_rows(place, counts), columns)

    def blocks(self, rows_max: int, names: Sequence[str]) -> Iterator[dict[str, NDArray[Any]]]:
        streams = {name: self._rows(name, rows_max) for name in names}
        for _ in range(0, self.rows, rows_max):
            yield {name: next(stream) for name, stream in streams.items()}

    def _header(self, place: str, name: str) -> _Header:
        try:
            with self._openers[name]() as file:
                header = _read_header(file)
        except READ_ERRORS as error:
            raise DataError(f"{place}: {name} cannot be read as a numpy array: {error}") from error
        if not header.shape:
            raise DataError(f"{place}: {name} is a single value, not an array of rows")
        return header

    def _rows(self, name: str, rows_max: int) -> Iterator[NDArray[Any]]:
        header, column = self._headers[name], self.columns[name]
        row_bytes = math.prod(header.shape[1:]) * header.dtype.itemsize
        try:
            with self._openers[name]() as file:
                _read_header(file)
                whole = _read_columns_first(file, header) if header.fortran and len(header.shape) > 1 else None
                for start in range(0, self.rows, rows_max):
                    count = min(rows_max, self.rows - start)
                    if whole is not None:
                        rows = whole[start : start + count]
                    else:
                        rows = np.frombuffer(_read(file, count * row_bytes), header.dtype)
                    yield as_column(rows.reshape(count, *header.shape[1:]), column)
        except READ_ERRORS as error:
            raise DataError(f"{self.place}: {name} cannot be read: {error}") from error


@dataclass(frozen=True, slots=True)
class _Header:
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]


def _npz_table(path: Path, keys: dict[str, str]) -> NpyTable:
    return NpyTable(str(path), {name: _Member(path, f"{key}.npy") for name, key in keys.items()})


@dataclass(frozen=True, slots=True)
class _Member:
    """Opens one member of a zip; the zip file closes with the stream."""

    path: Path
    name: str

    def __call__(self) -> IO[bytes]:
        with zipfile.ZipFile(self.path) as file:
            return file.open(self.name)


def _read_header(file: IO[bytes]) -> _Header:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return _Header(*np.lib.format.read_array_header_1_0(file))
    if version == (2, 0):
        return _Header(*np.lib.format.read_array_header_2_0(file))
    raise ValueError(f"npy version {version[0]}.{version[1]} is not one of arrays of numbers")


def _read_columns_first(file: IO[bytes], header: _Header) -> NDArray[Any]:
    """An array in Fortran's order has no row in one piece: it is read whole."""
    data = _read(file, math.prod(header.shape) * header.dtype.itemsize)
    return np.frombuffer(data, header.dtype).reshape(header.shape[::-1]).T


def _read(file: IO[bytes], count: int) -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise ValueError("it is cut short")
    return data
