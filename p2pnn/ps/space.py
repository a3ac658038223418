"""One flat space: all trained parameters of a graph, concatenated in graph order, as float32.

Every node derives the same space from the same graph, so offsets need not travel. Arrays in it have ONNX's layouts (as
parameters have everywhere outside an engine) and the machine's byte order; what multiplies, adds or compresses them element by
element does not care where one parameter ends. State (running means and variances) is not trained and has no place here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from p2pnn.errors import ModelError
from p2pnn.model.graph import Graph, Shape

ELEMENT_BYTES: Final = 4

Flat = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Entry:
    """One parameter: elements [start, stop) of the space.

    decay: whether weight decay applies. needed: the index of the first op that reads it (the number of ops where none does).
    """

    name: str
    shape: Shape
    start: int
    stop: int
    decay: bool
    needed: int

    @property
    def size(self) -> int:
        return self.stop - self.start


class Space:
    """The entries in graph order, and how many elements they are together."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.entries = tuple(entries)
        self.size = self.entries[-1].stop if self.entries else 0
        self._by_name = {entry.name: index for index, entry in enumerate(self.entries)}

    @classmethod
    def of(cls, graph: Graph) -> Space:
        """The space of a verified graph. Raises ModelError for a graph without parameters."""
        if not graph.parameters:
            raise ModelError(
                f"the model {graph.name!r} has no parameters: there is nothing for a parameter server to hold"
            )
        first_reader: dict[str, int] = {}
        for index, op in enumerate(graph.ops):
            for name in op.inputs:
                first_reader.setdefault(name, index)
        entries, at = [], 0
        for p in graph.parameters:
            needed = first_reader.get(p.name, len(graph.ops))
            entries.append(Entry(p.name, p.shape, at, at + p.size, p.decay, needed))
            at += p.size
        return cls(entries)

    def only(self, names: Iterable[str]) -> Space:
        """The space of some of the parameters, in the same order, from offset 0: what one segment of a replica works in.

        Raises ModelError for a name that is no parameter.
        """
        entries, at = [], 0
        for index in sorted({self.index(name) for name in names}):
            entry = self.entries[index]
            entries.append(replace(entry, start=at, stop=at + entry.size))
            at += entry.size
        return Space(entries)

    @property
    def byte_count(self) -> int:
        return self.size * ELEMENT_BYTES

    @property
    def decay(self) -> tuple[tuple[int, int, bool], ...]:
        """(start, stop, whether weight decay applies), parameter by parameter."""
        return tuple((entry.start, entry.stop, entry.decay) for entry in self.entries)

    def index(self, name: str) -> int:
        """Which entry it is. Raises ModelError for a name that is no parameter."""
        if name not in self._by_name:
            raise ModelError(f"{name!r} is no parameter of this model")
        return self._by_name[name]

    def entry(self, name: str) -> Entry:
        """Raises ModelError for a name that is no parameter."""
        return self.entries[self.index(name)]

    def views(self, flat: Flat) -> dict[str, Flat]:
        """Each parameter as a view, in its own shape, of one array of the whole space."""
        self.check(flat)
        return {entry.name: flat[entry.start : entry.stop].reshape(entry.shape) for entry in self.entries}

    def join(self, arrays: Mapping[str, NDArray[Any]], out: Flat | None = None) -> Flat:
        """All parameters, by name, copied into one array of the space. Raises ModelError for a missing or misshapen one."""
        flat = np.empty(self.size, np.float32) if out is None else out
        for name, view in self.views(flat).items():
            if name not in arrays or arrays[name].shape != view.shape:
                found = f"has the shape {arrays[name].shape}, not {view.shape}" if name in arrays else "is missing"
                raise ModelError(f"the parameter {name!r} {found}")
            np.copyto(view, arrays[name], casting="same_kind")
        return flat

    def check(self, flat: NDArray[Any]) -> None:
        """Raise ModelError unless it is float32[size], contiguous."""
        if flat.dtype != np.float32 or flat.shape != (self.size,) or not flat.flags.c_contiguous:
            raise ModelError(
                f"{flat.dtype}{list(flat.shape)} is no float32[{self.size}] of the whole space of parameters"
            )


def read_by(graph: Graph, ops: Iterable[int]) -> tuple[str, ...]:
    """The parameters that these ops (indices) read, in graph order: what a segment pushes and fetches."""
    read = {name for index in ops for name in graph.ops[index].inputs}
    return tuple(p.name for p in graph.parameters if p.name in read)
