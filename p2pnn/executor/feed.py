"""The feed: rows of the data as the graph's inputs, in the engine's layout.

Training step s takes batch k = s mod (steps per epoch) of epoch s div (steps per epoch); micro-batch i of it the rows
[k·batch + i·rows, + rows) of that epoch's order. Evaluation runs through the split's own order; its last micro-batch is
filled up by repeating the last row, and says how many rows are valid. A worker of a data-parallel run has some of the steps and
micro-batches that these numbers count (`ps.allotment`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2pnn.data.batches import SplitReader, epoch_order, scale, split_order
from p2pnn.data.blobs import BlobStore
from p2pnn.engine.base import Array, Engine
from p2pnn.errors import DataError
from p2pnn.job.spec import JobSpec, Split
from p2pnn.model.graph import Value
from p2pnn.ps.allotment import Allotment
from p2pnn.train.machine import Stage


class Feed:
    """Fills graph inputs for one micro-batch at a time. names: the inputs that this node reads in any mode. gone: workers that
    evaluate nothing, so that others do."""

    def __init__(
        self,
        spec: JobSpec,
        engine: Engine,
        blobs: BlobStore,
        names: frozenset[str],
        allotment: Allotment | None = None,
    ) -> None:
        self._spec = spec
        self._allotment = allotment or Allotment()
        self.gone: tuple[int, ...] = ()
        self._rows = spec.rows_per_micro_batch
        self._engine = engine
        self._blobs = blobs
        self._values = {value.name: value for value in spec.graph.inputs if value.name in names}
        self._columns: dict[tuple[str, str], _Column] = {}
        self._orders: dict[str, tuple[int, NDArray[np.int64]]] = {}  # one per split: epochs and validations alternate

    def batches(self, split: str) -> int:
        """Micro-batches of this node's share of one evaluation of a split."""
        return len(self._evaluated(split))

    def _evaluated(self, split: str) -> range:
        return self._allotment.evaluated(self._all_batches(split), self.gone)

    def _all_batches(self, split: str) -> int:
        return -(-self._split(split).rows // self._rows)

    def at(self, stage: Stage, micro_batch: int) -> tuple[int, int]:
        """The job's training step of a micro-batch, and which of that step's it is; an evaluation is all one step 0."""
        step, index = stage.at(micro_batch)
        if stage.mode == "train":
            return self._allotment.batch(step), self._allotment.micro_batches(self._spec.micro_batches)[index]
        return 0, index if stage.tokens else self._evaluated(stage.split)[index]

    def valid_rows(self, stage: Stage, micro_batch: int) -> int:
        """Rows of a micro-batch that are not padding."""
        if stage.mode == "train" or stage.tokens:
            return self._rows
        done = self.at(stage, micro_batch)[1] * self._rows
        return min(self._rows, self._split(stage.split).rows - done)

    def fill(self, stage: Stage, micro_batch: int, arrays: dict[str, Array], inputs: tuple[str, ...]) -> None:
        """Write the rows of a micro-batch into `arrays[input]` for each of `inputs`."""
        if not inputs:
            return
        if stage.tokens:
            for name in inputs:
                self._engine.import_value(self._values[name], self._row(self._values[name], stage.tokens), arrays[name])
            return
        indices = self.indices(stage, micro_batch)
        split = "train" if stage.mode == "train" else stage.split
        for name in inputs:
            column = self._columns.get((split, name))
            if column is None:
                column = self._columns[split, name] = self._open(split, name)
            self._engine.import_value(self._values[name], column.rows(indices), arrays[name])

    def indices(self, stage: Stage, micro_batch: int) -> NDArray[np.int64]:
        """The dataset's row numbers of a micro-batch, padding included."""
        step, index = self.at(stage, micro_batch)
        start = index * self._rows
        if stage.mode == "train":
            epoch, batch = divmod(step, self._spec.steps_per_epoch)
            start += batch * self._spec.batch_size
            found = self._order("train", epoch)[start : start + self._rows]
        else:
            found = self._order(stage.split, -1)[start : start + self._rows]
        if len(found) < self._rows:
            found = np.concatenate((found, np.repeat(found[-1:], self._rows - len(found))))
        return found

    def _row(self, value: Value, tokens: tuple[int, ...]) -> NDArray[np.int64]:
        """Rows that begin with these tokens. What is behind them is nothing: no earlier position looks there."""
        row = np.zeros((self._rows, *value.shape[1:]), np.int64)
        known = len(self._spec.graph.classes)
        if row.ndim != 2 or len(tokens) > row.shape[1] or not all(0 <= token < known for token in tokens):
            raise DataError(
                f"{len(tokens)} tokens do not go into the input {value.name} of the shape {value.shape[1:]}"
            )
        row[:, : len(tokens)] = tokens
        return row

    def _order(self, name: str, epoch: int) -> NDArray[np.int64]:
        """The rows of a split in the order of an epoch, or with -1 in its own."""
        kept = self._orders.get(name)
        if kept is None or kept[0] != epoch:
            split = self._split(name)
            kept = epoch, epoch_order(split, self._spec.seed, epoch) if epoch >= 0 else split_order(split)
            self._orders[name] = kept
        return kept[1]

    def _open(self, split: str, name: str) -> _Column:
        value = self._values[name]
        reader = SplitReader(self._split(split), self._spec.inputs[name], self._blobs)
        return _Column(reader, value, self._rows, self._spec)

    def _split(self, name: str) -> Split:
        split = {"train": self._spec.train, "validation": self._spec.validation, "test": self._spec.test}.get(name)
        if split is None:
            raise DataError(f"the job has no data for its split {name!r}")
        return split


class _Column:
    """One column as one graph input: raw rows, then scaled where the graph says so."""

    def __init__(self, reader: SplitReader, value: Value, rows: int, spec: JobSpec) -> None:
        self._reader = reader
        self._scaling = spec.graph.scaling.get(value.name)
        self._condition = value.dtype == "bool"
        dtype = reader.dtype if self._scaling or self._condition else np.dtype(value.dtype)
        self._raw = np.empty((rows, *reader.shape), dtype)
        shape = (rows, *value.shape[1:])
        if self._raw.size != int(np.prod(shape, dtype=np.int64)):
            raise DataError(
                f"rows of column {reader.column.name} are {reader.shape}, but input {value.name} takes {value.shape[1:]}"
            )
        self._shaped: NDArray[Any] = self._raw.reshape(shape)
        self._scaled = np.empty(shape, np.float32) if self._scaling else None

    def rows(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        """float32, int64 or bool [rows, …] in ONNX's layout; valid until the next call. A condition holds where not 0."""
        self._reader.rows(indices, self._raw)
        if self._condition:
            holds: NDArray[Any] = np.not_equal(self._shaped, 0)
            return holds
        if self._scaling is None or self._scaled is None:
            return self._shaped
        return scale(self._shaped, self._scaling, out=self._scaled)
