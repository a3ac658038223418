"""The watchdog: says that a run does not learn, and why. Pure; it is told losses, activations and what the shards report.

- zero gradients: no worker's gradient had an element other than zero for `pushes_min` updates (so hivemind's lone peer once went
  through a whole run);
- flat loss: after `losses_min` losses their mean over the last tenth is not below that of the first tenth by `drop_min` of
  it, and it never was;
- dead activations: less than `live_min` of a layer's outputs were other than zero, `dead_reports` reports in a row;
- idle worker: `pushes_min` pushes of each other worker on average were taken since the last of this one, or its own
  gradients were zero for as long while others' were not.

A finding is told when it begins, and again only after it had ended.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from p2pnn.ps.messages import Worker
from p2pnn.ps.report import Report

RECENT_MAX: Final = 1_000


class Reason(enum.Enum):
    ZERO_GRADIENTS = "zero gradients"
    FLAT_LOSS = "flat loss"
    DEAD_ACTIVATIONS = "dead activations"
    IDLE_WORKER = "idle worker"


@dataclass(frozen=True, slots=True)
class Finding:
    """what: the layer, or the node of the worker, that it is about; "" for the whole run. text: for a person, with what to do."""

    reason: Reason
    what: str
    text: str


@dataclass(frozen=True, slots=True)
class Limits:
    """More is calmer and later; see the module."""

    pushes_min: int = 20
    losses_min: int = 200
    drop_min: float = 0.01
    live_min: float = 0.001
    dead_reports: int = 3


class Watchdog:
    """One data-parallel run."""

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._first: list[float] = []
        self._recent: deque[float] = deque(maxlen=min(RECENT_MAX, max(1, self._limits.losses_min // 10)))
        self._losses = 0
        self._learned = False
        self._dead: dict[str, int] = {}
        self._moved_at = 0  # the version at which a gradient was last other than zero
        self._seen: dict[Worker, tuple[int, int]] = {}  # pushes taken, and those of all, when it last contributed
        self._active: set[tuple[Reason, str]] = set()
        self._new: deque[Finding] = deque()

    def loss(self, value: float) -> None:
        """A step's loss, of any worker."""
        self._losses += 1
        wanted = self._recent.maxlen or 1
        if len(self._first) < wanted:
            self._first.append(value)
            return
        self._recent.append(value)
        if self._learned or len(self._recent) < wanted:
            return
        before, now = sum(self._first) / wanted, sum(self._recent) / wanted
        self._learned = now < before - self._limits.drop_min * abs(before)
        flat = not self._learned and self._losses >= self._limits.losses_min
        self._tell(
            Reason.FLAT_LOSS,
            "",
            flat,
            f"not learning: after {self._losses} steps the loss is {now:.4g}, as at the start ({before:.4g}); try another"
            " learning rate, and look whether labels belong to their rows",
        )

    def activations(self, layer: str, live: float) -> None:
        """The share of a layer's outputs that were other than zero over some batches."""
        self._dead[layer] = self._dead.get(layer, 0) + 1 if live < self._limits.live_min else 0
        self._tell(
            Reason.DEAD_ACTIVATIONS,
            layer,
            self._dead[layer] >= self._limits.dead_reports,
            f"not learning: {100 * (1 - live):.4g} % of the outputs of {layer} are zero for every sample; lower the learning"
            " rate, or scale the data",
        )

    def observe(self, reports: Sequence[Report]) -> None:
        """What all shards say of themselves at about one time."""
        norms = {w: math.hypot(*(r.norms.get(w, 0.0) for r in reports)) for r in reports for w in r.norms}
        version = min((report.version for report in reports), default=0)
        if any(norms.values()):
            self._moved_at = version
        still = version - self._moved_at
        self._tell(
            Reason.ZERO_GRADIENTS,
            "",
            still >= self._limits.pushes_min,
            f"not learning: the gradients of all workers were zero over the last {still} updates; look whether the loss depends"
            " on the parameters",
        )
        self._observe_workers(reports, norms)

    def _observe_workers(self, reports: Sequence[Report], norms: dict[Worker, float]) -> None:
        taken: dict[Worker, int] = {}
        for report in reports:
            for worker, count in report.taken.items():
                taken[worker] = min(count, taken.get(worker, count))
        total = sum(taken.values())
        self._seen = {worker: seen for worker, seen in self._seen.items() if worker in taken}
        for worker, count in taken.items():
            seen, at = self._seen.get(worker, (-1, total))
            if seen < 0 or (count > seen and norms.get(worker, 0.0) > 0) or not any(norms.values()):
                self._seen[worker] = count, total
                self._tell(Reason.IDLE_WORKER, worker.node, False, "")
                continue
            others = total - at - (count - seen)
            idle = others >= self._limits.pushes_min * max(1, len(taken) - 1)
            refused = sum(n for report in reports for (who, _), n in report.refused.items() if who == worker)
            why = f"{refused} of its pushes were refused" if refused else "it is silent"
            why = "its gradients are zero" if count > seen else why
            text = (
                f"worker {worker} contributes nothing ({why}) while the others made {others} pushes; look at its node"
            )
            self._tell(Reason.IDLE_WORKER, worker.node, idle, text)

    def next_finding(self) -> Finding | None:
        """What began since it was last asked."""
        return self._new.popleft() if self._new else None

    @property
    def active(self) -> frozenset[tuple[Reason, str]]:
        """What holds now."""
        return frozenset(self._active)

    def _tell(self, reason: Reason, what: str, holds: bool, text: str) -> None:
        key = reason, what
        if not holds:
            self._active.discard(key)
        elif key not in self._active:
            self._active.add(key)
            self._new.append(Finding(reason, what, text))
