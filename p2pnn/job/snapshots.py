"""How often snapshots are taken, and which of those that are held can be gone on from.

A snapshot costs a node the copying of its state, the sending of it, and some handling that nobody measures. The interval is the
shortest at which that is at most COST_SHARE of the time between two of them, on the node where it costs most, since the
others wait for that one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Final

from p2pnn.job.script import Progress
from p2pnn.types import NodeId

COST_SHARE: Final = 0.05

HANDLING_S: Final = 0.0003
"""Messages and wake-ups of one snapshot, at both ends: measured on a machine of two cores that had other work."""

FIRST_STEPS: Final = 4
"""Until the first were measured."""

SMOOTHING: Final = 0.5


class Interval:
    """Pure. fixed: the job's own wish (`JobSpec.snapshot_steps`): −1 adapts, 0 takes none."""

    def __init__(self, fixed: int) -> None:
        self._fixed = fixed
        self._steps: dict[str, int] = {}
        self._step_s: dict[str, float] = {}
        self._cost_s: dict[str, float] = {}

    def add(self, node: str, progress: Progress) -> None:
        """What a node reports of the time since its last report."""
        before = self._steps.get(node)
        self._steps[node] = progress.step
        if before is not None and progress.step > before:
            self._blend(self._step_s, node, progress.wall_s / (progress.step - before))
        if progress.snapshots:
            self._blend(self._cost_s, node, progress.snapshot_s / progress.snapshots + HANDLING_S)

    @property
    def steps(self) -> int:
        """From one snapshot to the next."""
        if self._fixed >= 0:
            return self._fixed
        wanted = [
            cost / (COST_SHARE * self._step_s[node])
            for node, cost in self._cost_s.items()
            if self._step_s.get(node, 0.0) > 0 and math.isfinite(cost)
        ]
        return max(1, math.ceil(max(wanted))) if wanted else FIRST_STEPS

    @staticmethod
    def _blend(into: dict[str, float], node: str, value: float) -> None:
        into[node] = SMOOTHING * value + (1 - SMOOTHING) * into.get(node, value)


def newest_complete(
    held: Mapping[NodeId, Iterable[tuple[int, int]]], parts: int, limit: int | None = None
) -> int | None:
    """The newest step after which every part 0 … parts − 1 is held by somebody; None where there is none.

    held: node → (index, step) of what it holds. limit: no later step than this.
    """
    found: dict[int, set[int]] = {}
    for pairs in held.values():
        for index, step in pairs:
            found.setdefault(step, set()).add(index)
    whole = [step for step, indices in found.items() if indices.issuperset(range(parts))]
    return max((step for step in whole if limit is None or step <= limit), default=None)
