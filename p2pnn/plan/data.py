"""Data parallelism planned: which nodes are workers, which hold shards, how many of each; or why it cannot be.

Without a wish every node with room for the whole model is a worker (with `sync` as many as share the micro-batches evenly),
and there are as many shards as nodes can hold without making a step slower. Nothing is started before that is known, so
whatever cannot work ends here, with one sentence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from p2pnn.errors import PlanError
from p2pnn.job.plan import NodeShare, Plan, Replica, ShardHome
from p2pnn.job.spec import JobSpec
from p2pnn.plan import verdict
from p2pnn.plan.cost import Links, Workload, limits
from p2pnn.plan.describe import size
from p2pnn.plan.exchange import Exchange, check_shards, exchange, server_bytes, settings_of, shard_counts, worker_bytes
from p2pnn.plan.pace import Pace, pace
from p2pnn.plan.profile import Profile
from p2pnn.plan.roles import Roles, by_speed, place, with_room
from p2pnn.ps.consistency import REPLICAS_MAX, check_spec
from p2pnn.ps.sharding import cut
from p2pnn.ps.space import Space

TOLERANCE: Final = 0.01
"""A shard more that costs less than this fraction of the pace costs nothing: less is noise of the model."""


@dataclass(frozen=True, slots=True)
class Dealt:
    """A choice of roles with what it exchanges and its predicted pace. fitting: how many nodes have room for a worker."""

    there: Exchange
    roles: Roles
    pace: Pace
    fitting: int


def check(spec: JobSpec) -> None:
    """Raise PlanError for wishes that data parallelism, or hybrid, does not go with. UsageError for settings that contradict each
    other."""
    if spec.pins:
        hybrid = spec.parallel == "hybrid"
        kind = (
            "hybrid parallelism each worker has nodes of its own"
            if hybrid
            else "data parallelism each worker holds the whole model"
        )
        raise PlanError(
            f"the pin {spec.pins[0].pattern}={spec.pins[0].node} is for model parallelism: with {kind}; leave pins away, or say "
            "--parallel model"
        )
    if spec.schedule != "sync":
        raise PlanError(
            f"--schedule {spec.schedule} is for model parallelism; with --parallel {spec.parallel} say --consistency async "
            "instead"
        )
    if spec.cut:
        raise PlanError("the job's cut is for model parallelism: leave cut out of the job file's [mesh]")
    data = settings_of(spec)
    if spec.parallel == "hybrid" and spec.data is None:
        data = msgspec.structs.replace(data, segments=0)
    named = msgspec.structs.replace(spec, data=data)
    check_spec(named, 0 if data.consistency == "sync" else data.workers, 0)  # `_worker_counts` says what sync could do


def choose(work: Workload, spec: JobSpec, candidates: Sequence[Profile], links: Links) -> Dealt:
    """The roles that the job asks for, or the best there are. candidates: by name. Raises PlanError, UsageError."""
    check(spec)
    data, space = settings_of(spec), Space.of(spec.graph)
    check_shards(spec, len(space.entries))
    if data.workers > len(candidates):
        raise PlanError(
            f"--workers {data.workers} takes as many nodes, but there {_are(candidates)}; start more, or take "
            f"--workers {len(candidates)}"
        )
    if 0 < spec.node_count < data.workers:
        raise PlanError(
            f"--workers {data.workers} takes as many nodes, but --nodes {spec.node_count} allows fewer; change one of them"
        )
    fast = by_speed(work, candidates)
    if spec.node_count:
        candidates = [candidates[n] for n in sorted(fast[: spec.node_count])]
        fast = by_speed(work, candidates)
    if data.replicas > len(candidates):
        raise PlanError(
            f"--replicas {data.replicas} takes as many nodes for each shard, but there {_are(candidates)}; start more, or take "
            f"--replicas {len(candidates)}"
        )
    least = exchange(spec, cut(space, data.shards or 1, data.cut))
    fitting = set(with_room(work, spec, least, candidates))
    fast = [n for n in fast if n in fitting]
    if len(fast) < max(1, data.workers):
        raise PlanError(_no_worker(work, spec, least, candidates, data.workers))
    for count in _worker_counts(spec, len(fast)):
        found = _best_shards(work, spec, space, candidates, sorted(fast[:count]), links)
        if found is not None:
            there, roles, speed = found
            return Dealt(there, roles, speed, len(fast))
    raise PlanError(_no_server(work, spec, least, candidates))


def _best_shards(
    work: Workload, spec: JobSpec, space: Space, candidates: Sequence[Profile], workers: Sequence[int], links: Links
) -> tuple[Exchange, Roles, Pace] | None:
    """As many shards as asked for, or as do not make it slower; None where memory does not suffice for any number."""
    data = settings_of(spec)
    for copies in [data.replicas] if data.replicas else range(REPLICAS_MAX, 0, -1):
        best = _best_of(work, spec, space, candidates, workers, links, copies)
        if best is not None:
            return best
    return None


def _best_of(
    work: Workload,
    spec: JobSpec,
    space: Space,
    candidates: Sequence[Profile],
    workers: Sequence[int],
    links: Links,
    copies: int,
) -> tuple[Exchange, Roles, Pace] | None:
    """As `_best_shards`, with so many nodes for each shard."""
    data = settings_of(spec)
    most = min(len(space.entries), space.size, len(candidates))
    found = []
    for count in shard_counts(spec, 1, most, copies):
        there = exchange(spec, cut(space, count, data.cut))
        roles = place(work, spec, there, candidates, workers, links, copies, widely=data.replicas > 1)
        if roles is not None and (data.shards or len(set(roles.homes)) == count):
            found.append((there, roles, pace(work, spec, there, roles, links)))
    best = max((speed.samples_per_s for _, _, speed in found), default=0.0)
    good = [row for row in found if row[2].samples_per_s >= best * (1 - TOLERANCE)]
    return good[-1] if good else None


def _worker_counts(spec: JobSpec, fitting: int) -> Iterator[int]:
    """Numbers of workers to try, the preferred one first. Raises PlanError where none shares the micro-batches."""
    data, pieces = settings_of(spec), spec.micro_batches
    in_shares = data.consistency == "sync"
    if data.workers:
        if in_shares and pieces % data.workers:
            raise PlanError(
                f"{data.workers} workers cannot share the {pieces} micro-batches of a step evenly, which sync needs: "
                f"{verdict.shareable(spec.batch_size, pieces, data.workers)}"
            )
        if data.backup >= data.workers:
            raise PlanError(_no_backup(spec, data.workers))
        yield data.workers
        return
    counts = [n for n in range(fitting, 0, -1) if not in_shares or pieces % n == 0]
    if data.backup >= counts[0]:
        raise PlanError(_no_backup(spec, counts[0]))
    yield from (n for n in counts if n > data.backup)


def _no_backup(spec: JobSpec, workers: int) -> str:
    backup = settings_of(spec).backup
    them = f"{workers} workers" if workers > 1 else "one worker"
    return (
        f"--backup {backup} with {them}: a step needs at least one gradient; take fewer, or more workers than --backup"
    )


def _are(nodes: Sequence[Profile]) -> str:
    names = ", ".join(p.name for p in nodes)
    return f"is one: {names}" if len(nodes) == 1 else f"are {len(nodes)}: {names}"


def _no_worker(work: Workload, spec: JobSpec, there: Exchange, candidates: Sequence[Profile], asked: int) -> str:
    needed = worker_bytes(work, spec, there)
    rows = [
        f"{p.name} has {size(r)}" for p, r in zip(candidates, limits(candidates, spec.memory_bytes_max), strict=True)
    ]
    return (
        f"a worker holds the whole model and needs {size(needed)}, but {', '.join(rows)}; "
        + ("ask for fewer --workers, " if asked > 1 else "")
        + "use smaller micro-batches (--micro-batches), or cut the model over the nodes (--parallel model)"
    )


def _no_server(work: Workload, spec: JobSpec, there: Exchange, candidates: Sequence[Profile]) -> str:
    """What one shard would need beside, or without, the worker of each node."""
    workers = settings_of(spec).workers or 1
    copies = settings_of(spec).replicas or 1
    needed, server = worker_bytes(work, spec, there), server_bytes(spec, there, [0], workers, copies)
    rows = [
        f"{p.name} has {size(r)}" for p, r in zip(candidates, limits(candidates, spec.memory_bytes_max), strict=True)
    ]
    if copies > 1:
        return (
            f"not enough nodes have the memory for {copies} replicas of each shard: one of {len(there.push_bytes)} needs "
            f"{size(server)}, beside {size(needed)} for a worker on the same node, but {', '.join(rows)}; take --replicas 1, ask "
            "for fewer --workers or more --shards, or add nodes"
        )
    return (
        f"no node has the memory for a shard: one of {len(there.push_bytes)} needs {size(server)}, beside {size(needed)} for a "
        f"worker on the same node, but {', '.join(rows)}; ask for fewer --workers, more --shards, or add nodes"
    )


def record(work: Workload, spec: JobSpec, dealt: Dealt, candidates: int) -> Plan:
    """The plan, without what it is compared with. candidates: how many nodes there were to choose from."""
    there, roles, speed = dealt.there, dealt.roles, dealt.pace
    bitwise = len({p.fingerprint for p in roles.nodes}) == 1
    return Plan(
        nodes=tuple(_shares(work, spec, dealt)),
        assignment=(0,) * work.count,
        frames=1,
        samples_per_s=speed.samples_per_s,
        best_single_samples_per_s=0.0,
        bitwise=bitwise,
        reasons=tuple(verdict.reasons(spec, there, roles, speed, dealt.fitting, candidates)),
        replicas=tuple(Replica((w,)) for w in range(roles.workers)),
        shards=tuple(ShardHome((home, *roles.backups[shard : shard + 1])) for shard, home in enumerate(roles.homes)),
    )


def _shares(work: Workload, spec: JobSpec, dealt: Dealt) -> Iterator[NodeShare]:
    there, roles = dealt.there, dealt.roles
    room = limits(roles.nodes, spec.memory_bytes_max)
    needed = worker_bytes(work, spec, there)
    for n, profile in enumerate(roles.nodes):
        held, copied, computes = roles.shards_of(n), roles.backups_of(n), n < roles.workers
        elements = sum(there.sharding.shards[shard].size for shard in held)
        yield NodeShare(
            node=profile.node,
            name=profile.name,
            layers=verdict.role(n if computes else -1, held, copied),
            parameters=there.sharding.space.size if computes else elements,
            memory_bytes=needed * computes + server_bytes(spec, there, held + copied, roles.workers, roles.copies),
            memory_bytes_max=room[n],
            compute_s=dealt.pace.passes_s[n] if computes else 0.0,
            sends=tuple(_sent(there, roles)) if computes else (),
            copied_bytes=round(copied_bytes(there, roles, n)),
            why=verdict.why(dealt.pace.passes_s[n] if computes else None, elements / there.sharding.space.size),
        )


def _sent(there: Exchange, roles: Roles) -> Iterator[tuple[str, int, int]]:
    """Per home: its name, and the bytes that a worker pushes there and fetches from there per step."""
    for home in dict.fromkeys(roles.homes):
        held = roles.shards_of(home)
        pushed = sum(there.push_bytes[shard] for shard in held) / there.n_push
        fetched = sum(there.pull_bytes[shard] for shard in held) / there.n_fetch
        yield roles.nodes[home].name, round(pushed), round(fetched)


def copied_bytes(there: Exchange, roles: Roles, node: int) -> float:
    """Bytes that this node sends on to backups of its shards per step of all workers."""
    held = roles.shards_of(node) if roles.backups else []
    return roles.workers * sum(there.push_bytes[shard] for shard in held) / there.n_push
