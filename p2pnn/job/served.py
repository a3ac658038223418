"""What the shards of a data-parallel run have told of themselves, for a person: how stale pushes were, what they cost, and for
whom the others wait."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from p2pnn.job.plan import Plan
from p2pnn.job.script import ShardReport


class Served:
    """Pure. Shards count from their start on, so the newest report of each says all. Of one that lives on several nodes its
    primary reports; bytes are counted by each process, so those of the primaries before are added.

    workers: name of each model replica's node, or `a+b` where it is cut over several. computing: names of the nodes that
    compute; () where all do.
    """

    def __init__(self, plan: Plan | None = None) -> None:
        replicas = plan.replicas if plan is not None else ()
        names = [share.name for share in plan.nodes] if plan is not None else []
        self._nodes = {"+".join(found): found for found in ([names[n] for n in replica.nodes] for replica in replicas)}
        self.workers = tuple(self._nodes)
        self.computing = frozenset(names[node] for replica in replicas for node in replica.nodes)
        self._gone: set[str] = set()
        self._names = names
        self._holders = [{names[node] for node in home.nodes} for home in plan.shards] if plan is not None else []
        self._before: Counter[str] = Counter()  # bytes that primaries had told of which are none any more
        self._reports: dict[int, ShardReport] = {}
        self._first: tuple[int, int, int] | None = None  # step, bytes in and out, where counting began

    def begins(self, step: int) -> None:
        """The shards start here. Without this word, bytes are counted from the first reports on."""
        self._first = (step, 0, 0)

    def without(self, node: str) -> set[str]:
        """A node takes part no more. Returns who computes no more with it: a worker needs all of its nodes."""
        found = {node, *(name for names in self._nodes.values() if node in names for name in names)}
        self._gone |= found
        return found

    def is_gone(self, node: str) -> bool:
        """Whether it computes no more; it may hold shards."""
        return node in self._gone

    def believed(self, node: str, reports: Iterable[ShardReport]) -> tuple[ShardReport, ...]:
        """Of what a node tells, that of shards which the plan has and places there."""
        shards = range(len(self._holders))
        return tuple(report for report in reports if report.shard in shards and node in self._holders[report.shard])

    def add(self, reports: Iterable[ShardReport], step: int) -> None:
        """What was `believed` of what a node told. step: how far the run is."""
        for report in reports:
            last = self._reports.get(report.shard)
            if last is not None and last.in_sync[:1] != report.in_sync[:1]:
                self._before.update(_counted(last))
            self._reports[report.shard] = report
        if self._first is None and len(self._reports) == len(self._holders):
            pushed, fetched, _ = self._bytes()
            self._first = (step, pushed, fetched)

    def fields(self, step: int, steps: Mapping[str, int], busy: Mapping[str, float]) -> dict[str, Any]:
        """Of a progress event; none where the run has no shards. step: how far the run is; steps, busy: by node's name.

        staleness: updates that a push was behind (as text) → pushes, over all shards. pushed_bytes, fetched_bytes: per step, to
        and from all shards; pushed_bytes_total, fetched_bytes_total: since the shards began. refused: worker's name → name of a
        `ps.messages.Refusal` → pushes. set_aside: workers' names. pushes: worker's name → how many a shard has applied, at most.
        slowest: the worker that is furthest behind; of several, the busiest (by its busiest node), since it waits least for the
        others.

        Where shards live on several nodes: copied_bytes: per step, sent to backups; copied_bytes_total: since the shards began;
        shards: of each its number as `shard`, the names of its `primary`, `backups` and `learners` (who catch up), and `lag`,
        decisions that not all backups hold yet.
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
        pushed, fetched, copied = self._bytes()
        first, pushed_before, fetched_before = self._first or (step, pushed, fetched)
        done = max(1, step - first)

        def pace(worker: str) -> tuple[int, float, str]:
            nodes = self._nodes[worker]
            return min(steps.get(n, 0) for n in nodes), -max(busy.get(n, 0.0) for n in nodes), worker

        workers = [name for name in self.workers if self._gone.isdisjoint(self._nodes[name])]
        slowest = min(workers, key=pace, default="")
        return {
            "staleness": {str(behind): staleness[behind] for behind in sorted(staleness)},
            "pushed_bytes": (pushed - pushed_before) / done,
            "fetched_bytes": (fetched - fetched_before) / done,
            "pushed_bytes_total": pushed,
            "fetched_bytes_total": fetched,
            "refused": {name: dict(sorted(refused[name].items())) for name in sorted(refused)},
            "set_aside": sorted(self._name(worker) for worker in aside),
            "pushes": {self._name(worker): pushes[worker] for worker in sorted(pushes)},
            "slowest": slowest if len(workers) > 1 else "",
            **(self._held(copied, done) if any(report.in_sync for report in self._reports.values()) else {}),
        }

    def _held(self, copied: int, done: int) -> dict[str, Any]:
        """Who holds the shards, and what that costs."""
        shards = []
        for number, report in sorted(self._reports.items()):
            primary, *backups = (self._node(index) for index in report.in_sync or (-1,))
            learners = [self._node(index) for index in report.learners]
            held = {"primary": primary, "backups": backups, "learners": learners}
            shards.append({"shard": number, **held, "lag": report.lag})
        return {"copied_bytes": copied / done, "copied_bytes_total": copied, "shards": shards}

    def _bytes(self) -> tuple[int, int, int]:
        """Pushed, fetched, and sent on to backups."""
        counted = self._before.copy()
        for report in self._reports.values():
            counted.update(_counted(report))
        return counted["pushed"], counted["fetched"], counted["copied"]

    def _node(self, index: int) -> str:
        return self._names[index] if 0 <= index < len(self._names) else f"node {index}"

    def _name(self, worker: int) -> str:
        return self.workers[worker] if 0 <= worker < len(self.workers) else f"worker {worker}"


def _counted(report: ShardReport) -> dict[str, int]:
    return {"pushed": report.received_bytes, "fetched": report.sent_bytes, "copied": report.copied_bytes}
