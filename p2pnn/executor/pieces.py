"""Shards and checkpoints: a shard's arrays from whole tensors or pieces of them, and its optimizer's arrays as pieces.

What a part of a checkpoint holds is named by parameters, not by shards (`parts`), so a run goes on with any number of shards, and
also without any. Parameters themselves are in the part of worker 0, as in every other run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from p2pnn.data.blobs import BlobStore
from p2pnn.executor import parts
from p2pnn.job.checkpoint import Manifest, Part
from p2pnn.job.spec import JobSpec
from p2pnn.model.initial import initial
from p2pnn.ps.consistency import Settings
from p2pnn.ps.sharding import Piece, ShardRange
from p2pnn.ps.space import Flat, Space
from p2pnn.train.optimizers import SLOTS, slot_name

OUTER: Final = "outer/"
"""In front of the slots of the outer optimizer of `local:H`: the job's own optimizer may have some of the same name."""


class Pieces:
    """ranges: the shards that this node serves. slots: of the optimizer."""

    def __init__(self, spec: JobSpec, settings: Settings, ranges: Mapping[int, ShardRange]) -> None:
        self._spec = spec
        self._local = settings.consistency.kind == "local"
        self.slots = SLOTS[settings.outer.kind if self._local else spec.optimizer.kind]
        self._ranges = ranges
        self._entries = Space.of(spec.graph).entries

    def source(self, blobs: BlobStore, manifest: Manifest | None) -> parts.Parts | None:
        """Where arrays are read from: the checkpoint, else the parts that the job starts from, else None: they are drawn."""
        if manifest is not None:
            return parts.Parts(blobs, [part.blob for part in manifest.parts])
        return parts.Parts(blobs, self._spec.initial) if self._spec.initial else None

    def read(self, source: parts.Parts | None, shard: int, *, with_slots: bool) -> dict[str, Flat]:
        """A shard's `parameters` and, if asked for, each slot, float32[its size].

        Raises CheckpointError for what is missing; the outer optimizer's slots are zero where a run begins to have one.
        """
        graph = self._spec.graph

        def parameter(index: int) -> Flat:
            wanted = graph.parameters[index]
            if source is None:
                return initial(wanted, self._spec.seed)
            return source.read(wanted.name, wanted.shape)

        found = {"parameters": self._fill(shard, parameter)}
        for slot in self.slots if with_slots else ():

            def array(index: int, slot: str = slot) -> Flat:
                wanted = graph.parameters[index]
                name = self._name(slot, wanted.name)
                if source is None or (self._local and name not in source):
                    return np.zeros(wanted.shape, np.float32)
                return source.read(name, wanted.shape)

            found[slot] = self._fill(shard, array)
        return found

    def write(self, blobs: BlobStore, arrays: Mapping[int, Mapping[str, Flat]]) -> Part | None:
        """Write the optimizer's arrays of these shards as a part; None where it has none. Raises StorageError."""
        entries: list[parts.Entry] = []
        for number, held in arrays.items():
            for piece in self._ranges[number].pieces:
                entries += [self._entry(piece, slot, held[slot]) for slot in self.slots]
        return parts.write(blobs, (), entries) if entries else None

    def _entry(self, piece: Piece, slot: str, array: Flat) -> parts.Entry:
        parameter = self._spec.graph.parameters[piece.entry]
        name, values = self._name(slot, parameter.name), array[piece.at : piece.at + piece.size]
        if piece.size == parameter.size:
            return name, parameter.shape, lambda: values
        first = self._entries[piece.entry].start
        return parts.piece_name(name, piece.start - first, piece.stop - first), (piece.size,), lambda: values

    def _fill(self, shard: int, get: Callable[[int], Flat]) -> Flat:
        """The shard's buffer of one array per parameter, which `get` gives by the parameter's number."""
        found = np.empty(self._ranges[shard].size, np.float32)
        for piece in self._ranges[shard].pieces:
            first = self._entries[piece.entry].start
            whole = get(piece.entry).reshape(-1)
            found[piece.at : piece.at + piece.size] = whole[piece.start - first : piece.stop - first]
        return found

    def _name(self, slot: str, parameter: str) -> str:
        return slot_name(OUTER + slot if self._local else slot, parameter)
