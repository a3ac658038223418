"""What this node's ops own: parameters, state, gradients and the optimizer's arrays; loading, updating and saving them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2pnn.data.blobs import BlobStore
from p2pnn.engine.base import Array, Engine, Tensors
from p2pnn.errors import JobFailedError
from p2pnn.executor import parts
from p2pnn.job.checkpoint import Manifest, Part
from p2pnn.job.spec import JobSpec
from p2pnn.model.graph import Parameter
from p2pnn.model.initial import initial
from p2pnn.train import clipping, rates
from p2pnn.train.optimizers import Updater, slot_name
from p2pnn.train.schedule import Routes
from p2pnn.types import BlobId


class Weights:
    """tensors: the engine's; slots: optimizer slot → parameter → float32 array in the engine's layout."""

    def __init__(self, spec: JobSpec, routes: Routes, engine: Engine) -> None:
        self._spec = spec
        self._routes = routes
        self._engine = engine
        self._training = spec.kind == "train"
        self.tensors: Tensors = engine.allocate(spec.graph, routes.ops, training=self._training)
        self._parameters = [p for p in spec.graph.parameters if p.name in self.tensors.parameters]
        self._state = [p for p in spec.graph.state if p.name in self.tensors.state]
        self._updater = Updater(spec.optimizer)
        slots = self._updater.slots if self._training else ()
        self.slots: dict[str, dict[str, Array]] = {
            slot: {name: np.zeros_like(array) for name, array in self.tensors.parameters.items()} for slot in slots
        }
        self._totals: dict[str, Array] | None = None

    @property
    def memory_bytes(self) -> int:
        """Everything that lives from step to step, and the gradients."""
        held = [*self.tensors.parameters.values(), *self.tensors.state.values(), *self.tensors.gradients.values()]
        held += [array for slot in self.slots.values() for array in slot.values()]
        return sum(array.nbytes for array in held)

    def load(self, blobs: BlobStore, manifest: Manifest | None) -> None:
        """Fill everything: from the checkpoint, else from the spec's initial parts, else drawn from the seed.

        Raises CheckpointError for parts that do not fit the model.
        """
        if manifest is not None:
            source = parts.Parts(blobs, [part.blob for part in manifest.parts])
            self._read(source.read)
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

    def save(self, blobs: BlobStore) -> Part:
        """Write this node's part of a checkpoint. Raises StorageError; the tensors are untouched either way."""
        named = [(p.name, p.shape, self._exporter(p, self._array(p))) for p in (*self._parameters, *self._state)]
        for slot, arrays in self.slots.items():
            named += [(slot_name(slot, p.name), p.shape, self._exporter(p, arrays[p.name])) for p in self._parameters]
        return parts.write(blobs, named)

    def squares(self) -> list[float]:
        """Sum the step's gradients, and Σ g² of each parameter that this node owns, in graph order (0 without gradient)."""
        self._totals = self._end_step()
        owned = self._routes.owned[self._routes.node_index]
        return [clipping.squares(self._totals[name]) if name in self._totals else 0.0 for name in owned]

    def update(self, step: int, squares: Any) -> None:
        """Apply the step's gradients, scaled by the global norm where `squares` (node → its squares) are given.

        Raises JobFailedError where gradients are not numbers any more.
        """
        totals, self._totals = self._totals, None
        if totals is None:
            totals = self._end_step()
        scale = 1.0
        if squares is not None:
            norm = clipping.norm(self._spec.graph, self._routes.owned, squares)
            if not np.isfinite(norm):
                raise JobFailedError(f"the gradients' norm became {norm} at step {step + 1}; lower the learning rate")
            scale = clipping.scale(norm, self._spec.optimizer.clip_norm)
        rate = rates.rate(self._spec.optimizer, step, self._spec.steps)
        for parameter in self._parameters:
            gradient = totals.get(parameter.name)
            if gradient is None:
                continue
            self._updater.update(
                self.tensors.parameters[parameter.name],
                gradient,
                {slot: arrays[parameter.name] for slot, arrays in self.slots.items()},
                rate=rate,
                step=step,
                scale=scale,
                decay=parameter.decay,
            )

    def _end_step(self) -> dict[str, Array]:
        return self._engine.end_step(self._spec.graph, self.tensors, micro_batches=self._spec.micro_batches)

    def _read(self, read: Callable[[str, tuple[int, ...]], NDArray[np.float32]]) -> None:
        for parameter in (*self._parameters, *self._state):
            self._put(self._array(parameter), parameter, read(parameter.name, parameter.shape))

    def _array(self, parameter: Parameter) -> Array:
        held = self.tensors.parameters if parameter.name in self.tensors.parameters else self.tensors.state
        return held[parameter.name]

    def _put(self, target: Array, parameter: Parameter, array: NDArray[np.float32]) -> None:
        np.copyto(target, self._engine.import_parameter(self._spec.graph, parameter.name, array))

    def _exporter(self, parameter: Parameter, array: Array) -> Callable[[], NDArray[Any]]:
        return lambda: self._engine.export_parameter(self._spec.graph, parameter.name, array)
