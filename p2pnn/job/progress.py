"""Progress of a run as a person sees it: loss, metrics, samples per second, busy nodes, time left."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from p2pnn.job.learning import Learning
from p2pnn.job.part_log import Totals
from p2pnn.job.plan import Plan
from p2pnn.job.script import Progress
from p2pnn.job.served import Served
from p2pnn.job.snapshots import Interval
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
    """Adds up the Progress messages of all nodes. Pure; `now` in seconds. uneven: is set by the owner: where batches are
    leased, how many of the epoch under way were trained more often than once, and how many were given up."""

    def __init__(self, spec: JobSpec, step: int, now: float, uneven: tuple[int, int] = (0, 0)) -> None:
        self._spec = spec
        self._step = step
        self._steps: dict[str, int] = {}
        self._busy: dict[str, tuple[float, float]] = {}
        self._served = Served()
        self._learning = Learning(spec, None, step)
        self._warnings: list[str] = []
        self.interval = Interval(0 if spec.data is not None else spec.snapshot_steps)
        self.counted: dict[str, Totals] = {}
        self.uneven = uneven
        self._recent: deque[tuple[float, int]] = deque([(now, step)])
        self._shown_at = -math.inf
        self._shown: dict[str, Any] = {}
        self._since_event = Totals()
        self._since_epoch = Totals()
        self._epoch_start = (now, step)
        self._entries: dict[int, dict[str, float]] = {}

    def follow(self, lost: ProgressMeter) -> None:
        """This run does again what a lost one did: an epoch that it had ended is known from it, and so is one whose steps up to
        where this run begins all nodes had told. Of any other the figures are those of its steps from here on."""
        if self._spec.in_flight < 2:
            self._entries = dict(lost._entries)
            if set(lost._steps.values()) == {self._step}:
                self._since_epoch = lost._since_epoch

    def start(self, now: float, nodes: Iterable[str], plan: Plan | None = None) -> None:
        """Training begins now on these nodes: what passed before does not count. Those of them that compute do, by the plan."""
        self._begin(now, nodes, plan)
        self._served.begins(self._step)

    def _begin(self, now: float, nodes: Iterable[str], plan: Plan | None) -> None:
        self._served = Served(plan)
        self._learning = Learning(self._spec, plan, self._step)
        self._steps = dict.fromkeys((name for name in nodes if self._computes(name)), self._step)
        self._recent = deque([(now, self._step)])
        self._epoch_start = (now, self._step)

    def add(self, node: str, progress: Progress, now: float) -> dict[str, Any] | None:
        """Count one message; returns the fields of a progress event when it is time for one."""
        if progress.served:
            progress = msgspec.structs.replace(progress, served=self._served.believed(node, progress.served))
        if self._computes(node) and not self._served.is_gone(node):
            self._steps[node] = progress.step
            self.interval.add(node, progress)
        if progress.wall_s > 0:
            self._busy[node] = (progress.compute_s, progress.wall_s)
        for sums in (self._since_event, self._since_epoch, self.counted.setdefault(node, Totals())):
            sums.add(progress)
        step = min(self._steps.values(), default=self._step)  # the slowest node is what counts
        if step > self._step:
            self._step = step
            self._recent.append((now, step))
        self._served.add(progress.served, self._step)
        self._warnings += self._learning.add(node, progress, self._step, now)
        while len(self._recent) > 2 and now - self._recent[1][0] > WINDOW_S:
            self._recent.popleft()
        # Nothing tells later what shards saw in all.
        last = bool(progress.served and self._shown) and self._step >= self._spec.steps
        if not last and (now - self._shown_at < EVENT_INTERVAL_S or not self._since_event.rows):
            return None
        self._shown_at = now
        if self._since_event.rows:
            self._shown = {"loss": _loss(self._since_event), "metrics": _metrics(self._since_event, self._spec)}
        rate = self.steps_per_s(now)
        busy = {name: min(1.0, c / w) for name, (c, w) in sorted(self._busy.items())}
        event = {
            "step": self._step,
            "steps": self._spec.steps,
            **self._shown,
            "samples_per_s": rate * self._spec.batch_size,
            "busy": busy,
            "left_s": (self._spec.steps - self._step) / rate if rate > 0 else None,
            **self._served.fields(self._step, self._steps, busy),
        }
        self._since_event = Totals()
        return event

    def take_warnings(self) -> list[str]:
        """What `job.learning` has found since this was last asked."""
        found, self._warnings = self._warnings, []
        return found

    def without(self, node: str) -> None:
        """A node takes part no more: nobody waits for it, nor for the others of its worker, and they are not busy. What they have
        reported counts."""
        self._learning.without(node)
        for name in self._served.without(node):
            self._steps.pop(name, None)
            self._busy.pop(name, None)

    def tell(self, nodes: Iterable[str]) -> tuple[tuple[Totals, ...], Totals]:
        """What a coordinator that goes on needs: what was counted so far by node, and the sums of this epoch."""
        return tuple(self.counted.get(node, Totals()) for node in nodes), self._since_epoch

    def take_over(
        self,
        counted: dict[str, Totals],
        epoch: Totals,
        step: int,
        now: float,
        plan: Plan | None = None,
        uneven: tuple[int, int] = (0, 0),
    ) -> None:
        """Go on from what `tell` gave, in a process that has not seen the steps before. The epoch's rate counts from here."""
        self._step = step
        self._begin(now, counted, plan)
        self.counted = counted
        self._since_epoch, self.uneven = epoch, uneven

    def catch_up(self, totals: dict[str, Totals], now: float) -> None:
        """After `take_over`: what nodes have reported in all, by name, which was counted or not."""
        for name, total in totals.items():
            self.add(name, Progress(self._step, *total.beyond(self.counted.get(name, Totals())), 0.0, 0.0), now)

    def _computes(self, node: str) -> bool:
        return not self._served.computing or node in self._served.computing

    def steps_per_s(self, now: float) -> float:
        (then, first), (_, last) = self._recent[0], self._recent[-1]
        return (last - first) / (now - then) if now > then else 0.0

    def end_epoch(self, epoch: int, step: int, now: float) -> dict[str, float]:
        """The record of an epoch, as in metrics.jsonl; begins the next one."""
        then, first = self._epoch_start
        entry: dict[str, float] = {"epoch": epoch, "step": step}
        if self._since_epoch.rows:
            entry["loss"] = _loss(self._since_epoch)
        entry |= _metrics(self._since_epoch, self._spec)
        entry = self._entries.setdefault(epoch, entry) | {"epoch": epoch, "step": step}
        entry["samples_per_s"] = (step - first) * self._spec.batch_size / max(1e-9, now - then)
        # Else each batch was trained once: an epoch does not end before all are, or are given up.
        entry |= {name: n for name, n in zip(("trained_again", "never_trained"), self.uneven, strict=True) if n}
        self._since_epoch, self.uneven = Totals(), (0, 0)
        self._epoch_start = (now, step)
        return entry


def _loss(sums: Totals) -> float:
    return sums.loss_sum / sums.rows if sums.rows else math.nan


def _metrics(sums: Totals, spec: JobSpec) -> dict[str, float]:
    return {m.name: finished(m.kind, *sums.metrics[m.name]) for m in spec.graph.metrics if m.name in sums.metrics}
