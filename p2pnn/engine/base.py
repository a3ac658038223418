"""What every engine offers: compile ops into a program that runs forward and backward over planned buffers.

A *program* runs the active ops of one segment in one mode. What crosses its border lies in arrays that the caller
allocates (`values_in`, `values_out`, `gradients_in`, `gradients_out`), in the engine's own layout, one set per frame;
everything inside is planned and allocated by the program, once. A frame is the place of one micro-batch in flight.

Bit for bit: kernel, layout and block size depend on job, op and shape alone, never on segment, node, frame or timing; fusion
on these and, with mini-batches in flight, on how many updates behind a node runs. A gradient that reaches a value from several
consumers is summed in graph order by the value's producer; a parameter's gradient is accumulated apart per op, over
micro-batches, and summed over ops in graph order.

A step's micro-batches are summed in pairs (`model.sums`), each computed apart and then added.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from p2pnn.model.graph import Graph, Value

Mode = Literal["train", "evaluate", "predict"]
Array = NDArray[np.generic]

Look = Callable[[int, Array], None]
"""Is shown a rectifier's output, by its op's index, as soon as it is made; it may be overwritten afterwards."""

Edge = tuple[str, int]
"""(value, consuming op's index): one gradient on its way back to the value's producer."""


@dataclass(frozen=True, slots=True)
class Context:
    """One pass over one micro-batch. Random numbers are keyed by (seed, step, micro_batch, op).

    rows: valid rows; fewer than the program's row count only outside training, where the rest is padding that losses,
    metrics and means over the batch leave out. loss_scale: the gradient that every loss starts with (1 / micro-batches).
    slot: which of `Tensors.versions` the pass reads. For what the program has fused: rate, the step's learning rate, and
    update, the sets (from, into) between which a backward pass takes the parameters; the same set for an update in place.
    """

    seed: int
    step: int
    micro_batch: int
    rows: int
    loss_scale: float = 1.0
    slot: int = 0
    rate: float = 0.0
    update: tuple[int, int] = (0, 0)


@dataclass(slots=True)
class Tensors:
    """What one node holds of a model between steps; arrays are in the engine's layout, float32 unless said.

    versions: parameters by name, one set per version that is kept (one, unless mini-batches of several steps are in
    flight). A set's arrays stay the same objects as long as a program lives; several sets may share an array.
    gradients: one accumulator per (parameter, op that reads it): a shared parameter has several. partial: more of them, for sums
    that are not yet part of it (`model.sums`). micro_batches: how many a step has at most.
    statistics: batch normalization's [mean, variance] of each micro-batch of this step, per op (float32[2, C]);
    `Engine.end_step` folds them into `state` in (micro-batch, op) order.
    """

    versions: list[dict[str, Array]] = field(default_factory=lambda: [{}])
    state: dict[str, Array] = field(default_factory=dict)
    gradients: dict[tuple[str, int], Array] = field(default_factory=dict)
    statistics: dict[int, list[Array]] = field(default_factory=dict)
    partial: list[dict[tuple[str, int], Array]] = field(default_factory=list)
    micro_batches: int = 1

    @property
    def parameters(self) -> dict[str, Array]:
        """The first set of parameters."""
        return self.versions[0]


class Program(Protocol):
    """One segment, compiled for a mode. All arrays are C-contiguous and stay where they are between calls."""

    values_in: tuple[str, ...]
    """Values read from outside: graph inputs and other segments' outputs (never parameters or state)."""
    values_out: tuple[str, ...]
    """Values made here that other ops read, or that are a loss, a metric or (predict) a named output."""
    gradients_in: tuple[Edge, ...]
    """Gradients of `values_out` that come from consumers outside this segment; empty unless mode is train."""
    gradients_out: tuple[Edge, ...]
    """Gradients of `values_in` that this segment's ops send to the producers."""
    fused: frozenset[str]
    """Parameters that `backward` updates, w ← w − rate · gradient, instead of accumulating a gradient (`Context.update`)."""
    memory_bytes: int
    """What the program allocated: inner values, stashes and scratch, over all frames."""

    def forward(self, frame: int, context: Context, values: Mapping[str, Array], look: Look | None = None) -> None:
        """Read `values[v]` for v in values_in, write `values[v]` for v in values_out. look: is shown what rectifiers made.

        In training these arrays must keep what they hold until `backward` of the same frame, which reads them again.
        Padding rows of values_in must hold finite numbers. Raises ModelError where context.rows does not fit.
        """

    def backward(self, frame: int, context: Context, gradients: Mapping[Edge, Array], *, index: int) -> None:
        """Undo the forward pass of this frame: read gradients_in, write gradients_out and `Tensors.gradients`.

        index: which of the step's micro-batches on this node it is; they come in order from 0, which overwrites what there was.
        """


class Engine(Protocol):
    """Stateless; `Tensors` and programs hold what there is."""

    name: str

    def fingerprint(self) -> str:
        """What decides the last bits: library versions, BLAS build and kernel type, threads."""

    def shape(self, value: Value, rows: int) -> tuple[int, ...]:
        """A value's shape in this engine's layout, with `rows` for the batch."""

    def dtype(self, value: Value) -> np.dtype[np.generic]:
        """A value's dtype in this engine."""

    def import_value(self, value: Value, array: Array, out: Array) -> None:
        """Copy a value from ONNX's layout into the engine's. Rows of `out` behind those of `array` are zeroed."""

    def export_value(self, value: Value, array: Array) -> Array:
        """Copy a value from the engine's layout into ONNX's."""

    def import_parameter(self, graph: Graph, name: str, array: Array) -> Array:
        """A parameter or state tensor in the engine's layout, as a new array."""

    def export_parameter(self, graph: Graph, name: str, array: Array) -> Array:
        """The inverse of import_parameter."""

    def parameter_view(self, graph: Graph, name: str, array: Array) -> Array:
        """A parameter or state tensor in ONNX's layout, without a copy: it shows what the array holds when it is read."""

    def fusable(self, graph: Graph) -> frozenset[str]:
        """Parameters whose plain SGD update may be fused into their one op's backward pass: by op and shape alone."""

    def allocate(
        self,
        graph: Graph,
        ops: Sequence[int],
        *,
        training: bool,
        versions: int = 1,
        fuse: Set[str] = frozenset(),
        micro_batches: int = 1,
    ) -> Tensors:
        """Zeroed tensors for everything that these ops own; gradients only if training, and none for `fuse`.

        micro_batches: per step, at most.
        """

    def compile(
        self,
        graph: Graph,
        ops: Sequence[int],
        tensors: Tensors,
        *,
        rows: int,
        frames: int,
        mode: Mode,
        fuse: Set[str] = frozenset(),
        ready: Callable[[str], None] | None = None,
    ) -> Program:
        """Compile the ops of one segment that are active in `mode` (see `job.segment.Flow`).

        fuse: some of `fusable`, for jobs of plain SGD (no clipping, no decay) with one micro-batch per step. ready: is called
        with a parameter as soon as its gradient of a step is complete in `Tensors.gradients`, amid the step's last backward
        pass; not for a parameter that several ops read, and only if a step's micro-batches are a power of two: what is not
        said to be ready is when `end_step` returns it.
        """

    def combine(self, alpha: float, x: Array, beta: float, y: Array) -> None:
        """y ← α·x + β·y in place, element by element, for flat arrays of one length: what optimizers are made of."""

    def end_step(self, graph: Graph, tensors: Tensors, *, micro_batches: int = 1) -> dict[str, Array]:
        """Sum each parameter's gradients over micro-batches and ops and fold statistics into state.

        micro_batches: how many the step had on this node, and so how many of the oldest statistics of each op belong to it.

        Returns parameter name → total gradient (the first op's accumulator, changed in place), in graph order.
        """
