"""Binding a plan to arrays: per frame, flat lists of bound calls, so that a pass is one loop over them.

What an op reads and writes never moves: planned memory, parameters and accumulators stay as long as the program, and the
caller hands in the same border arrays for a frame each time. So each list is made when it is first wanted (one per version
of the parameters that is read and, with fused updates, written; backward: two, as the first micro-batch overwrites the
accumulators), and made anew only if the caller comes with other border arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from p2pnn.engine.base import Context, Tensors
from p2pnn.engine.numpy.kernel import NOTHING, Call, carve
from p2pnn.engine.numpy.layout import Array
from p2pnn.engine.numpy.planning import Backward, Forward, Plan, Total

BUFFER_ELEMENTS = 1024
"""numpy's ufuncs copy operands whose rows are not behind each other through a buffer, unless a row alone fills it.

Copying pays for short rows (16 channels), and costs a strided addition of long ones twice to three times its time. With
numpy's own 8192 elements even rows of 4096 are copied; 1024 is the best, or within a tenth of it, for rows of any length.
"""


class Steps:
    """One direction of a frame: bound calls in order, and those Calls among them, whose context changes with each pass."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.steps: list[Callable[[], Any]] = []

    def add(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> None:
        """The next bound call."""
        self.steps.append(partial(function, *arguments, **named))

    def run(self, context: Context) -> None:
        """One pass."""
        for call in self.calls:
            call.context = context
        with np.errstate(all="ignore"):  # a run that diverges shows in its loss, not in warnings
            np.setbufsize(BUFFER_ELEMENTS)  # until the end of this block, as errstate restores it
            for step in self.steps:
                step()


class Frame:
    """The registers of one micro-batch in flight, and what was bound to them. `shared` is memory of all frames."""

    def __init__(self, plan: Plan, tensors: Tensors, shared: Array, own: Array, dtype: np.dtype[np.floating]) -> None:
        self._plan, self._tensors = plan, tensors
        self._at = [NOTHING] * plan.registers  # those that the caller binds are empty until then
        for place in plan.places:
            if place.buffer is not None:
                memory = own if place.buffer.own else shared
                self._at[place.register] = carve(memory, place.buffer.offset, place.spec)
        self._seeds = [np.zeros((), dtype) for _ in plan.seeds]
        for register, seed in zip(plan.seeds, self._seeds, strict=True):
            self._at[register] = seed
        self._forward: dict[int, Steps] = {}
        self._backward: dict[tuple[int, tuple[int, int], bool], Steps] = {}

    def forward(self, context: Context, values: Mapping[str, Array]) -> None:
        """Run the ops in order."""
        self._meet(self._plan.values, values)
        steps = self._forward.get(context.slot)
        if steps is None:
            steps = self._forward[context.slot] = self._bind_forward(context)
        steps.run(context)

    def backward(self, context: Context, gradients: Mapping[Any, Array], first: bool) -> None:
        """Run the ops' gradients in reverse order."""
        self._meet(self._plan.gradients, gradients)
        key = context.slot, context.update, first
        steps = self._backward.get(key)
        if steps is None:
            steps = self._backward[key] = self._bind_backward(context, first)
        for seed in self._seeds:
            seed.fill(context.loss_scale)
        steps.run(context)

    def _meet(self, registers: Mapping[Any, int], arrays: Mapping[Any, Array]) -> None:
        """Put the caller's arrays into their registers; what was bound to others is bound anew."""
        at, moved = self._at, False
        for name, register in registers.items():
            if at[register] is not arrays[name]:
                at[register], moved = arrays[name], True
        if moved:
            self._forward.clear()
            self._backward.clear()
            for place in self._plan.places:
                if place.border >= 0:
                    at[place.register] = at[place.border].reshape(place.spec.shape)

    def _hold(self, context: Context) -> None:
        versions, state = self._tensors.versions, self._tensors.state
        parameters = versions[context.slot]
        for name, register in self._plan.held.items():
            self._at[register] = parameters[name] if name in parameters else state[name]
        for name, registers in self._plan.updates.items():
            for version, register in zip(context.update, registers, strict=True):
                self._at[register] = versions[version][name]
        for edge, register in self._plan.accumulators.items():
            self._at[register] = self._tensors.gradients[edge]

    def _arrays(self, registers: tuple[int, ...]) -> list[Array]:
        return [self._at[r] if r >= 0 else NOTHING for r in registers]

    def _call(self, context: Context, op: Forward) -> Call:
        return Call(context, self._arrays(op.inputs), self._arrays(op.ys), self._arrays(op.stash))

    def _bind_forward(self, context: Context) -> Steps:
        self._hold(context)
        steps = Steps()
        for op in self._plan.forward:
            call = self._call(context, op)
            call.bound = op.kernel.bind_forward(call)
            steps.calls.append(call)
            steps.add(op.kernel.forward, call)
        return steps

    def _bind_backward(self, context: Context, first: bool) -> Steps:
        self._hold(context)
        steps = Steps()
        for op in self._plan.backward:
            self._bind_gradient(steps, op, context, first)
        return steps

    def _bind_gradient(self, steps: Steps, op: Backward, context: Context, first: bool) -> None:
        dx = self._arrays(op.first if first else op.later)
        newest = {n: self._at[register] for n, register in op.newest.items()}
        if op.totals[0].dy < 0:  # nothing that a loss sees depends on this op
            for n, gradient in enumerate(dx):
                if n in newest:
                    steps.add(np.copyto, gradient, newest[n])
                elif first or n not in op.adds:
                    steps.add(gradient.fill, 0)
            return
        call, kernel = self._call(context, op.forward), op.forward.kernel
        call.dys = [self._total(steps, total) for total in op.totals]
        call.dx, call.newest, call.adds = dx, newest, () if first else op.adds
        call.bound = kernel.bind_backward(call)
        steps.calls.append(call)
        steps.add(kernel.backward, call)
        for position, extra in op.repeated:
            steps.add(np.add, dx[position], self._at[extra], out=dx[position])
        for total, fresh in () if first else op.accumulate:
            steps.add(np.add, self._at[total], self._at[fresh], out=self._at[total])

    def _total(self, steps: Steps, total: Total) -> Array:
        """The gradient of one output, summed by the next steps where it comes in parts."""
        dy, parts = self._at[total.dy], self._arrays(total.parts)
        if not parts:
            steps.add(dy.fill, 0)
        for n, part in enumerate(parts[1:]):
            steps.add(np.add, dy if n else parts[0], part, out=dy)
        return dy
