"""A table: rows over named columns, read from beginning to end in blocks, so that it may be larger than memory.

Every format of data (idx, npz, csv, arrays) is a Table; a Source is one table to train on and perhaps one to test on. Names
are the same everywhere: `x` is what is given, `y` what is to be learnt, where a format has no names of its own.

An array of rows [N, H, W] is read as images of one channel, [N, 1, H, W].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from p2pnn.errors import DataError

READ_DTYPES: Final = {
    "bool": "uint8",
    "uint8": "uint8",
    "int8": "int8",
    "uint16": "uint16",
    "int16": "int16",
    "uint32": "uint32",
    "int32": "int32",
    "int64": "int64",
    "float16": "float32",
    "float32": "float32",
    "float64": "float32",
}
"""A dtype that is read → the one that it is kept as. Everything else is refused."""


PARTS: Final = {"train": ("train",), "validation": ("validation", "valid", "val"), "test": ("test",)}
"""Part of a folder of data → how its file or subfolder may be called."""


@dataclass(frozen=True, slots=True)
class ColumnType:
    """What a column holds: dtype (one of READ_DTYPES' values) and shape of a row.

    features: its entries are measurements of different kinds, so that each is scaled on its own.
    """

    dtype: str
    shape: tuple[int, ...]
    features: bool = False

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize

    @property
    def is_integer(self) -> bool:
        return np.dtype(self.dtype).kind in "iu"


class Table(ABC):
    """rows: how many; at least 1. columns: by name. place: the file or data set, for messages."""

    def __init__(self, place: str, rows: int, columns: Mapping[str, ColumnType]) -> None:
        self.place = place
        self.rows = rows
        self.columns = dict(columns)
        if rows < 1 or not columns:
            raise DataError(f"{place} holds no data")

    @property
    def named(self) -> tuple[str, ...]:
        """The columns as the person's file names them."""
        return tuple(self.columns)

    @abstractmethod
    def blocks(self, rows_max: int, names: Sequence[str]) -> Iterator[dict[str, NDArray[Any]]]:
        """All rows in order, in blocks of 1 … rows_max: name → [n, *shape] of the column's dtype.

        Raises DataError for a value that cannot be read, with its row and column. A block is valid until the next.
        """

    def where(self, name: str, row: int, entry: tuple[int, ...]) -> str:
        """How a person finds a value again. row: from 0; entry: its index within the row."""
        inside = f", entry {list(entry)}" if entry else ""
        return f"{self.place}, row {row} of {name}{inside}"


class Arrays(Table):
    """Arrays in memory, rows first."""

    def __init__(self, place: str, arrays: Mapping[str, Any]) -> None:
        self._arrays = {name: _array(place, name, array) for name, array in arrays.items()}
        columns = {name: column_type(place, name, array.dtype, array.shape[1:]) for name, array in self._arrays.items()}
        super().__init__(place, same_rows(place, {name: len(array) for name, array in self._arrays.items()}), columns)

    def blocks(self, rows_max: int, names: Sequence[str]) -> Iterator[dict[str, NDArray[Any]]]:
        for start in range(0, self.rows, rows_max):
            pieces = {name: self._arrays[name][start : start + rows_max] for name in names}
            yield {name: as_column(piece, self.columns[name]) for name, piece in pieces.items()}


@dataclass(frozen=True, slots=True)
class Source:
    """Data as a person names it. classes: of the labels 0, 1, … of `y`, where they are written as text.

    test, validation: where the data has such parts of its own. ordered: rows follow one another, as those of a text do, so
    that a split is a stretch of them. remarks: sentences on what was left out.
    """

    name: str
    train: Table
    test: Table | None = None
    classes: tuple[str, ...] = ()
    validation: Table | None = None
    ordered: bool = False
    remarks: tuple[str, ...] = ()

    @property
    def columns(self) -> dict[str, ColumnType]:
        return self.train.columns

    def class_count(self, name: str = "y") -> int:
        """How many classes the labels of column `name` have: their greatest value and one.

        Reads that column once. Raises DataError where there is no such column, or a label is no whole number from 0.
        """
        if name not in self.columns:
            raise DataError(f"{self.name} has no column {name}; it has {', '.join(self.columns)}")
        if self.classes and name == "y":
            return len(self.classes)
        kind = self.columns[name]
        if not kind.is_integer or kind.row_bytes != np.dtype(kind.dtype).itemsize:
            raise DataError(f"column {name} of {self.name} holds {kind.dtype}{list(kind.shape)}, which are no classes")
        count = 0
        for table in (self.train, self.test):
            done = 0
            for block in table.blocks(1 << 16, [name]) if table else ():
                labels = block[name].reshape(-1)
                if table and labels.min() < 0:
                    row = int((labels < 0).argmax())
                    where = table.where(name, done + row, ())
                    raise DataError(f"{where}: the label is {labels[row]}, but classes are numbered from 0")
                count = max(count, int(labels.max()) + 1)
                done += len(labels)
        return count


def column_type(place: str, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> ColumnType:
    """The column for an array's dtype and row shape. Raises DataError for a dtype that cannot be used."""
    if dtype.hasobject:
        raise DataError(f"{place}: {name} holds Python objects, which are never loaded; save it as an array of numbers")
    if dtype.name not in READ_DTYPES:
        raise DataError(f"{place}: {name} is {dtype}, which cannot be used; convert it to {', '.join(READ_DTYPES)}")
    if not all(shape):
        raise DataError(f"{place}: rows of {name} have shape {shape}, which holds nothing")
    return ColumnType(READ_DTYPES[dtype.name], (1, *shape) if len(shape) == 2 else tuple(shape))


def same_rows(place: str, counts: Mapping[str, int]) -> int:
    """The one number of rows of all columns. Raises DataError that names two that differ."""
    names = list(counts)
    for name in names[1:]:
        if counts[name] != counts[names[0]]:
            raise DataError(
                f"{place}: {names[0]} has {counts[names[0]]} rows but {name} has {counts[name]}; each row needs both"
            )
    return counts[names[0]] if names else 0


def as_column(rows: NDArray[Any], column: ColumnType) -> NDArray[Any]:
    """Rows as they were read, in the column's dtype and shape; what float32 cannot hold becomes infinite."""
    with np.errstate(over="ignore"):
        return rows.astype(column.dtype, copy=False).reshape(len(rows), *column.shape)


def _array(place: str, name: str, array: Any) -> NDArray[Any]:
    try:
        found = np.asarray(array)
    except ValueError as error:
        raise DataError(f"{place}: {name} is not an array: its rows have different shapes") from error
    if found.ndim == 0:
        raise DataError(f"{place}: {name} is a single value, not an array of rows")
    return found
