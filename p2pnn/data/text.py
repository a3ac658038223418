"""Text: characters that follow one another, cut into windows; what is learnt is the character that comes next.

A *vocabulary* is the sorted set of a text's characters, and a token is a character's place in it. It is kept where class
names are (`Source.classes`, later the graph's), so that whoever has the trained model can read and write its tokens.

Row i holds the characters [i·T, i·T + T) as `x` and those one further, [i·T + 1, i·T + T + 1), as `y`, for a context of
T. Rows lie end to end: an epoch predicts every character once, and none twice, so an epoch's loss is the text's. (Windows
at random places, as nanoGPT draws them, have no epochs.) What is left at the end and fills no row is dropped.

Rows are of a stretch of the text, and so are splits: the last tenth is what is validated on, and no character that is
predicted there was a target in training. Single rows picked at random would have their neighbours in the training rows.

The text is read twice, in pieces: first for the characters that it holds, then for the rows.
"""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TextIO

import numpy as np
from numpy.typing import NDArray

from p2pnn.data.table import PARTS, ColumnType, Source, Table
from p2pnn.errors import DataError

CONTEXT: Final = 128
"""Characters of a row where nobody said another number: some two lines of prose."""

VOCABULARY_MAX: Final = 8192
"""Different characters of a text. A Chinese novel has 4,000; more is rarely a text in one script, and makes a head that costs
more than the network before it."""

PIECE_CHARS: Final = 1 << 20
"""Characters read at once: 4 MiB as code points."""

SUFFIX: Final = ".txt"

_NAMED_MAX: Final = 10


def is_text(path: Path) -> bool:
    """Whether the file's name says that it is text: `x.txt`, or `x.txt.gz`."""
    return path.name.lower().removesuffix(".gz").endswith(SUFFIX)


def is_folder(path: Path) -> bool:
    """Whether the folder holds a text to train on."""
    return _part(path, "train") is not None


def open_text(path: Path, context: int = 0, vocabulary: Sequence[str] = ()) -> Source:
    """One file of UTF-8 text. context: characters of a row, 0 for CONTEXT. vocabulary: a trained model's, or () to make it.

    Raises DataError for a file that is not text, is shorter than a row, or holds characters that are not in the vocabulary.
    """
    return _source(path.name.removesuffix(".gz")[: -len(SUFFIX)], {"train": path}, context, vocabulary)


def open_folder(path: Path, context: int = 0, vocabulary: Sequence[str] = ()) -> Source:
    """A folder with `train.txt` and perhaps `validation.txt` (or `val.txt`) and `test.txt`; one vocabulary for all."""
    found = {part: file for part in PARTS if (file := _part(path, part)) is not None}
    return _source(path.resolve().name, found, context, vocabulary)


def tokens(text: str, vocabulary: Sequence[str]) -> NDArray[np.int64]:
    """Each character's place in the vocabulary, int64[characters]. Raises DataError that lists the unknown ones."""
    found, unknown = _Codes(vocabulary).of(text)
    if unknown:
        raise DataError(f"{_listed(unknown)} not among the {len(vocabulary)} characters that the model knows")
    return found


