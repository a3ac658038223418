"""What a data-parallel run promises about the parameters that a gradient was computed from.

    async     nothing but a bound where `staleness_max` asks for one. Each push is an update of its own, pulls read live memory
    ssp:s     no worker is more than s clocks (its pushes) ahead of the slowest; so what worker w's push number c is based on
              holds the first c − s pushes of every worker (Ho et al. 2013). Each push is an update of its own
    sync      one update per step, from one push of each worker, summed in the order of the workers: equal, bit for bit, to one
              process that computes all their micro-batches (see `is_bitwise`). With `backup:b` the first N − b
              gradients make the step and the others are dropped (Chen et al. 2016)
    local:H   each worker takes H steps of its own between two rounds of `sync`, whose gradients are then differences of
              parameters (DiLoCo; see `optimizers`)

A worker of `sync` starts its losses' gradients with 1/(N − b), so that sums are means; differences of `local` are averaged here.

Bit for bit rests on two things: a micro-batch's gradient is made apart and then added (a GEMM that accumulates adds in panels,
to other bits from 512 rows on with OpenBLAS), and sums are made in pairs (`model.sums`), of which a worker's sum is one.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Final

from p2pnn.errors import UsageError
from p2pnn.job.spec import DataParallel, JobSpec, Optimizer
from p2pnn.ps.compression import codec
from p2pnn.ps.optimizers import OUTER
from p2pnn.ps.sharding import POLICIES

BOUND_MAX: Final = 10_000

SEGMENTS_MAX: Final = 1_000

REPLICAS_MAX: Final = 2
"""Nodes that hold each shard: a backup more would take as much of the primary's link as all workers' pushes, once more."""

FORMS: Final = "async, ssp:S, sync, or local:H, such as ssp:3 or local:8"


@dataclass(frozen=True, slots=True)
class Consistency:
    """kind: async, ssp, sync or local. bound: s of ssp. backup: b of sync. local_steps: H of local."""

    kind: str = "async"
    bound: int = 0
    backup: int = 0
    local_steps: int = 0

    @property
    def in_rounds(self) -> bool:
        """Whether one update is made from a push of each worker."""
        return self.kind in ("sync", "local")

    @property
    def waits(self) -> bool:
        """Whether a worker waits for the answer to a push before it goes on."""
        return self.kind != "async"

    def quorum(self, workers: int) -> int:
        """How many pushes make a round; what a worker of `sync` divides its losses' gradients by."""
        return workers - self.backup

    def __str__(self) -> str:
        number = self.bound if self.kind == "ssp" else self.local_steps
        return f"{self.kind}:{number}" if number or self.kind == "ssp" else self.kind


