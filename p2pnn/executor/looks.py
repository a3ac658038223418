"""Looks at what is trained, now and then: whether gradients or the outputs of rectifiers are all zero. See `job.learning`.

A look takes one step: the first micro-batch of it that comes by here, and the gradients that the step ends with. Of an array a
sample is read, all of it only where all of the sample is zero. After a look the next one waits for INTERVAL_S, and for so long
that looking takes COST_MAX of the time at most, however large the model is.

A weight whose update is fused into its backward pass has no gradient: it is compared with itself at the look before.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from p2pnn.engine.base import Array, Look
from p2pnn.job.learning import FIRST_STEPS, Streaks
from p2pnn.job.script import Health
from p2pnn.model.graph import Parameter
from p2pnn.ps.allotment import Allotment

INTERVAL_S: Final = 0.2
COST_MAX: Final = 0.005
SAMPLE: Final = 4_096
"""Elements of an array that are read at first."""


class Looks:
    """Of one compute process. step: its own, at the start; of a data-parallel run these are not the job's (`Allotment`).

    warmup_steps: while the rate rises from nothing, weights may stand still because of that.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        allotment: Allotment,
        step: int,
        warmup_steps: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._numbers = {parameter.name: number for number, parameter in enumerate(parameters)}
        self._allotment = allotment
        self._first_stop = step + (FIRST_STEPS if allotment.shared else math.ceil(FIRST_STEPS / allotment.workers))
        self._warmup_steps = warmup_steps
        self._clock = clock
        self._due = -math.inf
        self._step = self._micro_batch = -1
        self._spent = 0.0
        self._still, self._dead = Streaks(), Streaks()
        self._before: dict[str, Array] = {}
        self._begun = (0.0, 0)
        self._not_finite = -1

    def forward(self, step: int, micro_batch: int) -> Look | None:
        """A forward pass of a training step begins: what is to see its rectifiers, if anything."""
        if micro_batch != self._micro_batch:
            if (now := self._clock()) < self._due or step <= self._step:
                return None
            self._step, self._micro_batch, self._spent, self._due = step, micro_batch, 0.0, now + INTERVAL_S
        return self._rectified

    def trained(self, step: int, loss: float, rows: int, *, finite: bool = True) -> bool:
        """That pass is over: the sum over rows of the loss that it made, and the rows that count for it. Returns whether that is
        to be told at once: it is the first loss that is no number, and the run may end for the next ones."""
        if step < self._first_stop:
            self._begun = self._begun[0] + loss, self._begun[1] + rows
        if finite or self._not_finite >= 0:
            return False
        self._not_finite = self._allotment.batch(step)
        return True

    def wants(self, step: int) -> bool:
        """Whether to show what the step ends with: `gradient` and `weight`, then `done`."""
        return step == self._step

    def gradient(self, name: str, array: Array) -> None:
        """A parameter's gradient in this step."""
        start = self._clock()
        self._still.look(self._numbers[name], not sample(array).any() and not array.any(), self._now)
        self._spent += self._clock() - start

    def weight(self, name: str, array: Array) -> None:
        """A parameter without one, after an update."""
        if self._step < self._warmup_steps:
            return
        start = self._clock()
        found, before = sample(array).copy(), self._before.get(name)
        self._before[name] = found
        if before is not None:
            self._still.look(self._numbers[name], np.array_equal(found, before), self._now)
        self._spent += self._clock() - start

    def done(self) -> None:
        """The look is over."""
        self._due = max(self._due, self._clock() + self._spent / COST_MAX)
        self._micro_batch = -1

    def health(self) -> Health:
        """What has been seen so far."""
        return Health(self._begun, self._still.lasting(), self._dead.lasting(), self._not_finite)

    @property
    def _now(self) -> int:
        """The job's step that is looked at."""
        return self._allotment.batch(self._step)

    def _rectified(self, op: int, array: Array) -> None:
        start = self._clock()
        self._dead.look(op, not sample(array).any(), self._now)
        self._spent += self._clock() - start


def sample(array: Array) -> Array:
    """About SAMPLE elements from all over the array and from all places of its last axis; all of a small one. A view, where
    the array's memory is dense."""
    dense = array.transpose(np.argsort(array.strides, kind="stable")[::-1]).reshape(-1)
    stride = -(-dense.size // SAMPLE)
    last = max(1, array.shape[-1] if array.ndim else 1)
    while stride > 1 and math.gcd(stride, last) > 1:
        stride += 1
    return dense[::stride]