class TextTable(Table):
    """x, y: windows of `context` characters as tokens, in the smallest dtype that holds them."""

    def __init__(self, path: Path, context: int, vocabulary: Sequence[str], characters: int) -> None:
        self._path = path
        self._context = context
        self._codes = _Codes(vocabulary)
        rows = (characters - 1) // context
        if rows < 1:
            raise DataError(
                f"{path} holds {characters:,} characters, but a row of context {context} takes {context + 1:,}; give a longer "
                f"text, or in training a smaller --context (a table in {SUFFIX} is read as one with --label)"
            )
        dtype = "uint8" if len(vocabulary) <= 1 << 8 else "uint16"
        super().__init__(str(path), rows, {name: ColumnType(dtype, (context,)) for name in ("x", "y")})

    def blocks(self, rows_max: int, names: Sequence[str]) -> Iterator[dict[str, NDArray[Any]]]:
        context, done = self._context, 0
        dtype = self.columns["x"].dtype
        left = np.empty(0, dtype)
        for piece in _pieces(self._path):
            found, unknown = self._codes.of(piece)
            if unknown:
                raise self._changed()
            left = np.concatenate((left, found.astype(dtype)))
            while (rows := min((len(left) - 1) // context, rows_max, self.rows - done)) > 0:
                stop = rows * context
                given = {"x": left[:stop], "y": left[1 : stop + 1]}
                yield {name: given[name].reshape(rows, context) for name in names}
                left, done = left[stop:], done + rows
        if done != self.rows or len(left) > context:
            raise self._changed()

    def where(self, name: str, row: int, entry: tuple[int, ...]) -> str:
        inside = entry[0] if entry else 0
        return f"{self._path}, character {row * self._context + inside + (name == 'y') + 1:,}"

    def _changed(self) -> DataError:
        return DataError(f"{self._path} was changed while it was read; start again")


class _Codes:
    """From characters to tokens."""

    def __init__(self, vocabulary: Sequence[str]) -> None:
        if any(len(character) != 1 for character in vocabulary):
            raise DataError(
                f"this is a text, but the model's classes are {', '.join(map(repr, vocabulary[:3]))} …: "
                f"it was not trained on text"
            )
        points = _points("".join(vocabulary))
        self._order = np.argsort(points, kind="stable")
        self._sorted = points[self._order]

    def of(self, text: str) -> tuple[NDArray[np.int64], list[str]]:
        """(tokens, the characters that are none, sorted); tokens of those mean nothing."""
        points = _points(text)
        if not len(self._sorted):
            return points.astype(np.int64), sorted(set(text))
        places = np.minimum(np.searchsorted(self._sorted, points), len(self._sorted) - 1)
        wrong = self._sorted[places] != points
        unknown = [chr(point) for point in np.unique(points[wrong])] if wrong.any() else []
        return self._order[places].astype(np.int64, copy=False), unknown


def _source(name: str, files: dict[str, Path], context: int, vocabulary: Sequence[str]) -> Source:
    if context < 0:
        raise DataError(f"context = {context}: a row has at least 1 character")
    counted = {part: _count(path) for part, path in files.items()}
    if vocabulary:
        for part, path in files.items():
            unknown = sorted(counted[part][1] - set(vocabulary))
            if unknown and all(len(character) == 1 for character in vocabulary):
                raise DataError(
                    f"{path}: {_listed(unknown)} not among the {len(vocabulary)} characters that the model knows"
                )
    known = tuple(vocabulary) or tuple(sorted(set[str]().union(*(found for _, found in counted.values()))))
    tables = {part: TextTable(path, context or CONTEXT, known, counted[part][0]) for part, path in files.items()}
    return Source(name, tables["train"], tables.get("test"), known, tables.get("validation"), ordered=True)


def _count(path: Path) -> tuple[int, set[str]]:
    """How many characters the text has, and which."""
    count, found = 0, set[str]()
    for piece in _pieces(path):
        count += len(piece)
        found.update(piece)
        if len(found) > VOCABULARY_MAX:
            raise DataError(
                f"{path} holds more than {VOCABULARY_MAX:,} different characters, which is no text that can be learnt "
                f"by its characters; is it a text at all?"
            )
    return count, found


def _pieces(path: Path) -> Iterator[str]:
    try:
        with _open(path) as file:
            while piece := file.read(PIECE_CHARS):
                yield piece
    except UnicodeDecodeError as error:
        wrong = error.object[error.start : error.start + 1].hex()
        raise DataError(
            f"{path} is not UTF-8 text: its byte {_place(path):,} is 0x{wrong}, which has no place there; convert it"
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _place(path: Path) -> int:
    """Which byte of a text is its first wrong one, from 0."""
    decoder, done = codecs.getincrementaldecoder("utf-8")(), 0
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        while True:
            data = file.read(PIECE_CHARS)
            kept = len(decoder.getstate()[0])
            try:
                decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                return done - kept + error.start
            done += len(data)
            if not data:
                return done


def _open(path: Path) -> TextIO:
    """Line ends become `\\n`, whatever system wrote them."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig")
    return path.open(encoding="utf-8-sig")


def _part(folder: Path, part: str) -> Path | None:
    for stem in PARTS[part]:
        for name in (f"{stem}{SUFFIX}", f"{stem}{SUFFIX}.gz"):
            if (folder / name).is_file():
                return folder / name
    return None


def _points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint32, copy=False)


def _listed(characters: Sequence[str]) -> str:
    """`'é', '€' are`, for the middle of a sentence."""
    more = f" and {len(characters) - _NAMED_MAX:,} more" if len(characters) > _NAMED_MAX else ""
    return f"{', '.join(map(repr, characters[:_NAMED_MAX]))}{more} {'are' if len(characters) > 1 else 'is'}"
