"""What the shards of a data-parallel run have told of themselves, for a person: how stale pushes were, what they cost, and for
whom the others wait."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from p2pnn.job.plan import Plan
from p2pnn.job.script import ShardReport


class Served:
    """Pure. Shards count from their start on, so the newest report of each says all.

    workers: name of each model replica's first node. computing: names of the nodes that compute; () where all do.
    """

    def __init__(self, plan: Plan | None = None) -> None:
        replicas = plan.replicas if plan is not None else ()
        names = [share.name for share in plan.nodes] if plan is not None else []
        self.workers = tuple(names[replica.nodes[0]] for replica in replicas)
        self.computing = frozenset(names[node] for replica in replicas for node in replica.nodes)
        self._gone: set[str] = set()
        self._shards = len(plan.shards) if plan is not None else 0
        self._reports: dict[int, ShardReport] = {}
        self._first: tuple[int, int, int] | None = None  # step, bytes in and out, where counting began

    def begins(self, step: int) -> None:
        """The shards start here. Without this word, bytes are counted from the first reports on."""
        self._first = (step, 0, 0)

    def without(self, node: str) -> None:
        """A node takes part no more."""
        self._gone.add(node)

    def is_gone(self, node: str) -> bool:
        return node in self._gone

    def add(self, reports: Iterable[ShardReport], step: int) -> None:
        """What a node tells of its shards; of a shard that the plan has not, nothing is kept. step: how far the run is."""
        for report in reports:
            if 0 <= report.shard < self._shards:
                self._reports[report.shard] = report
        if self._first is None and len(self._reports) == self._shards:
            self._first = (step, *self._bytes())

    def fields(self, step: int, steps: Mapping[str, int], busy: Mapping[str, float]) -> dict[str, Any]:
        """Of a progress event; none where the run has no shards. step: how far the run is; steps, busy: by node's name.

        staleness: updates that a push was behind (as text) → pushes, over all shards. pushed_bytes, fetched_bytes: per step, to
        and from all shards. refused: worker's name → name of a `ps.messages.Refusal` → pushes. set_aside: workers' names.
        pushes: worker's name → how many a shard has applied, at most.
        slowest: the worker that is furthest behind; of several, the busiest, since it waits least for the others.
        """
        if not self._reports:
            return {}
        staleness: Counter[int] = Counter()
        refused: dict[str, Counter[str]] = {}
        pushes: Counter[int] = Counter()
        aside: set[int] = set()
        for report in self._reports.values():
            staleness.update(report.staleness)
            for worker, why, count in report.refused:
                refused.setdefault(self._name(worker), Counter())[why] += count
            aside.update(report.set_aside)
            pushes |= Counter(report.taken)
        pushed, fetched = self._bytes()
        first, pushed_before, fetched_before = self._first or (step, pushed, fetched)
        done = max(1, step - first)
        workers = [name for name in self.workers if name not in self._gone]
        slowest = min(workers, key=lambda name: (steps.get(name, 0), -busy.get(name, 0.0), name), default="")
        return {
            "staleness": {str(behind): staleness[behind] for behind in sorted(staleness)},
            "pushed_bytes": (pushed - pushed_before) / done,
            "fetched_bytes": (fetched - fetched_before) / done,
            "refused": {name: dict(sorted(refused[name].items())) for name in sorted(refused)},
            "set_aside": sorted(self._name(worker) for worker in aside),
            "pushes": {self._name(worker): pushes[worker] for worker in sorted(pushes)},
            "slowest": slowest if len(workers) > 1 else "",
        }

    def _bytes(self) -> tuple[int, int]:
        reports = self._reports.values()
        return sum(report.received_bytes for report in reports), sum(report.sent_bytes for report in reports)

    def _name(self, worker: int) -> str:
        return self.workers[worker] if 0 <= worker < len(self.workers) else f"worker {worker}"
