"""CSV: a header line with the columns' names, then one row per line.

All columns but the label become one column `x` of float32 features, in the header's order; the label becomes `y`: whole
numbers stay what they are (int64), other numbers float32 (regression), and text becomes classes, numbered in sorted order.

The file is read twice, line by line: first to count the rows and to learn what the labels are, then for the values. A cell
that is empty or not a number is refused with its line and column: guessing a value is for the person to do.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TextIO

import numpy as np
from numpy.typing import NDArray

from p2pnn.data.table import ColumnType, Source, Table
from p2pnn.errors import DataError

DELIMITERS: Final = ",;\t"
CLASSES_MAX: Final = 100_000
"""More different texts than this are not classes, and would fill the memory."""

_INT64: Final = range(-(2**63), 2**63)


def open_csv(path: Path, label: str = "", classes: tuple[str, ...] = ()) -> Source:
    """label: the column to learn, or "" for none. classes: those of a trained model, to number text labels alike.

    Raises DataError for a file without a header, without that column, or with lines of different length.
    """
    table = CsvTable(path, label, classes)
    return Source(path.name.partition(".")[0], table, None, table.classes)


def header(path: Path) -> tuple[str, ...]:
    """The names of a CSV's columns. Raises DataError for a file without a header."""
    return tuple(_read_header(path)[0])


class CsvTable(Table):
    """x: float32[features], y: the label. classes: of the label, where it is text."""

    def __init__(self, path: Path, label: str, classes: tuple[str, ...]) -> None:
        self._path = path
        self._header, self._delimiter = _read_header(path)
        self._label = self._find(label) if label else -1
        self._features = [index for index in range(len(self._header)) if index != self._label]
        labels = _Labels(path, label, classes)
        rows = 0
        for line, cells in self._lines():
            rows += 1
            if self._label >= 0:
                labels.see(line, cells[self._label])
        columns = {"x": ColumnType("float32", (len(self._features),), features=True)} if self._features else {}
        if self._label >= 0 and rows:
            columns["y"] = ColumnType(labels.dtype, ())
        self._labels = labels
        self.classes = labels.classes
        super().__init__(str(path), rows, columns)

    def blocks(self, rows_max: int, names: Sequence[str]) -> Iterator[dict[str, NDArray[Any]]]:
        lines = self._lines()
        done = 0
        while block := list(itertools.islice(lines, rows_max)):
            done += len(block)
            read: dict[str, NDArray[Any]] = {}
            if "x" in names:
                with np.errstate(over="ignore"):  # becomes infinite, and is refused with its line
                    read["x"] = np.array([self._numbers(line, cells) for line, cells in block], np.float32)
            if "y" in names:
                numbers = [self._labels.number(line, cells[self._label]) for line, cells in block]
                with np.errstate(over="ignore"):
                    read["y"] = np.array(numbers, self.columns["y"].dtype)
            yield read
        if done != self.rows:
            raise DataError(f"{self._path} was changed while it was read: it had {self.rows} rows, now {done}")

    @property
    def named(self) -> tuple[str, ...]:
        return tuple(self._header)

    def where(self, name: str, row: int, entry: tuple[int, ...]) -> str:
        column = self._header[self._features[entry[0]] if name == "x" and entry else self._label]
        line = next((line for number, (line, _) in enumerate(self._lines()) if number == row), 0)
        return f"{self._path}, line {line}, column {column}"

    def _find(self, label: str) -> int:
        if label in self._header:
            return self._header.index(label)
        near = difflib.get_close_matches(label, self._header, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(self._header[:20])}"
        raise DataError(f"{self._path} has no column {label!r}; {hint}")

    def _numbers(self, line: int, cells: list[str]) -> list[float]:
        try:
            numbers = [float(cells[index]) for index in self._features]
        except ValueError:
            numbers = [math.nan]
        if all(map(math.isfinite, numbers)) and not any("_" in cell for cell in cells):
            return numbers
        for index in self._features:
            _number(self._path, line, self._header[index], cells[index])
        return numbers  # the `_` was in a label

    def _lines(self) -> Iterator[tuple[int, list[str]]]:
        """(line number from 1, cells) of every row; empty lines are passed over."""
        try:
            with _open(self._path) as file:
                reader = csv.reader(file, delimiter=self._delimiter, strict=True)
                rows = (cells for cells in reader if any(map(str.strip, cells)) or len(cells) > 1)
                next(rows)
                for cells in rows:
                    if len(cells) != len(self._header):
                        raise DataError(
                            f"{self._path}, line {reader.line_num}: {len(cells)} cells, "
                            f"but the header names {len(self._header)} columns"
                        )
                    yield reader.line_num, cells
        except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{self._path} cannot be read as CSV: {error}") from error


