"""Binding a plan to arrays: per frame, flat lists of bound calls, so that a pass is one loop over them.

What an op reads and writes never moves: planned memory and accumulators stay as long as the program, and the caller hands in
the same border arrays for a frame each time. So each list is made when it is first wanted (backward: one for each place that
a micro-batch takes in the sum of its step), and made anew only if the caller comes with other border arrays. Parameters are the
exception where several versions of them are kept: those of a pass are put into the Calls before it, and nothing is bound to them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from p2pnn.engine.base import Context, Look, Tensors
from p2pnn.engine.numpy.kernel import NOTHING, Call, carve
from p2pnn.engine.numpy.layout import Array
from p2pnn.engine.numpy.planning import Backward, Forward, Plan, Total
from p2pnn.model import sums

BUFFER_ELEMENTS = 1024
"""numpy's ufuncs copy operands whose rows are not behind each other through a buffer, unless a row alone fills it.

Copying pays for short rows (16 channels), and costs a strided addition of long ones twice to three times its time. With
numpy's own 8192 elements even rows of 4096 are copied; 1024 is the best, or within a tenth of it, for rows of any length.
"""

RECTIFIERS = ("Relu",)
"""Operators that make exact zeros of whatever is negative, so that a layer of them can be dead."""


class Pass:
    """One direction of a frame: bound calls in order, and those Calls among them, whose context changes with each pass.

    versioned: the Calls whose op has parameters, with the registers of its inputs; updating: of those the ones that update
    some. version: whose parameters they hold now (`Context.slot` and `update`). rectified: (op, what it makes) of rectifiers, by
    the number of calls after which it is there.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.steps: list[Callable[[], Any]] = []
        self.versioned: list[tuple[Call, Forward]] = []
        self.updating: list[tuple[Call, Backward]] = []
        self.rectified: dict[int, tuple[int, Array]] = {}
        self.version: tuple[int, tuple[int, int]] | None = None

    def add(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> None:
        """The next bound call."""
        self.steps.append(partial(function, *arguments, **named))

    def run(self, context: Context, look: Look | None = None) -> None:
        """One pass."""
        for call in self.calls:
            call.context = context
        with np.errstate(all="ignore"):  # a run that diverges shows in its loss, not in warnings
            np.setbufsize(BUFFER_ELEMENTS)  # until the end of this block, as errstate restores it
            if look is None or not self.rectified:
                for step in self.steps:
                    step()
                return
            for done, step in enumerate(self.steps, 1):
                step()
                if done in self.rectified:
                    look(*self.rectified[done])


class Frame:
    """The registers of one micro-batch in flight, and what was bound to them. `shared` is memory of all frames; ready: see
    `Engine.compile`."""

    def __init__(
        self,
        plan: Plan,
        tensors: Tensors,
        shared: Array,
        own: Array,
        dtype: np.dtype[np.floating],
        ready: Callable[[str], None] | None = None,
    ) -> None:
        self._plan, self._tensors, self._ready = plan, tensors, ready
        self._at = [NOTHING] * plan.registers  # those that the caller binds are empty until then
        for place in plan.places:
            if place.buffer is not None:
                memory = own if place.buffer.own else shared
                self._at[place.register] = carve(memory, place.buffer.offset, place.spec)
        self._seeds = [np.zeros((), dtype) for _ in plan.seeds]
        for register, seed in zip(plan.seeds, self._seeds, strict=True):
            self._at[register] = seed
        self._parameters = frozenset(plan.held.values())
        self._forward: Pass | None = None
        self._backward: dict[tuple[int, int], Pass] = {}

    def forward(self, context: Context, values: Mapping[str, Array], look: Look | None = None) -> None:
        """Run the ops in order."""
        self._meet(self._plan.values, values)
        if self._forward is None:
            self._forward = self._bind_forward(context)
        self._hold(self._forward, context)
        self._forward.run(context, look)

    def backward(self, context: Context, gradients: Mapping[Any, Array], index: int) -> None:
        """Run the ops' gradients in reverse order."""
        self._meet(self._plan.gradients, gradients)
        place = sums.place(index)
        steps = self._backward.get(place)
        if steps is None:
            steps = self._backward[place] = self._bind_backward(context, *place)
        self._hold(steps, context)
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
            self._forward = None
            self._backward.clear()
            for place in self._plan.places:
                if place.border >= 0:
                    at[place.register] = at[place.border].reshape(place.spec.shape)

    def _hold(self, steps: Pass, context: Context) -> None:
        """Let the Calls have the parameters that this pass reads and updates."""
        version = context.slot, context.update
        if steps.version == version:
            return
        at, versions, state = self._at, self._tensors.versions, self._tensors.state
        parameters = versions[context.slot]
        for name, register in self._plan.held.items():
            at[register] = parameters[name] if name in parameters else state[name]
        for name, (before, after) in self._plan.updates.items():
            at[before], at[after] = (versions[slot][name] for slot in context.update)
        for call, op in steps.versioned:
            call.inputs = self._arrays(op.inputs)
        for call, backward in steps.updating:
            for n, register in backward.newest.items():
                call.newest[n], call.dx[n] = at[register], at[backward.first[n]]
        steps.version = version

    def _arrays(self, registers: tuple[int, ...]) -> list[Array]:
        return [self._at[r] if r >= 0 else NOTHING for r in registers]

    def _call(self, steps: Pass, context: Context, op: Forward) -> Call:
        call = Call(context, self._arrays(op.inputs), self._arrays(op.ys), self._arrays(op.stash))
        steps.calls.append(call)
        if not self._parameters.isdisjoint(op.inputs):
            steps.versioned.append((call, op))
        return call

    def _bind_forward(self, context: Context) -> Pass:
        steps = Pass()
        for op in self._plan.forward:
            call = self._call(steps, context, op)
            call.bound = op.kernel.bind_forward(call)
            steps.add(op.kernel.forward, call)
            if op.kernel.site.op.kind in RECTIFIERS:
                steps.rectified[len(steps.steps)] = op.kernel.site.index, call.y
        return steps

    def _bind_backward(self, context: Context, level: int, merges: int) -> Pass:
        """A pass that begins a sum, in the accumulators of this level, or (merges > 0) is added to the one of the level below it,
        whereupon sums of equally many are added."""
        steps, levels = Pass(), [self._tensors.gradients, *self._tensors.partial]
        count, readers = self._tensors.micro_batches, Counter(name for name, _ in self._tensors.gradients)
        last = sums.left(count) == 1 and (level, merges) == sums.place(count - 1)
        level = level - 1 if merges else level
        for edge, register in self._plan.accumulators.items():
            self._at[register] = levels[level][edge]
        for op in self._plan.backward:
            self._bind_gradient(steps, op, context, not merges)
            for edge in self._plan.accumulators:
                if edge[1] != op.forward.kernel.site.index:
                    continue
                for lower in range(level - 1, level - merges, -1):
                    steps.add(np.add, levels[lower][edge], levels[lower + 1][edge], out=levels[lower][edge])
                if self._ready is not None and last and readers[edge[0]] == 1:
                    steps.add(self._ready, edge[0])
        return steps

    def _bind_gradient(self, steps: Pass, op: Backward, context: Context, first: bool) -> None:
        call, kernel = self._call(steps, context, op.forward), op.forward.kernel
        call.dx = self._arrays(op.first if first else op.later)
        if op.newest:
            steps.updating.append((call, op))
        if op.totals[0].dy < 0:  # nothing that a loss sees depends on this op
            steps.add(_without_gradient, call)
            return
        call.dys = [self._total(steps, total) for total in op.totals]
        call.bound = kernel.bind_backward(call)
        steps.add(kernel.backward, call)
        for position, extra in op.repeated:
            steps.add(np.add, call.dx[position], self._at[extra], out=call.dx[position])
        for total, fresh in () if first else op.accumulate:
            steps.add(np.add, self._at[total], self._at[fresh], out=self._at[total])

    def _total(self, steps: Pass, total: Total) -> Array:
        """The gradient of one output, summed by the next steps where it comes in parts."""
        dy, parts = self._at[total.dy], self._arrays(total.parts)
        if not parts:
            steps.add(dy.fill, 0)
        for n, part in enumerate(parts[1:]):
            steps.add(np.add, dy if n else parts[0], part, out=dy)
        return dy


def _without_gradient(call: Call) -> None:
    """An op's gradients are zero, and parameters stay as they are."""
    for n, gradient in enumerate(call.dx):
        if n in call.newest:
            np.copyto(gradient, call.newest[n])
        else:
            gradient.fill(0)
