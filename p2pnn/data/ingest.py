"""Ingest: read a source once, check every value, cut it into chunks, and fit the scaling on the rows trained on.

Everything streams: a block of rows is read, looked at, and put into the chunk that is being filled; a full chunk goes to
`put`, which gives it to the daemon. Memory is a chunk per column, whatever the size of the data.

Which rows are trained on is a permutation keyed by the seed (`batches.split_order`), so the scaling is fitted in the same
pass, from those rows alone: what is measured on the test rows has not seen them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from p2pnn.data import batches, chunks
from p2pnn.data.fit import Feature
from p2pnn.data.moments import Moments
from p2pnn.data.table import ColumnType, Source, Table
from p2pnn.errors import DataError
from p2pnn.job.spec import Chunk, Column, Dataset, Split
from p2pnn.model.graph import Graph, Scaling
from p2pnn.types import BlobId

Put = Callable[[bytes], BlobId]
"""Stores a chunk durably and returns its name, as `BlobStore.put` does."""

BLOCK_BYTES: Final = 1 << 20
"""Rows are read and checked in blocks of about this size."""

TEST_FRACTION: Final = 0.2


class Ingested(msgspec.Struct, frozen=True):
    """The data of a job. inputs: graph input → column. scaling: of graph inputs. classes: the labels' texts, or ()."""

    train: Split
    validation: Split | None
    test: Split | None
    inputs: dict[str, str]
    scaling: dict[str, Scaling]
    classes: tuple[str, ...]

    def complete(self, graph: Graph) -> Graph:
        """The graph with this data's scaling and class names, so that eval, predict and export apply them."""
        return msgspec.structs.replace(graph, scaling=self.scaling, classes=self.classes or graph.classes)


def ingest(
    source: Source,
    features: Sequence[Feature],
    put: Put,
    *,
    seed: int = 0,
    validation_fraction: float = 0.0,
    test_fraction: float = TEST_FRACTION,
    test: Source | None = None,
    normalize: float | str = "auto",
) -> Ingested:
    """Store the data of a training job: the columns that `features` (from `fit.fit`) names.

    test: data to test on; without it the source's own test part; without that, test_fraction of the rows (rounded up).
    validation_fraction: of the rows that are left, where the source has no such part of its own. Rows that are held apart
    are picked by the seed; where rows are ordered, they are the last ones. normalize: `auto` (integers become −1 … 1 by
    their greatest magnitude, measurements get mean 0 and variance 1 each), `none`, or a number to multiply with.
    Raises DataError for a value that cannot be used (not finite, a label out of range), with its row and column.
    """
    apart = test.test or test.train if test else source.test
    rows = source.train.rows
    training, validating = divide(
        rows, 0.0 if source.validation else validation_fraction, 0.0 if apart else test_fraction
    )
    held_out = rows - training - validating
    if training < 1:
        raise DataError(
            f"{source.name} has {rows} rows; with {held_out} for testing and {validating} for validation none is left"
        )
    if test and test.classes != source.classes:
        raise DataError(
            f"the labels of {test.name} were numbered apart from those of {source.name}: "
            f"{', '.join(test.classes) or 'numbers'} and {', '.join(source.classes) or 'numbers'}"
        )
    for other in (apart, source.validation):
        if other:
            _check_same(source.train.columns, other, features)
    keyed = -1 if source.ordered else seed
    order = Split(Dataset(source.name, rows, ()), 0, training, keyed)
    trained_on = np.zeros(rows, np.bool_)
    trained_on[batches.split_order(order)] = True
    moments = {feature.column: Moments() for feature in features if _is_scaled(feature, source.columns, normalize)}
    dataset = _store(source.train, source.name, source.classes, features, put, moments, trained_on)
    tests = None
    if apart:
        name = test.name if test else f"{source.name}-test"
        tests = _whole(_store(apart, name, source.classes, features, put))
    elif held_out:
        tests = Split(dataset, training + validating, rows, keyed)
    validation = Split(dataset, training, training + validating, keyed) if validating else None
    if source.validation:
        validation = _whole(_store(source.validation, f"{source.name}-validation", source.classes, features, put))
    return Ingested(
        train=Split(dataset, 0, training, keyed),
        validation=validation,
        test=tests,
        inputs={feature.input: feature.column for feature in features},
        scaling={
            feature.input: _scaling(source.columns[feature.column], moments[feature.column], normalize)
            for feature in features
            if feature.column in moments and not feature.target and not feature.whole
        },
        classes=source.classes,
    )


def ingest_rows(table: Table, name: str, features: Sequence[Feature], put: Put) -> Split:
    """Store all rows of a table, in their order, to evaluate or predict. Raises DataError as `ingest` does."""
    return _whole(_store(table, name, (), features, put))


def divide(rows: int, validation_fraction: float, test_fraction: float) -> tuple[int, int]:
    """(rows to train on, rows to validate on) of `rows`; the others, test_fraction of them rounded up, are to test on."""
    held_out = math.ceil(rows * test_fraction)
    validating = math.ceil((rows - held_out) * validation_fraction)
    return rows - held_out - validating, validating


