"""IDX, the format of MNIST: a big-endian header (two zero bytes, type, rank, one uint32 per axis), then the values.

Read as a stream, gzipped or not. A folder with the four files of MNIST, under their usual names, has a part to train on and
a part to test on; a lone file of images brings the labels that lie beside it.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from p2pnn.data.table import Source, Table, as_column, column_type, same_rows
from p2pnn.errors import DataError

TYPES: Final = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
RANK_MAX: Final = 6
PARTS: Final = ("train", "t10k")
GZIP_MAGIC: Final = b"\x1f\x8b"


def is_idx(path: Path) -> bool:
    """Whether the file begins as IDX does, looked at through gzip."""
    try:
        with _open(path) as file:
            head = file.read(4)
    except (OSError, EOFError, zlib.error):
        return False
    return len(head) == 4 and head[:2] == b"\0\0" and head[2] in TYPES and 1 <= head[3] <= RANK_MAX


def is_folder(path: Path) -> bool:
    """Whether the folder holds files with MNIST's names."""
    return path.is_dir() and _find(path, "train", "images") is not None


def open_folder(path: Path) -> Source:
    """The four files of MNIST; without the t10k pair there is no part to test on."""
    tables: list[IdxTable | None] = []
    for part in PARTS:
        images, labels = _find(path, part, "images"), _find(path, part, "labels")
        if images is None and labels is None:
            tables.append(None)
            continue
        if images is None or labels is None:
            raise DataError(f"{path} has {part}-{'images' if images else 'labels'} but not the other of the pair")
        tables.append(IdxTable({"x": images, "y": labels}))
    train, test = tables
    assert train is not None
    return Source(path.resolve().name, train, test)


def open_file(path: Path) -> Source:
    """One file: column x, and column y where a file of labels lies beside one of images."""
    paths = {"x": path}
    if "images" in path.name:
        beside = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
        if beside.exists():
            paths["y"] = beside
    return Source(path.name.partition(".")[0].removesuffix("-ubyte"), IdxTable(paths))


class IdxTable(Table):
    """Columns of IDX files with equally many rows."""

    def __init__(self, paths: dict[str, Path]) -> None:
        self._headers = {name: _read_header(path) for name, path in paths.items()}
        place = str(next(iter(paths.values())))
        columns = {
            name: column_type(str(header.path), name, header.dtype, header.shape[1:])
            for name, header in self._headers.items()
        }
        counts = {str(header.path): header.shape[0] for header in self._headers.values()}
        super().__init__(place, same_rows("data", counts), columns)

    def blocks(self, rows_max: int, names: Sequence[str]) -> Iterator[dict[str, NDArray[Any]]]:
        streams = {name: self._rows(name, rows_max) for name in names}
        for _ in range(0, self.rows, rows_max):
            yield {name: next(stream) for name, stream in streams.items()}

    def where(self, name: str, row: int, entry: tuple[int, ...]) -> str:
        inside = f", entry {list(entry)}" if entry else ""
        return f"{self._headers[name].path}, row {row}{inside}"

    def _rows(self, name: str, rows_max: int) -> Iterator[NDArray[Any]]:
        header, column = self._headers[name], self.columns[name]
        row_bytes = math.prod(header.shape[1:]) * header.dtype.itemsize
        try:
            with _open(header.path) as file:
                file.read(4 + 4 * len(header.shape))
                for start in range(0, self.rows, rows_max):
                    count = min(rows_max, self.rows - start)
                    data = file.read(count * row_bytes)
                    if len(data) != count * row_bytes:
                        raise DataError(
                            f"{header.path} is cut short: it announces {self.rows} rows and ends in or before "
                            f"row {start + len(data) // row_bytes}"
                        )
                    yield as_column(np.frombuffer(data, header.dtype).reshape(count, -1), column)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{header.path} cannot be read: {error}") from error


@dataclass(frozen=True, slots=True)
class _Header:
    path: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


def _read_header(path: Path) -> _Header:
    try:
        with _open(path) as file:
            head = file.read(4)
            rank = head[3] if len(head) == 4 else 0
            extents = file.read(4 * rank)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not 1 <= rank <= RANK_MAX or head[:2] != b"\0\0" or head[2] not in TYPES or len(extents) != 4 * rank:
        raise DataError(f"{path} is not an IDX file")
    header = _Header(path, np.dtype(TYPES[head[2]]), struct.unpack(f">{rank}I", extents))
    announced = math.prod(header.shape) * header.dtype.itemsize
    if not _is_packed(path) and (there := path.stat().st_size - 4 - 4 * rank) < announced:
        raise DataError(
            f"{path} is cut short: it announces {header.shape[0]} rows, which take {announced} bytes, and {there} follow"
        )
    return header


def _open(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path, "rb")) if _is_packed(path) else path.open("rb")


def _is_packed(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == GZIP_MAGIC


def _find(folder: Path, part: str, what: str) -> Path | None:
    rank = 3 if what == "images" else 1
    for name in (f"{part}-{what}-idx{rank}-ubyte", f"{part}-{what}.idx{rank}-ubyte"):
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    return None
