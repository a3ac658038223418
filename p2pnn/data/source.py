"""From what a person names, a path or `digits`, to a Source. A file is known by its first bytes, not by its name.

The person's own process does this, so that the person's own permissions decide what can be read: the daemon opens no
path that somebody names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from p2pnn.data import csv, idx, images, npz, text
from p2pnn.data.table import Arrays, Source
from p2pnn.errors import DataError

DIGITS: Final = "digits"
"""The packaged data: 1,797 handwritten digits of 8 × 8 pixels (UCI); see digits/README.md for their origin and licence."""

FORMATS: Final = (
    "IDX (also .gz, or a folder with MNIST's four files), npz, npy, CSV with a header line, text in .txt, "
    "and a folder with the images of each class in a subfolder"
)
CSV_SUFFIXES: Final = {".csv", ".tsv", ".txt"}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What rows shall be where a format leaves it open. context: of text, characters of a row, 0 for the usual number.

    size: of images, (height, width) to resize to; channels: 1 or 3; None and 0 leave them as they are. suggested: the size that
    an error advises. labelled: False where labels do not matter, so that an image may be of no class.
    """

    context: int = 0
    size: tuple[int, int] | None = None
    channels: int = 0
    suggested: tuple[int, int] | None = None
    labelled: bool = True


def open_source(
    place: str | Path,
    label: str = "",
    classes: tuple[str, ...] = (),
    *,
    usual_label: str = "",
    wanted: Wanted = Wanted(),
) -> Source:
    """The data at a path, or the packaged `digits`. Reads headers (of a CSV and a text, everything once), not the values.

    label: the column to learn, where the format has names: of a CSV it becomes `y`; elsewhere it must exist. A .txt with
    such a column is a CSV, without it a text.
    usual_label: the column to learn where no label is given and a CSV has a column of that name.
    classes: a trained model's, so that text labels get the same numbers.
    Raises DataError with one sentence for whatever cannot be used.
    """
    if str(place) == DIGITS:
        packaged = Path(__file__).with_name("digits")
        source = Source(DIGITS, idx.open_file(packaged / "digits-images-idx3-ubyte.gz").train)
    else:
        source = _open(Path(place).expanduser(), label, classes, usual_label, wanted)
    if label and not isinstance(source.train, csv.CsvTable) and label not in source.columns:
        raise DataError(f"{place} has no column {label!r}; it has {', '.join(source.columns)}")
    return source


def from_arrays(train: Mapping[str, Any], test: Mapping[str, Any] | None = None, name: str = "data") -> Source:
    """Arrays in memory by column name, rows first. Raises DataError where rows differ or a dtype cannot be used."""
    if test is not None and set(test) != set(train):
        raise DataError(f"train has the arrays {', '.join(sorted(train))}, but test {', '.join(sorted(test))}")
    return Source(name, Arrays(name, train), Arrays(f"{name} (test)", test) if test is not None else None)


def _open(path: Path, label: str, classes: tuple[str, ...], usual_label: str, wanted: Wanted) -> Source:
    try:
        if path.is_dir():
            return _open_folder(path, classes, wanted)
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
    if images.is_image(path):
        return images.open_image(path, wanted.size, wanted.channels)
    if text.is_text(path) and not label and not _is_csv(path, usual_label):
        return text.open_text(path, wanted.context, classes)
    if CSV_SUFFIXES & set(path.suffixes):
        if not label and usual_label and usual_label in csv.header(path):
            label = usual_label
        return csv.open_csv(path, label, classes)
    raise DataError(f"{path} is of no known format. Known are {FORMATS}; a CSV's name ends in .csv")


def _open_folder(path: Path, classes: tuple[str, ...], wanted: Wanted) -> Source:
    if idx.is_folder(path):
        return idx.open_folder(path)
    if text.is_folder(path):
        return text.open_folder(path, wanted.context, classes)
    if images.is_folder(path):
        return images.open_folder(
            path, wanted.size, wanted.channels, classes, labelled=wanted.labelled, suggested=wanted.suggested
        )
    raise DataError(
        f"{path} is a folder without MNIST's files, without train.txt and without images; name a file. "
        f"Known formats: {FORMATS}"
    )


def _is_csv(path: Path, column: str) -> bool:
    """Whether a .txt is a table with such a column: its first line names it."""
    try:
        return bool(column) and column in csv.header(path)
    except DataError:
        return False