def fingerprint(dataset: Dataset) -> str:
    """16 hex digits of a data set's content: equal for equal rows in equal order, whatever it is called."""
    columns = sorted((c.name, c.dtype, list(c.shape), [chunk.blob for chunk in c.chunks]) for c in dataset.columns)
    return hashlib.sha256(msgspec.msgpack.encode(columns)).hexdigest()[:16]


def _whole(dataset: Dataset) -> Split:
    return Split(dataset, 0, dataset.rows)


def _store(
    table: Table,
    name: str,
    classes: tuple[str, ...],
    features: Sequence[Feature],
    put: Put,
    moments: Mapping[str, Moments] | None = None,
    trained_on: NDArray[np.bool_] | None = None,
) -> Dataset:
    """Read a table once: check it, fit `moments` on the rows trained on, write its chunks."""
    writers: dict[str, _ColumnWriter] = {}
    for feature in features:
        writers.setdefault(feature.column, _ColumnWriter(feature, table.columns[feature.column], put))
    labels = {feature.column: feature.classes for feature in features if feature.classes}
    names = list(writers)
    row_bytes = sum(table.columns[column].row_bytes for column in names)
    done = 0
    for block in table.blocks(max(1, BLOCK_BYTES // max(1, row_bytes)), names):
        count = len(block[names[0]])
        for column, rows in block.items():
            _check_values(table, column, rows, done, labels.get(column, 0))
            writers[column].write(rows)
            if moments and trained_on is not None and column in moments:
                moments[column].add(rows[trained_on[done : done + count]])
        done += count
    return Dataset(name, table.rows, tuple(writer.finish() for writer in writers.values()), classes)


class _ColumnWriter:
    """Fills chunks with the rows of one column, shaped as the graph's input takes them."""

    def __init__(self, feature: Feature, column: ColumnType, put: Put) -> None:
        self._name = feature.column
        self._put = put
        self._buffer = np.empty((chunks.rows_per_chunk(column.dtype, feature.shape), *feature.shape), column.dtype)
        self._filled = 0
        self._chunks: list[Chunk] = []

    def write(self, rows: NDArray[Any]) -> None:
        rows = rows.reshape(len(rows), *self._buffer.shape[1:])
        while len(rows):
            taken = rows[: len(self._buffer) - self._filled]
            self._buffer[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
            rows = rows[len(taken) :]
            if self._filled == len(self._buffer):
                self._flush()

    def finish(self) -> Column:
        if self._filled:
            self._flush()
        return Column(self._name, self._buffer.dtype.name, self._buffer.shape[1:], tuple(self._chunks))

    def _flush(self) -> None:
        self._chunks.append(Chunk(self._put(chunks.write(self._buffer[: self._filled])), self._filled))
        self._filled = 0


def _check_values(table: Table, name: str, rows: NDArray[Any], first: int, classes: int) -> None:
    if rows.dtype.kind == "f":
        wrong = ~np.isfinite(rows)
        if wrong.any():
            row, *entry = (int(index) for index in np.argwhere(wrong)[0])
            value = rows[(row, *entry)]
            found = "NaN" if np.isnan(value) else "infinite, or too large for float32"
            raise DataError(
                f"{table.where(name, first + row, tuple(entry))}: the value is {found}; mend or remove the row"
            )
    elif classes:
        wrong = (rows < 0) | (rows >= classes)
        if wrong.any():
            row, *entry = (int(index) for index in np.argwhere(wrong)[0])
            raise DataError(
                f"{table.where(name, first + row, tuple(entry))}: the number is {rows[(row, *entry)]}, "
                f"but the model has {classes} classes, 0 to {classes - 1}"
            )


def _check_same(columns: Mapping[str, ColumnType], apart: Table, features: Sequence[Feature]) -> None:
    """The rows to test on must have the columns that are trained on, in the same shape."""
    for feature in features:
        mine, other = columns[feature.column], apart.columns.get(feature.column)
        if other is None:
            raise DataError(f"{apart.place} has no column {feature.column}, which is trained on")
        if math.prod(other.shape) != math.prod(mine.shape) or other.is_integer != mine.is_integer:
            raise DataError(
                f"{feature.column} is {mine.dtype}{list(mine.shape)} in the data to train on but "
                f"{other.dtype}{list(other.shape)} in {apart.place}"
            )


def _is_scaled(feature: Feature, columns: Mapping[str, ColumnType], normalize: float | str) -> bool:
    column = columns[feature.column]
    if feature.target or feature.whole or normalize == "none":
        return False
    return normalize != "auto" or column.is_integer or column.features


def _scaling(column: ColumnType, moments: Moments, normalize: float | str) -> Scaling:
    if not isinstance(normalize, str):
        return Scaling((0.0,), (float(normalize),))
    if column.is_integer:
        return Scaling((0.0,), (1.0 / moments.magnitude if moments.magnitude else 1.0,))
    return Scaling(tuple(moments.mean.tolist()), tuple((1.0 / moments.deviation).tolist()))