class _Labels:
    """Learns from all labels what they are: whole numbers, other numbers, or text."""

    def __init__(self, path: Path, column: str, classes: tuple[str, ...]) -> None:
        self._path = path
        self._column = column
        self._given = {name: number for number, name in enumerate(classes)}
        self._texts: set[str] = set()
        self._whole = not classes
        self._numeric = not classes

    def see(self, line: int, cell: str) -> None:
        text = cell.strip()
        if not text:
            raise DataError(f"{self._path}, line {line}, column {self._column}: the label is missing")
        self._whole = self._whole and _is_whole(text)
        self._numeric = self._numeric and _is_number(text)
        if not self._numeric or len(self._texts) < CLASSES_MAX:
            self._texts.add(text)
        if not self._numeric and len(self._texts) > CLASSES_MAX:
            raise DataError(
                f"{self._path}, line {line}, column {self._column}: more than {CLASSES_MAX} different texts are no classes"
            )

    @property
    def dtype(self) -> str:
        return "int64" if self._whole or not self._numeric else "float32"

    @property
    def classes(self) -> tuple[str, ...]:
        if self._numeric or not self._texts:
            return tuple(self._given)
        return tuple(self._given or sorted(self._texts))

    def number(self, line: int, cell: str) -> float:
        """The label as a number."""
        text = cell.strip()
        if self._whole:
            return int(text)
        if self._numeric:
            return _number(self._path, line, self._column, text)
        if not self._given:
            self._given = {name: number for number, name in enumerate(sorted(self._texts))}
        if text not in self._given:
            raise DataError(
                f"{self._path}, line {line}, column {self._column}: {text!r} is none of the "
                f"{len(self._given)} known classes ({', '.join(list(self._given)[:10])})"
            )
        return self._given[text]


def _number(path: Path, line: int, column: str, cell: str) -> float:
    text = cell.strip()
    if not text:
        raise DataError(f"{path}, line {line}, column {column}: the cell is empty; fill it, or remove the row")
    if not _is_number(text):
        hint = "" if any(c.isdigit() for c in text) else "; if it is what to learn, name it with --label"
        raise DataError(f"{path}, line {line}, column {column}: {text!r} is not a number{hint}")
    return float(text)


def _is_number(text: str) -> bool:
    try:
        return "_" not in text and math.isfinite(float(text))  # Python's own 1_000 is nobody's data
    except ValueError:
        return False


def _is_whole(text: str) -> bool:
    try:
        return "_" not in text and int(text) in _INT64
    except ValueError:
        return False


def _read_header(path: Path) -> tuple[list[str], str]:
    try:
        with _open(path) as file:
            line = next((line for line in file if line.strip()), "")
            delimiter = max(DELIMITERS, key=line.count)
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            names = next((cells for cells in reader if any(map(str.strip, cells)) or len(cells) > 1), [])
            header = [name.strip() for name in names]
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as CSV: {error}") from error
    if not header:
        raise DataError(f"{path} holds no data")
    if any(_is_number(name) for name in header):
        raise DataError(f"{path}, line 1 holds numbers; the first line must name the columns")
    doubled = [name for name in header if header.count(name) > 1 or not name]
    if doubled:
        raise DataError(f"{path}, line 1: the column name {doubled[0]!r} is empty or stands twice")
    return header, delimiter


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")
