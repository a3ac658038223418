"""From what a person names, a path or `digits`, to a Source. A file is known by its first bytes, not by its name.

The person's own process does this, so that the person's own permissions decide what can be read: the daemon opens no
path that somebody names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from p2pnn.data import csv, idx, npz
from p2pnn.data.table import Arrays, Source
from p2pnn.errors import DataError

DIGITS: Final = "digits"
"""The packaged data: 1,797 handwritten digits of 8 × 8 pixels (UCI); see digits/README.md for their origin and licence."""

FORMATS: Final = "IDX (also .gz, or a folder with MNIST's four files), npz, npy, and CSV with a header line"
CSV_SUFFIXES: Final = {".csv", ".tsv", ".txt"}


def open_source(place: str | Path, label: str = "", classes: tuple[str, ...] = (), *, usual_label: str = "") -> Source:
    """The data at a path, or the packaged `digits`. Reads headers (of a CSV, all lines once), not the values.

    label: the column to learn, where the format has names: of a CSV it becomes `y`; elsewhere it must exist.
    usual_label: the column to learn where no label is given and a CSV has a column of that name.
    classes: a trained model's, so that text labels get the same numbers.
    Raises DataError with one sentence for whatever cannot be used.
    """
    if str(place) == DIGITS:
        packaged = Path(__file__).with_name("digits")
        source = Source(DIGITS, idx.open_file(packaged / "digits-images-idx3-ubyte.gz").train)
    else:
        source = _open(Path(place).expanduser(), label, classes, usual_label)
    if label and not isinstance(source.train, csv.CsvTable) and label not in source.columns:
        raise DataError(f"{place} has no column {label!r}; it has {', '.join(source.columns)}")
    return source


def from_arrays(train: Mapping[str, Any], test: Mapping[str, Any] | None = None, name: str = "data") -> Source:
    """Arrays in memory by column name, rows first. Raises DataError where rows differ or a dtype cannot be used."""
    if test is not None and set(test) != set(train):
        raise DataError(f"train has the arrays {', '.join(sorted(train))}, but test {', '.join(sorted(test))}")
    return Source(name, Arrays(name, train), Arrays(f"{name} (test)", test) if test is not None else None)


def _open(path: Path, label: str, classes: tuple[str, ...], usual_label: str) -> Source:
    try:
        if path.is_dir():
            if idx.is_folder(path):
                return idx.open_folder(path)
            raise DataError(f"{path} is a folder without MNIST's files; name a file. Known formats: {FORMATS}")
        with path.open("rb") as file:
            head = file.read(8)
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}; --data takes a path, or digits for the packaged ones") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    if not head:
        raise DataError(f"{path} is empty")
    if head.startswith(npz.NPY_MAGIC):
        return npz.open_npy(path)
    if head.startswith(npz.ZIP_MAGIC):
        return npz.open_npz(path)
    if idx.is_idx(path):
        return idx.open_file(path)
    if CSV_SUFFIXES & set(path.suffixes):
        if not label and usual_label and usual_label in csv.header(path):
            label = usual_label
        return csv.open_csv(path, label, classes)
    raise DataError(f"{path} is of no known format. Known are {FORMATS}; a CSV's name ends in .csv")
