"""Progress of a run as a person sees it: loss, metrics, samples per second, busy nodes, time left."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import Any, Final

from p2pnn.job.script import Progress
from p2pnn.job.spec import JobSpec

WINDOW_S: Final = 3.0
"""Throughput is measured over this long, so that it follows a change within seconds and does not jitter."""

EVENT_INTERVAL_S: Final = 0.2


def finished(kind: str, total: float, count: float) -> float:
    """A metric's number from its sum and count: `mean`, `root` or `exp`, see `model.graph.Metric`."""
    mean = total / count if count else math.nan
    if kind == "root":
        return math.sqrt(mean)
    if kind == "exp":
        return math.exp(mean) if mean < 700 else math.inf
    return mean


class ProgressMeter:
    """Adds up the Progress messages of all nodes. Pure; `now` in seconds."""

    def __init__(self, spec: JobSpec, step: int, now: float) -> None:
        self._spec = spec
        self._step = step
        self._steps: dict[str, int] = {}
        self._busy: dict[str, tuple[float, float]] = {}
        self._recent: deque[tuple[float, int]] = deque([(now, step)])
        self._shown_at = -math.inf
        self._since_event = _Sums()
        self._since_epoch = _Sums()
        self._epoch_start = (now, step)

    def start(self, now: float, nodes: Iterable[str]) -> None:
        """Training begins now on these nodes: what passed before does not count."""
        self._steps = dict.fromkeys(nodes, self._step)
        self._recent = deque([(now, self._step)])
        self._epoch_start = (now, self._step)

    def add(self, node: str, progress: Progress, now: float) -> dict[str, Any] | None:
        """Count one message; returns the fields of a progress event when it is time for one."""
        self._steps[node] = progress.step
        self._busy[node] = (progress.compute_s, progress.wall_s)
        for sums in (self._since_event, self._since_epoch):
            sums.add(progress)
        step = min(self._steps.values())  # the slowest node is what counts
        if step > self._step:
            self._step = step
            self._recent.append((now, step))
        while len(self._recent) > 2 and now - self._recent[1][0] > WINDOW_S:
            self._recent.popleft()
        if now - self._shown_at < EVENT_INTERVAL_S or not self._since_event.rows:
            return None
        self._shown_at = now
        rate = self.steps_per_s(now)
        event = {
            "step": self._step,
            "steps": self._spec.steps,
            "loss": self._since_event.loss,
            "metrics": self._since_event.metrics(self._spec),
            "samples_per_s": rate * self._spec.batch_size,
            "busy": {name: min(1.0, c / w) if w > 0 else 0.0 for name, (c, w) in sorted(self._busy.items())},
            "left_s": (self._spec.steps - self._step) / rate if rate > 0 else None,
        }
        self._since_event = _Sums()
        return event

    def steps_per_s(self, now: float) -> float:
        (then, first), (_, last) = self._recent[0], self._recent[-1]
        return (last - first) / (now - then) if now > then else 0.0

    def end_epoch(self, epoch: int, step: int, now: float) -> dict[str, float]:
        """The record of an epoch, as in metrics.jsonl; begins the next one."""
        then, first = self._epoch_start
        entry: dict[str, float] = {"epoch": epoch, "step": step}
        if self._since_epoch.rows:
            entry["loss"] = self._since_epoch.loss
        entry |= self._since_epoch.metrics(self._spec)
        entry["samples_per_s"] = (step - first) * self._spec.batch_size / max(1e-9, now - then)
        self._since_epoch = _Sums()
        self._epoch_start = (now, step)
        return entry


class _Sums:
    def __init__(self) -> None:
        self.loss_sum = 0.0
        self.rows = 0
        self._metrics: dict[str, tuple[float, float]] = {}

    def add(self, progress: Progress) -> None:
        self.loss_sum += progress.losses[0]
        self.rows += progress.losses[1]
        for name, (total, count) in progress.metrics.items():
            before = self._metrics.get(name, (0.0, 0.0))
            self._metrics[name] = (before[0] + total, before[1] + count)

    @property
    def loss(self) -> float:
        return self.loss_sum / self.rows if self.rows else math.nan

    def metrics(self, spec: JobSpec) -> dict[str, float]:
        return {m.name: finished(m.kind, *self._metrics[m.name]) for m in spec.graph.metrics if m.name in self._metrics}
