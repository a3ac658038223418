"""What this node's ops own: parameters, state, gradients and the optimizer's arrays; loading, updating and saving them.

A node that runs d updates behind keeps older versions of its parameters too (see `versions`). Those that coming steps read
are part of a checkpoint that is taken before the last step, so that the run goes on with the same bits.

In a data-parallel run the shards of the parameter server own the parameters and the optimizer's arrays: a replica's weights are
a copy that is installed from outside, and its gradients are taken from here (`gradients`) instead of applied.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from p2pnn.data.blobs import BlobStore
from p2pnn.engine.base import Array, Engine, Tensors
from p2pnn.errors import JobFailedError
from p2pnn.executor import parts
from p2pnn.executor.looks import Looks
from p2pnn.executor.versions import Versions, sets_needed
from p2pnn.job.checkpoint import Manifest, Part, version_name
from p2pnn.job.spec import JobSpec
from p2pnn.model.flow import Flow
from p2pnn.model.graph import Parameter
from p2pnn.model.initial import initial
from p2pnn.ps.space import Flat, Space
from p2pnn.train import clipping, rates
from p2pnn.train.optimizers import Combine, Updater, slot_name
from p2pnn.train.schedule import Routes
from p2pnn.types import BlobId

_NONE: Final[Flat] = np.empty(0, np.float32)


class Weights:
    """tensors: the engine's; slots: optimizer slot → parameter → float32 array in the engine's layout; fuse: the parameters
    that backward passes update themselves. delay: how many updates behind this node runs. micro_batches: of a step on this node;
    0 for the job's. flat, flat_gradient: of a data-parallel run, float32 of the space of this node's parameters (`ps.space`).
    """

    def __init__(self, spec: JobSpec, routes: Routes, engine: Engine, delay: int = 0, micro_batches: int = 0) -> None:
        self._spec = spec
        self._micro_batches = micro_batches or spec.micro_batches
        self._routes = routes
        self._engine = engine
        self._training = spec.kind == "train"
        self.fuse = fused(spec, engine, routes.flow, delay) if self._training else frozenset()
        self.tensors: Tensors = engine.allocate(
            spec.graph,
            routes.ops,
            training=self._training,
            versions=sets_needed(delay),
            fuse=self.fuse,
            micro_batches=self._micro_batches,
        )
        changing = {name for name, _ in self.tensors.gradients} | (self.fuse & self.tensors.parameters.keys())
        read_back = {name for name in changing if routes.flow.read_back(name)}
        self.versions = Versions(self.tensors.versions, delay, changing, read_back)
        self._parameters = [p for p in spec.graph.parameters if p.name in self.tensors.parameters]
        self._state = [p for p in spec.graph.state if p.name in self.tensors.state]
        self._updater = Updater(spec.optimizer, engine.combine)
        slots = self._updater.slots if self._training and spec.data is None else ()
        self.slots: dict[str, dict[str, Array]] = {
            slot: {name: np.zeros_like(array) for name, array in self.tensors.parameters.items()} for slot in slots
        }
        self._totals: dict[str, Array] | None = None
        self.flat, self.flat_gradient = self._lie_flat() if spec.data is not None else (_NONE, _NONE)

    def _lie_flat(self) -> tuple[Flat, Flat]:
        """The space of this node's parameters and that of their gradients, in which lie those of its tensors whose layout is
        ONNX's: nothing need be copied for them. Others are copied when they are installed and handed over."""
        space = Space.of(self._spec.graph).only(self.tensors.parameters)
        flat, flat_gradient = np.zeros(space.size, np.float32), np.zeros(space.size, np.float32)
        views, gradients = space.views(flat), space.views(flat_gradient)
        readers = Counter(name for name, _ in self.tensors.gradients)
        for name, array in self.tensors.parameters.items():
            plain = self._engine.parameter_view(self._spec.graph, name, array)
            if plain.shape == array.shape and plain.strides == array.strides:
                self.tensors.parameters[name] = views[name]
        for name, op in self.tensors.gradients:
            if self.tensors.parameters[name] is views[name] and readers[name] == 1:
                self.tensors.gradients[name, op] = gradients[name]
        return flat, flat_gradient

    @property
    def memory_bytes(self) -> int:
        """Everything that lives from step to step, and the gradients."""
        held = [*self.tensors.state.values(), *self.tensors.gradients.values()]
        held += [array for partial in self.tensors.partial for array in partial.values()]
        held += [array for slot in self.slots.values() for array in slot.values()]
        flat = sum(array.nbytes for array in held if np.may_share_memory(array, self.flat_gradient))
        flat += sum(array.nbytes for array in self.tensors.parameters.values() if np.may_share_memory(array, self.flat))
        both = self.flat.nbytes + self.flat_gradient.nbytes
        return self.versions.memory_bytes + sum(array.nbytes for array in held) - flat + both

    def load(self, blobs: BlobStore, manifest: Manifest | None) -> None:
        """Fill everything: from the checkpoint, else from the spec's initial parts, else drawn from the seed.

        Raises CheckpointError for parts that do not fit the model.
        """
        if manifest is not None:
            source = parts.Parts(blobs, [part.blob for part in manifest.parts])
            if self._training:
                self.versions.restart(manifest.step)
            self._read(source.read)
            self._read_older(source)
            for slot, arrays in self.slots.items():
                for parameter in self._parameters:
                    found = source.read(slot_name(slot, parameter.name), parameter.shape)
                    self._put(arrays[parameter.name], parameter, found)
        elif self._spec.initial:
            self._read(parts.Parts(blobs, self._spec.initial).read)
        else:
            for parameter in (*self._parameters, *self._state):
                self._put(self._array(parameter), parameter, initial(parameter, self._spec.seed))

    def restore(self, blobs: BlobStore, blob_ids: Sequence[str]) -> None:
        """Load parameters and state, not the optimizer's arrays, from other parts."""
        self._read(parts.Parts(blobs, [BlobId(blob) for blob in blob_ids]).read)

    def save(self, blobs: BlobStore, others: Iterable[parts.Entry] = ()) -> Part:
        """Write this node's part of a checkpoint, with other tensors that do not count for its bits. Raises StorageError; the
        tensors are untouched either way."""
        named = [(p.name, p.shape, self._exporter(p, self._array(p))) for p in (*self._parameters, *self._state)]
        more = list(others)
        for slot, arrays in self.slots.items():
            more += [(slot_name(slot, p.name), p.shape, self._exporter(p, arrays[p.name])) for p in self._parameters]
        if self.versions.updates < self._spec.steps:
            for number, held in self.versions.older():
                kept = [p for p in self._parameters if p.name in held]
                more += [(version_name(number, p.name), p.shape, self._exporter(p, held[p.name])) for p in kept]
        return parts.write(blobs, named, more)

    @property
    def combine(self) -> Combine:
        """y ← α·x + β·y, as the engine makes it."""
        return self._engine.combine

    def view(self, name: str) -> Array:
        """A parameter of this node as it is now, in ONNX's layout, without a copy."""
        return self._engine.parameter_view(self._spec.graph, name, self.versions.newest[name])

    def gradient(self, name: str) -> Array:
        """The accumulator of a parameter that one op reads, in ONNX's layout, without a copy."""
        found = next(array for (parameter, _), array in self.tensors.gradients.items() if parameter == name)
        return self._engine.parameter_view(self._spec.graph, name, found)

    def gradients(self, squares: Any = None) -> tuple[dict[str, Array], float]:
        """Sum the step's gradients: parameter name → total in ONNX's layout, without a copy, and what clipping by their norm
        multiplies them by: that over all nodes of the replica whose `squares` are given, as for `update`, else their own. They
        hold until the next backward pass."""
        totals, self._totals = self._totals, None
        if totals is None:
            totals = self._end_step()
        scale = 1.0
        if self._spec.optimizer.clip_norm:
            if squares is not None:
                norm = clipping.norm(self._spec.graph, self._routes.owned, squares)
            else:
                norm = math.sqrt(math.fsum(clipping.squares(total) for total in totals.values()))
            if math.isfinite(norm):  # others are refused where they arrive
                scale = clipping.scale(norm, self._spec.optimizer.clip_norm)
        graph = self._spec.graph
        return {name: self._engine.parameter_view(graph, name, total) for name, total in totals.items()}, scale

    def squares(self) -> list[float]:
        """Sum the step's gradients, and Σ g² of each parameter that this node owns, in graph order (0 without gradient)."""
        self._totals = self._end_step()
        owned = self._routes.owned[self._routes.node_index]
        return [clipping.squares(self._totals[name]) if name in self._totals else 0.0 for name in owned]

    def update(self, step: int, squares: Any, forwarded: int = 0, looks: Looks | None = None) -> None:
        """Apply the step's gradients, scaled where the job clips: by the norm over all nodes whose `squares` (node → its
        squares) are given, else by that of this node's own gradients.

        forwarded: this node's forward passes of all steps below it are done. looks: are shown gradients where they want to
        see them. Raises JobFailedError where gradients are not
        numbers any more.
        """
        if squares is None and self._spec.optimizer.clip_norm:
            squares = {self._routes.node_index: self.squares()}
        totals, self._totals = self._totals, None
        if totals is None:
            totals = self._end_step()
        looks = looks if looks is not None and looks.wants(step) else None
        if looks is not None:
            for name, total in totals.items():
                looks.gradient(name, total)
        scale = 1.0
        if squares is not None:
            norm = clipping.norm(self._spec.graph, self._routes.owned, squares)
            if not np.isfinite(norm):
                raise JobFailedError(f"the gradients' norm became {norm} at step {step + 1}; lower the learning rate")
            scale = clipping.scale(norm, self._spec.optimizer.clip_norm)
        rate = rates.rate(self._spec.optimizer, step, self._spec.steps)
        old, new = self.versions.advance(forwarded)
        for parameter in self._parameters:
            gradient = totals.get(parameter.name)
            if gradient is None:
                continue
            self._updater.update(
                old[parameter.name],
                gradient,
                {slot: arrays[parameter.name] for slot, arrays in self.slots.items()},
                rate=rate,
                step=step,
                scale=scale,
                decay=parameter.decay,
                out=new[parameter.name],
            )
        if looks is not None:
            for name in self.fuse & new.keys():
                looks.weight(name, new[name])
            looks.done()

    def _end_step(self) -> dict[str, Array]:
        return self._engine.end_step(self._spec.graph, self.tensors, micro_batches=self._micro_batches)

    def _read(self, read: Callable[[str, tuple[int, ...]], NDArray[np.float32]]) -> None:
        for parameter in (*self._parameters, *self._state):
            self._put(self._array(parameter), parameter, read(parameter.name, parameter.shape))

    def _read_older(self, source: parts.Parts) -> None:
        """Versions before the newest; in place of one that the checkpoint does not hold, the next one that it does."""
        following: Mapping[str, Array] = self.versions.newest
        for number, held in reversed(list(self.versions.older())):
            for parameter in self._parameters:
                if parameter.name not in held:
                    continue
                name = version_name(number, parameter.name)
                if name in source:
                    self._put(held[parameter.name], parameter, source.read(name, parameter.shape))
                else:
                    np.copyto(held[parameter.name], following[parameter.name])
            following = held

    def _array(self, parameter: Parameter) -> Array:
        newest = self.versions.newest
        return newest[parameter.name] if parameter.name in newest else self.tensors.state[parameter.name]

    def _put(self, target: Array, parameter: Parameter, array: NDArray[np.float32]) -> None:
        np.copyto(target, self._engine.import_parameter(self._spec.graph, parameter.name, array))

    def _exporter(self, parameter: Parameter, array: Array) -> Callable[[], NDArray[Any]]:
        return lambda: self._engine.export_parameter(self._spec.graph, parameter.name, array)


def fused(spec: JobSpec, engine: Engine, flow: Flow, delay: int) -> frozenset[str]:
    """The parameters whose update may be part of the backward pass: in jobs of plain SGD with one micro-batch per step; on a
    node that runs several updates behind only those whose old version nobody reads any more then (see `versions`). None where
    gradients go to shards."""
    optimizer = spec.optimizer
    if spec.data is not None:
        return frozenset()
    if optimizer.kind != "sgd" or optimizer.clip_norm or spec.micro_batches != 1:
        return frozenset()
    decayed = {p.name for p in spec.graph.parameters if p.decay} if optimizer.weight_decay else set()
    return frozenset(n for n in engine.fusable(spec.graph) - decayed if delay <= 1 or flow.read_back(n))
