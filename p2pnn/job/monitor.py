"""The monitored value of a run: the best so far, and when there is no point in going on.

The value is a metric of the validation split, by name, or its loss. Early stopping counts epochs without a better one.
"""

from __future__ import annotations

from collections.abc import Mapping

from p2pnn.job.checkpoint import Manifest
from p2pnn.job.records import SplitResult
from p2pnn.job.spec import JobSpec


class Monitor:
    """Pure. resumed: the checkpoint that the run goes on from."""

    def __init__(self, spec: JobSpec, resumed: Manifest | None) -> None:
        self._spec = spec
        self.best_value = resumed.best_value if resumed else None
        self.best_epoch = resumed.best_epoch if resumed else 0

    def improves(self, epoch: int, validation: SplitResult) -> bool:
        """Whether the epoch (from 1) is the best so far; NaN never is."""
        return self._take(epoch, validation.metrics.get(self._spec.monitor, validation.loss))

    def take(self, epoch: int, entry: Mapping[str, float]) -> None:
        """Count an epoch again by its entry in the history."""
        self._take(epoch, entry.get(f"validation_{self._spec.monitor}", entry.get("validation_loss")))

    def _take(self, epoch: int, value: float | None) -> bool:
        goals = {m.name: m.goal for m in self._spec.graph.metrics}
        if value is None or value != value:
            return False
        higher = goals.get(self._spec.monitor, "min") == "max"
        best = self.best_value
        if best is not None and not (value > best if higher else value < best):
            return False
        self.best_value, self.best_epoch = value, epoch
        return True

    def stops(self, epoch: int) -> bool:
        """Whether `patience` epochs brought nothing better."""
        patience = self._spec.patience
        return bool(patience and self.best_epoch and epoch - self.best_epoch >= patience)
