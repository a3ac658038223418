"""Which steps of a data-parallel job are a worker's: global ones, as the script and the data count them, and its own, local ones.

A *global step* is a batch number 0, 1, … over all epochs. In `sync` all workers take part in each, with an equal share of its
micro-batches: so the steps of one process are computed, whose gradients are summed in the workers' order. Otherwise worker w of
W has batches w, w + W, w + 2W, …, each as a mini-batch with all its micro-batches. What no worker but one has cannot be
counted twice, and at any batch of the job the workers' counts differ by at most one.

A split is evaluated by all workers in every kind, each on a run of its micro-batches. Only where workers have running statistics,
each its own, worker 0 evaluates alone: it is its statistics that are saved, so what is measured is what the run will give.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from p2pnn.errors import LocalProtocolError
from p2pnn.job.plan import Plan
from p2pnn.job.spec import JobSpec
from p2pnn.ps.consistency import Settings, consistency


@dataclass(frozen=True, slots=True)
class Allotment:
    """Worker number `index` of `workers`. shared: every worker takes part in every step (`sync`). backup: that of `sync`.
    apart: the workers have state that is not on the shards, running means and variances.

    The default is that of a run of one worker: everything is its own.
    """

    workers: int = 1
    index: int = 0
    shared: bool = True
    backup: int = 0
    apart: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.workers:
            raise LocalProtocolError(f"there is no worker {self.index} of {self.workers}")

    @classmethod
    def of(cls, spec: JobSpec, plan: Plan, index: int) -> Allotment:
        """That of the plan's node `index`, which computes for a replica."""
        if spec.data is None:
            return cls()
        how = consistency(spec.data.consistency, spec.data.backup)
        apart = bool(spec.graph.statistics)
        return cls(len(plan.replicas), plan.worker_of(index), how.kind == "sync", how.backup, apart)

    # training

    def local(self, until: int) -> int:
        """How many of the global steps below `until` are this worker's: its local step when it has done them."""
        return until if self.shared else max(0, -(-(until - self.index) // self.workers))

    def batch(self, local: int) -> int:
        """The global step that a local one trains; it keys the data's order and random numbers."""
        return local if self.shared else local * self.workers + self.index

    def reached(self, local: int) -> int:
        """The least global step of its own that a worker with `local` steps done has not trained: what it reports."""
        return self.batch(local)

    def micro_batches(self, count: int) -> range:
        """Those of a step's `count` micro-batches that this worker computes. In `sync`, count is a multiple of the workers."""
        if not self.shared:
            return range(count)
        share = count // self.workers
        return range(self.index * share, (self.index + 1) * share)

    def loss_scale(self, count: int) -> float:
        """What the losses' gradients start with, so that sums of gradients are means: over the micro-batches of all workers
        whose pushes make a step (`sync`), or over its own."""
        return 1.0 / (len(self.micro_batches(count)) * (self.workers - self.backup if self.shared else 1))

    # evaluation

    def evaluated(self, count: int, gone: Collection[int] = ()) -> range:
        """Those of a split's `count` micro-batches that this worker evaluates: all workers' are the whole, once, in order. gone:
        workers that take no part."""
        left = [worker for worker in range(self.workers) if worker not in gone]
        if self.index not in left:
            return range(0)
        place = left.index(self.index)
        if self.apart:
            return range(0 if place else count)
        return range(place * count // len(left), (place + 1) * count // len(left))


def updates(settings: Settings, workers: int, steps: int) -> int:
    """How many updates a shard makes in `steps` global steps, with no push refused: what schedules and Adam count by.

    Of `local` the rounds, if the steps are not divided by commands in between (a shorter round is one, too).
    """
    how = settings.consistency
    if how.kind == "sync":
        return steps
    counts = [Allotment(workers, index, shared=False).local(steps) for index in range(workers)]
    if how.kind == "local":
        return -(-max(counts) // how.local_steps)
    return sum(-(-count // settings.n_push) for count in counts)