def consistency(text: str, backup: int = 0) -> Consistency:
    """What a person wrote. Raises UsageError with the forms that there are."""
    kind, colon, number = text.partition(":")
    count = int(number) if number.isascii() and number.isdigit() and len(number) < 9 else -1
    found: Consistency | None = None
    if text in ("async", "sync"):
        found = Consistency(text, backup=backup)
    elif kind == "ssp" and colon and 0 <= count <= BOUND_MAX:
        found = Consistency(kind, bound=count, backup=backup)
    elif kind == "local" and 1 <= count <= BOUND_MAX:
        found = Consistency(kind, local_steps=count, backup=backup)
    if found is None:
        raise UsageError(f"there is no consistency {text[:40]!r}: write {FORMS}")
    if backup and kind != "sync":
        raise UsageError(
            f"backup:{backup} goes with sync alone: with {text} no step waits for the slowest worker's gradient"
        )
    return found


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything about a data-parallel run that its shards and workers must agree on.

    push, pull: compressions of gradients and of parameters. n_push, n_fetch: steps from one to the next (Downpour; 1 with
    everything but async). local_rate: the α of Downpour's local application, 0 for none. The others are async's too. warm_start:
    updates that the first worker makes alone. staleness_max: a push that is more updates behind is refused; 0 for any.
    scale_by_staleness: a push that is τ ≥ 1 updates behind takes the rate divided by τ (Zhang et al. 2016, eq. 6). outer: what
    the shards of `local` do.
    """

    consistency: Consistency = Consistency()
    push: str = "float32"
    pull: str = "float32"
    n_push: int = 1
    n_fetch: int = 1
    local_rate: float = 0.0
    warm_start: int = 0
    staleness_max: int = 0
    scale_by_staleness: bool = False
    outer: Optimizer = OUTER


def settings(data: DataParallel) -> Settings:
    """What a spec says. Raises UsageError where it names no consistency."""
    return Settings(
        consistency(data.consistency, data.backup),
        push=data.push,
        pull=data.pull,
        n_push=data.n_push,
        n_fetch=data.n_fetch,
        local_rate=data.local_rate,
        warm_start=data.warm_start,
        staleness_max=data.staleness_max,
        scale_by_staleness=data.scale_by_staleness,
    )


def check_spec(spec: JobSpec, workers: int, shards: int) -> None:
    """Raise UsageError, one sentence, for a data-parallel job that cannot be run; workers, shards: 0 where the planner is
    still to choose."""
    data = spec.data
    if data is None:
        raise UsageError(
            "the job says nothing about its workers and shards: leave parallel = data away, or submit it again"
        )
    if spec.kind != "train":
        raise UsageError(f"a job of kind {spec.kind} has no gradients to push: parallel = data is for training")
    check_segments(data, cut=spec.parallel == "hybrid")
    if not 0 <= data.replicas <= REPLICAS_MAX:
        raise UsageError(
            f"replicas = {data.replicas}: each shard lives on 1 node or on {REPLICAS_MAX}; 0 takes {REPLICAS_MAX} where there is"
            " room for it"
        )
    if spec.schedule != "sync":
        raise UsageError(
            f"schedule = {spec.schedule} keeps mini-batches in flight between the nodes of one replica: leave it away with"
            " parallel = data, and write consistency = async for workers that do not wait for each other"
        )
    found = settings(data)
    check(found, workers or found.consistency.backup + 1, spec.optimizer)
    tensors = len(spec.graph.parameters)
    if data.cut not in POLICIES:
        raise UsageError(
            f"there is no way {data.cut[:40]!r} to cut parameters into shards; take one of {', '.join(POLICIES)}"
        )
    if shards > tensors:
        raise UsageError(
            f"shards = {shards}, but the model has only {tensors} parameter tensors: take at most {tensors} shards"
        )
    if found.consistency.kind == "sync" and workers and spec.micro_batches % workers:
        raise UsageError(
            f"micro_batches = {spec.micro_batches} with sync and {workers} workers: each takes an equal share of a step's"
            f" micro-batches, so write a multiple of {workers}"
        )


def check_segments(data: DataParallel, *, cut: bool) -> None:
    """Raise UsageError for segments that do not go with the kind of parallelism, or for what goes with no more than one. cut:
    whether model replicas are cut over nodes (hybrid)."""
    if not cut and data.segments != 1:
        raise UsageError(
            f"segments = {data.segments} with parallel = data: each worker holds the whole model there; say hybrid to cut it over"
            " several nodes"
        )
    if cut and not (data.segments == 0 or 2 <= data.segments <= SEGMENTS_MAX):
        raise UsageError(
            f"segments = {data.segments} with parallel = hybrid: a model replica is cut over 2 nodes or more (at most"
            f" {SEGMENTS_MAX}), or 0 for as many as is fastest; say data where each worker holds the whole model"
        )
    if cut and data.backup:
        raise UsageError(
            f"backup:{data.backup} with parallel = hybrid: the nodes of a replica that is late cannot leave steps out together;"
            " leave it away, or say data"
        )


def is_bitwise(spec: JobSpec, workers: int) -> bool:
    """Whether the job has the bits of one process that computes all micro-batches, if all nodes' arithmetic is the same.

    Each worker's share must be a power of two: only such sums are parts of the whole one (`model.sums`). What batch normalization
    keeps comes from the first worker's micro-batches alone. The gradient of a parameter that several ops read is summed per op
    first, over a worker's micro-batches; and one process with one micro-batch per step makes plain SGD's updates inside a GEMM.
    """
    data = spec.data
    if data is None:
        return True
    exact = data.consistency == "sync" and not data.backup and data.push == data.pull == "float32"
    if workers == 1:
        return exact and (spec.micro_batches > 1 or spec.optimizer.kind != "sgd")
    readers = Counter(name for op in spec.graph.ops for name in dict.fromkeys(op.inputs))
    share, shared = spec.micro_batches // workers, any(readers[p.name] > 1 for p in spec.graph.parameters)
    return exact and share.bit_count() == 1 and not shared and not spec.graph.statistics


def check(settings: Settings, workers: int, optimizer: Optimizer) -> None:
    """Raise UsageError, one sentence, for what cannot be run with so many workers."""
    how = settings.consistency
    for name, count in (("n_push", settings.n_push), ("n_fetch", settings.n_fetch), ("workers", workers)):
        if count < 1:
            raise UsageError(f"{name} = {count}: it must be at least 1")
    if how.backup < 0 or (how.backup and how.backup >= workers):
        raise UsageError(
            f"backup:{how.backup} with {workers} workers: a step needs at least one gradient, so it is from 0 to {workers - 1}"
        )
    if how.waits and (settings.n_push, settings.n_fetch) != (1, 1):
        every = f"n_push = {settings.n_push}, n_fetch = {settings.n_fetch}"
        raise UsageError(f"{every} with {how}: these are for async; use local:H to push every H steps")
    async_only = {
        "local_rate": settings.local_rate,
        "warm_start": settings.warm_start,
        "staleness_max": settings.staleness_max,
        "scale_by_staleness": settings.scale_by_staleness,
    }
    for name, value in async_only.items():
        if value and how.waits:
            raise UsageError(f"{name} = {value} with {how}: it is for async alone")
        if not 0 <= value < math.inf:
            raise UsageError(f"{name} = {value}: it is a number from 0 on")
    if how.kind == "sync" and optimizer.clip_norm:
        raise UsageError(
            f"clip_norm = {optimizer.clip_norm:g} with sync: no shard sees the whole gradient; leave it away, or use async, ssp"
            " or local, where each worker clips its own"
        )
    codec(settings.push)
    codec(settings.pull)
