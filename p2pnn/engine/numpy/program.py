"""A compiled segment: runs a plan's ops forward and in reverse, frame by frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from p2pnn.engine.base import Context, Edge, Mode, Tensors
from p2pnn.engine.numpy.edges import Edges
from p2pnn.engine.numpy.kernel import NOTHING, Call, Kernel, Site, Workspace, arena, carve
from p2pnn.engine.numpy.layout import Array, Operands
from p2pnn.engine.numpy.planning import Backward, Plan, Planner, Total
from p2pnn.engine.numpy.table import KERNELS
from p2pnn.errors import ModelError
from p2pnn.model.graph import Graph


class NumpyProgram:
    """See `engine.base.Program`. memory_bytes is exact but for the kernels' few small constants."""

    def __init__(
        self,
        graph: Graph,
        ops: Sequence[int],
        tensors: Tensors,
        *,
        rows: int,
        frames: int,
        mode: Mode,
        dtype: np.dtype[np.floating],
    ) -> None:
        edges = Edges(graph, ops, mode)
        self.values_in, self.values_out = edges.values_in, edges.values_out
        self.gradients_in, self.gradients_out = edges.gradients_in, edges.gradients_out
        self._tensors, self._rows, self._mode = tensors, rows, mode
        self.fused: frozenset[str] = frozenset()
        operands = {index: Operands(graph, rows, dtype).of(graph.ops[index]) for index in edges.ops}
        workspace = Workspace()
        kernels: dict[int, Kernel] = {}
        for index in edges.ops:
            op = graph.ops[index]
            if op.kind not in KERNELS:
                raise ModelError(
                    f"{op.name}: the numpy engine has no operator {op.kind!r}; known are {', '.join(KERNELS)}"
                )
            workspace.next_kernel()
            inputs, outputs = operands[index]
            kernels[index] = KERNELS[op.kind](
                Site(index, op, inputs, outputs, edges.wants(index), mode == "train", dtype, workspace, tensors)
            )
        self._plan = Planner(edges, operands, kernels).plan()
        shared = arena(self._plan.shared_bytes)
        kept = [arena(self._plan.kept_bytes) for _ in range(frames)]
        self._frames = [_registers(self._plan, shared, own, dtype) for own in kept]
        self.memory_bytes = workspace.allocate() + shared.nbytes + sum(own.nbytes for own in kept)

    def forward(self, frame: int, context: Context, values: Mapping[str, Array]) -> None:
        """Run the ops on one micro-batch. What backward needs stays in the frame."""
        plan, at = self._plan, self._frames[frame]
        if not 0 < context.rows <= self._rows or (self._mode == "train" and context.rows != self._rows):
            raise ModelError(f"a micro-batch has {context.rows} rows, but the program was compiled for {self._rows}")
        for name, register in plan.values.items():
            at[register] = values[name]
        for place in plan.places:
            if place.border >= 0:
                at[place.register] = at[place.border].reshape(place.spec.shape)
        self._bind(at, context.slot)
        with np.errstate(all="ignore"):  # a run that diverges shows in its loss, not in warnings
            for op in plan.forward:
                inputs, ys, stash = ([at[r] for r in registers] for registers in (op.inputs, op.ys, op.stash))
                op.kernel.forward(Call(context, inputs, ys, stash, (), ()))

    def backward(self, frame: int, context: Context, gradients: Mapping[Edge, Array], *, first: bool) -> None:
        """Run the ops' gradients in reverse order, over what `forward` left in the frame."""
        plan, at = self._plan, self._frames[frame]
        for edge, register in plan.gradients.items():
            at[register] = gradients[edge]
        for edge, register in plan.accumulators.items():
            at[register] = self._tensors.gradients[edge]
        for register in plan.seeds:
            at[register][...] = context.loss_scale
        self._bind(at, context.slot)
        with np.errstate(all="ignore"):
            for op in plan.backward:
                _backward(op, at, context, first)

    def _bind(self, at: list[Array], slot: int) -> None:
        parameters, state = self._tensors.versions[slot], self._tensors.state
        for name, register in self._plan.held.items():
            at[register] = parameters[name] if name in parameters else state[name]


def _backward(op: Backward, at: list[Array], context: Context, first: bool) -> None:
    forward, into = op.forward, op.first if first else op.later
    dx = [at[r] if r >= 0 else NOTHING for r in into]
    if op.totals[0].dy < 0:  # nothing that a loss sees depends on this op
        for gradient in dx:
            gradient.fill(0)
        return
    dys = [_total(total, at) for total in op.totals]
    inputs, ys, stash = ([at[r] for r in registers] for registers in (forward.inputs, forward.ys, forward.stash))
    forward.kernel.backward(Call(context, inputs, ys, stash, dys, dx))
    for position, extra in op.repeated:
        np.add(dx[position], at[extra], out=dx[position])
    if not first:
        for total, fresh in op.accumulate:
            np.add(at[total], at[fresh], out=at[total])


def _total(total: Total, at: list[Array]) -> Array:
    dy, parts = at[total.dy], [at[r] for r in total.parts]
    if not parts:
        dy.fill(0)
    elif len(parts) > 1:
        np.add(parts[0], parts[1], out=dy)
        for part in parts[2:]:
            np.add(dy, part, out=dy)
    return dy


def _registers(plan: Plan, shared: Array, own: Array, dtype: np.dtype[np.floating]) -> list[Array]:
    """A frame's registers; those that the caller binds are empty until then."""
    at = [NOTHING] * plan.registers
    for place in plan.places:
        if place.buffer is not None:
            at[place.register] = carve(own if place.buffer.kept else shared, place.buffer.offset, place.spec)
    for register in plan.seeds:
        at[register] = np.zeros((), dtype)
    return at
