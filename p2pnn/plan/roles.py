"""Who computes and who serves: the workers and the shards' homes of a data-parallel run.

A worker is one node, or several, each with a segment of the model (`plan.hybrid`).

Workers are the nodes that are fastest with the whole model, unless all with room take part. A shard lies where nobody computes,
if there is such a node that is not much slower with a push (over its links, and to apply it) than the others, else beside a
worker; every node gets one before any gets a second. Where shards have backups, each lies on another node than its primary, and
nodes get as many of them as others. Of equal nodes the one that takes the least time comes first, then the
one whose name does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from p2pnn.job.spec import JobSpec
from p2pnn.plan.cost import Links, Workload, limits, link, seconds
from p2pnn.plan.exchange import Exchange, serve_s, server_bytes, worker_bytes
from p2pnn.plan.profile import Profile

SLOW: Final = 2.0
"""A node is no good home where a push to the shard, its update and its answer take this many times as long as on the best one."""


UNEQUAL: Final = 1.2
"""A node is clearly slower than the next faster one where its passes take this many times as long."""


@dataclass(frozen=True, slots=True)
class Roles:
    """nodes: those that take part, the workers' first: worker by worker, each in the order of its segments. homes: per shard, an
    index into nodes; backups: likewise, () without. segments: nodes per worker. speaks: per shard, the segment of it that speaks
    to it; () where all is one."""

    nodes: tuple[Profile, ...]
    workers: int
    homes: tuple[int, ...]
    backups: tuple[int, ...] = ()
    segments: int = 1
    speaks: tuple[int, ...] = ()

    @property
    def computing(self) -> int:
        """How many nodes compute: the first ones."""
        return self.workers * self.segments

    def spoken_by(self, node: int) -> list[int]:
        """The shards that a node which computes pushes to and fetches from."""
        if not self.speaks:
            return list(range(len(self.homes)))
        return [shard for shard, segment in enumerate(self.speaks) if segment == node % self.segments]

    def shards_of(self, node: int) -> list[int]:
        """Whose primary it is when the run begins."""
        return [shard for shard, home in enumerate(self.homes) if home == node]

    def backups_of(self, node: int) -> list[int]:
        return [shard for shard, backup in enumerate(self.backups) if backup == node]

    @property
    def copies(self) -> int:
        """How many nodes hold each shard."""
        return 2 if self.backups else 1


def pass_s(work: Workload, profile: Profile) -> float:
    """Forward and backward of one micro-batch of the whole model."""
    spent = seconds(work, profile)
    passes = float(spent.forward.sum() + spent.backward.sum())
    return passes + 2 * spent.dispatch + spent.feeding(work, range(work.count))


def by_speed(work: Workload, candidates: Sequence[Profile]) -> list[int]:
    """Indices into the candidates, the fastest with the whole model first."""
    spent = [pass_s(work, p) for p in candidates]
    return sorted(range(len(candidates)), key=lambda n: (spent[n], n))


def fewer(work: Workload, nodes: Sequence[Profile]) -> list[int]:
    """Smaller numbers of workers than all these nodes that leave out clearly slower ones; the largest number first."""
    spent = sorted(pass_s(work, p) for p in nodes)
    return [n for n in range(len(spent) - 1, 0, -1) if spent[n] > UNEQUAL * spent[n - 1]]


def with_room(work: Workload, spec: JobSpec, there: Exchange, candidates: Sequence[Profile]) -> list[int]:
    """The candidates that have the memory for a worker."""
    needed = worker_bytes(work, spec, there)
    room = limits(candidates, spec.memory_bytes_max)
    return [n for n, r in enumerate(room) if needed <= r]


def place(
    work: Workload,
    spec: JobSpec,
    there: Exchange,
    candidates: Sequence[Profile],
    workers: Sequence[int],
    links: Links,
    copies: int = 1,
    *,
    widely: bool = True,
    needs: Sequence[int] = (),
) -> Roles | None:
    """Homes for all shards beside these workers (indices into the candidates, in order); None where memory does not suffice.

    copies: 2 for a backup of each shard. widely: on nodes that would have no part without it as well. needs: bytes that each
    segment of a worker takes, where it is cut: `workers` are then their nodes, worker by worker.
    """
    room = limits(candidates, spec.memory_bytes_max)
    needs = needs or [worker_bytes(work, spec, there)]
    segments, speaks = len(needs), there.sharding.segments
    count = len(workers) // segments
    taken = [0] * len(candidates)
    for place, n in enumerate(workers):
        taken[n] = needs[place % segments]
    held: dict[int, list[int]] = {n: [] for n in range(len(candidates))}
    homes: list[int] = []
    for shard in range(len(there.push_bytes)):
        speakers = [n for place, n in enumerate(workers) if place % segments == speaks[shard]]
        taking = [
            _moving_s(there, shard, candidates, speakers, n, links) + sum(serve_s(spec, there, shard, candidate))
            for n, candidate in enumerate(candidates)
        ]
        fits = [
            n
            for n in range(len(candidates))
            if taken[n] + server_bytes(spec, there, [*held[n], shard], count, copies) <= room[n]
        ]
        if not fits:
            return None
        bound = SLOW * min(taking[n] for n in fits)
        home = min(fits, key=lambda n: (len(held[n]), 2 if taking[n] > bound else int(n in workers), taking[n], n))
        held[home].append(shard)
        homes.append(home)
    backups: list[int] = []
    having = [n for n in held if held[n] or n in workers]
    for shard, home in enumerate(homes if copies > 1 else ()):
        taking = [_copying_s(spec, there, shard, candidates, home, n, links) for n in range(len(candidates))]
        fits = [
            n
            for n in (held if widely else having)
            if n != home and taken[n] + server_bytes(spec, there, [*held[n], shard], count, copies) <= room[n]
        ]
        if not fits:
            return None
        bound = SLOW * min(taking[n] for n in fits)
        rank = [
            (len(held[n]), 2 if taking[n] > bound else int(n in workers), taking[n]) for n in range(len(candidates))
        ]
        # Of equals the next one behind the primary, so that the last shard's backup is not on a node that has two.
        backup = min(fits, key=lambda n: (rank[n], (n - home) % len(candidates)))
        held[backup].append(shard)
        backups.append(backup)
    used = [*workers, *(n for n in sorted(held) if held[n] and n not in workers)]
    first, second = (tuple(used.index(n) for n in chosen) for chosen in (homes, backups))
    return Roles(tuple(candidates[n] for n in used), count, first, second, segments, speaks if segments > 1 else ())


def _copying_s(
    spec: JobSpec, there: Exchange, shard: int, candidates: Sequence[Profile], home: int, backup: int, links: Links
) -> float:
    """What one push takes from the primary to a backup, and to be applied there."""
    if backup == home:
        return 0.0
    push, update, _ = serve_s(spec, there, shard, candidates[backup])
    across = link(links, candidates[home].node, candidates[backup].node)
    return there.push_bytes[shard] / across.bytes_per_s + push + update


def _moving_s(
    there: Exchange, shard: int, candidates: Sequence[Profile], workers: Sequence[int], home: int, links: Links
) -> float:
    """What one push and one answer of each worker that is elsewhere take on this home's links, as if none were."""
    total, elsewhere = 0.0, 0
    for worker in workers:
        if worker != home:
            up = link(links, candidates[worker].node, candidates[home].node)
            down = link(links, candidates[home].node, candidates[worker].node)
            total += there.push_bytes[shard] / up.bytes_per_s + there.pull_bytes[shard] / down.bytes_per_s
            elsewhere += 1
    return total / elsewhere if elsewhere else 0.0
