"""How fast a data-parallel run is: its predicted samples/s, and what they are bound by.

A *round* is one step of each worker. A link carries one body after the other in each direction, so what a node sends and
receives in a round adds up; so does what its shards do, and what all processes of one machine compute, over its cores.

    async     batches are leased, and the faster a worker computes, the more of them it takes: a round is one step of each on the
              average. Everything overlaps: it takes as long as the busiest of all these, or as a worker's window of pushes
    ssp:S     a worker waits for its answer: passes, push, update, fetch, one after the other; what is shared may be busier
    sync      passes (of the (W − b)-th fastest worker, with its share of the micro-batches), then all pushes at once, one
              update, all fetches at once
    local:H   H steps of the slowest worker, each with an update of its own, then as in sync

Where a worker is several nodes, each with a segment of the model, its passes are those of the cut model as `predict` plays them,
each of its nodes exchanges its own segment's parameters, and values and gradients between them are on the same links.

Where shards have backups, each push goes on from the primary to the backup, which makes the update as well; it is answered
when the backup has it.

What travels while a worker still computes its last backward pass is not taken off (`ssp`, `sync`, `local`): these are a little
faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from p2pnn.job.spec import JobSpec
from p2pnn.plan.cost import Links, Workload, link, seconds
from p2pnn.plan.exchange import Exchange, serve_s, worker_s
from p2pnn.plan.predict import CROWDING, DAEMON_S, HOP_S
from p2pnn.plan.profile import Link
from p2pnn.plan.roles import Roles, pass_s
from p2pnn.ps.layout import WINDOW


@dataclass(frozen=True, slots=True)
class Bound:
    """What a round waits for most. kind: `compute` or `trip` (of a worker that others wait for), `own` (of all workers, none of
    which waits; node: the slowest), `link` or `shards` (of a node), `cores` (of a node's
    machine). node: index into the roles' nodes. seconds: of a round."""

    kind: str
    node: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Pace:
    """samples_per_s: rows whose gradients count. step_s: of a round's step. passes_s: per node that computes, and step, without
    all else: what it computes itself."""

    samples_per_s: float
    step_s: float
    passes_s: tuple[float, ...]
    bound: Bound


@dataclass(frozen=True, slots=True)
class CutPasses:
    """The passes of workers that are cut over nodes. step_s: per worker, of one step; busy_s, moving_s: per node of all workers,
    what it computes of that, and how much of it moves bytes; sent_s: per node, for how long values and gradients of a step keep
    its link busy, in its busier direction."""

    step_s: tuple[float, ...]
    busy_s: tuple[float, ...]
    moving_s: tuple[float, ...]
    sent_s: tuple[float, ...]


def pace(
    work: Workload, spec: JobSpec, there: Exchange, roles: Roles, links: Links, passes: CutPasses | None = None
) -> Pace:
    """Predict. roles: with at least one worker and one shard. passes: where workers are cut."""
    how, found = there.how, _Round(work, spec, there, roles, links, passes)
    round_s, bound = found.in_phases() if how.in_rounds else found.overlapping()
    step_s = round_s / max(1, how.local_steps)
    share = how.quorum(roles.workers) / roles.workers if how.kind == "sync" else roles.workers
    return Pace(spec.batch_size * share / step_s, step_s, tuple(found.busy), bound)


class _Round:
    """Seconds of everything that happens in a round, by node, machine and worker (the first nodes are the workers').

    passes: until a worker's step is through, by its nodes; busy: what each of them computes of that.
    """

    def __init__(
        self,
        work: Workload,
        spec: JobSpec,
        there: Exchange,
        roles: Roles,
        links: Links,
        cut: CutPasses | None,
    ) -> None:
        self.there, self.roles, self.links, self.cut = there, roles, links, cut
        nodes = roles.nodes
        self.workers, self.nodes = range(roles.computing), range(len(nodes))
        share = work.micro_batches / (roles.workers if there.how.kind == "sync" else 1)
        if cut is None:
            self.passes = self.busy = [share * pass_s(work, nodes[w]) for w in self.workers]
        else:
            self.passes = [cut.step_s[w // roles.segments] for w in self.workers]
            self.busy = list(cut.busy_s)
        self.own = [worker_s(spec, there, nodes[w], w % roles.segments) for w in self.workers]
        self.spoken = [roles.spoken_by(w) for w in self.workers]
        self.shards = [serve_s(spec, there, shard, nodes[home]) for shard, home in enumerate(roles.homes)]
        self.backups = [serve_s(spec, there, shard, nodes[backup]) for shard, backup in enumerate(roles.backups)]
        self.machine = [p.machine or f"node {n}" for n, p in enumerate(nodes)]
        self.cores = {self.machine[n]: p.cores if p.machine else 2 for n, p in enumerate(nodes)}
        self.crowded = [self._crowding(work, w, share) for w in self.workers]
        self.steps = self._dealt()

    def _crowding(self, work: Workload, w: int, share: float) -> float:
        """What a step takes longer where another worker computes on the same machine."""
        mine = w // self.roles.segments
        if not any(self.machine[v] == self.machine[w] and v // self.roles.segments != mine for v in self.workers):
            return 0.0
        if self.cut is not None:
            return (CROWDING - 1) * self.cut.moving_s[w]
        spent = seconds(work, self.roles.nodes[w])
        return share * (CROWDING - 1) * float(spent.forward_moving.sum() + spent.backward_moving.sum())

    def _dealt(self) -> list[float]:
        """How many steps of a round each node makes that computes: of leased batches each takes as many as it can."""
        if self.there.how.kind != "async":
            return [1.0] * len(self.workers)
        size = self.roles.segments
        took = [max(self.computing(w) for w in range(r * size, (r + 1) * size)) for r in range(self.roles.workers)]
        rates = [1 / seconds for seconds in took]
        return [rates[w // size] * len(rates) / sum(rates) for w in self.workers]

    # --- the two ways of a round

    def overlapping(self) -> tuple[float, Bound]:
        """`async` and `ssp`: the longest of what goes on at the same time."""
        n_push, n_fetch = self.there.n_push, self.there.n_fetch
        bounds = [Bound("link", n, self._traffic(n, 1 / n_push, 1 / n_fetch) + self._tensors(n)) for n in self.nodes]
        served = [self._served(n, 1 / n_push, 1 / n_push, 1 / n_fetch) for n in self.nodes]
        bounds += [Bound("shards", n, s) for n, s in enumerate(served)]
        spent = [self.steps[n] * self.spending(n) if n in self.workers else 0.0 for n in self.nodes]
        busy = [served[n] + self._carried(n) + spent[n] for n in self.nodes]
        bounds += [Bound("cores", n, s) for n, s in enumerate(self._over_cores(busy))]
        for w in self.workers:
            computing, trip = self.computing(w), self.trip(w)
            if self.there.how.waits:
                bounds.append(Bound("compute" if computing >= trip else "trip", w, computing + trip))
            else:
                alone = self.roles.workers == 1
                own = Bound("compute" if alone else "own", self._slowest(), self.steps[w] * computing)
                bounds += [own, Bound("trip", w, self.steps[w] * trip / (WINDOW * n_push))]
        longest = max(bounds, key=lambda b: b.seconds)
        return longest.seconds, longest

    def in_phases(self) -> tuple[float, Bound]:
        """`sync` and `local`: computing, pushes, update, fetches, one after the other."""
        how, count = self.there.how, self.roles.workers
        steps, quorum = max(1, how.local_steps), how.quorum(count)
        size = self.roles.segments
        times = [max((self.computing(w), w) for w in range(r * size, (r + 1) * size)) for r in range(count)]
        awaited = sorted(times)[:quorum]
        slowest_s, slowest = awaited[-1]
        taking_part = {w // size for _, w in awaited}
        busy = [self.spending(n) if n in self.workers and n // size in taking_part else 0.0 for n in self.nodes]
        crowd_s, crowd = max((s, n) for n, s in enumerate(self._over_cores(busy)))
        crowded = crowd_s > slowest_s
        pushes = max((quorum / count * self._traffic(n, 1, 0), n) for n in self.nodes)
        served = [self._served(n, quorum / count, 1 / count, 1) for n in self.nodes]
        serving = max((max(s, c), n) for n, (s, c) in enumerate(zip(served, self._over_cores(served), strict=True)))
        fetches = max((self._traffic(n, 0, 1), n) for n in self.nodes)
        trip_s = 4 * HOP_S + self._latency(slowest) + DAEMON_S * max(map(self._messages, self.nodes))
        trip_s += max((self._held_s(shard) for shard in range(len(self.backups))), default=0.0)
        phases = [
            Bound("cores", crowd, steps * crowd_s) if crowded else Bound("compute", slowest, steps * slowest_s),
            Bound("link", max(pushes, fetches)[1], pushes[0] + fetches[0]),
            Bound("shards", serving[1], serving[0]),
            Bound("trip", slowest, trip_s),
        ]
        return sum(b.seconds for b in phases), max(phases, key=lambda b: b.seconds)

    # --- by worker

    def computing(self, w: int) -> float:
        """One step of a worker's node, with what it does in its own process for pushes and fetches."""
        step, push, fetch = self.own[w]
        return self.passes[w] + self.crowded[w] + step + push / self.there.n_push + fetch / self.there.n_fetch

    def _slowest(self) -> int:
        return max(self.workers, key=self.computing)

    def spending(self, w: int) -> float:
        """What a worker's node computes in one step, without what it waits for the others of its worker."""
        return self.computing(w) - self.passes[w] + self.busy[w]

    def trip(self, w: int) -> float:
        """From a worker's push until its answer is here, if nobody else has one under way: the slowest of its shards."""
        up = sum(self._moved(w, shard, pushed=True) for shard in self.spoken[w])
        down = sum(self._moved(w, shard, pushed=False) for shard in self.spoken[w])
        held = max((self._held_s(shard) for shard in self.spoken[w] if self.backups), default=0.0)
        served = max(sum(self.shards[shard]) for shard in self.spoken[w])
        return up + held + served + down + self._latency(w) + 4 * HOP_S

    def _held_s(self, shard: int) -> float:
        """From a push's last part on the primary until the primary knows that the backup has all of it."""
        home, backup = self.roles.homes[shard], self.roles.backups[shard]
        there, back = self._link(home, backup), self._link(backup, home)
        last = self.there.push_bytes[shard] / self.there.parts[shard] / there.bytes_per_s
        return last + there.latency_s + back.latency_s + 4 * HOP_S

    def _latency(self, w: int) -> float:
        """There and back, of the farthest shard."""
        elsewhere = {self.roles.homes[shard] for shard in self.spoken[w]} - {w}
        return max((self._link(w, h).latency_s + self._link(h, w).latency_s for h in elsewhere), default=0.0)

    # --- by node: pushed, updated and fetched say how often in a round a worker pushes, is an update made, a worker fetches

    def _traffic(self, n: int, pushed: float, fetched: float) -> float:
        """What a node's link carries in its busier direction."""
        out = back = 0.0
        for w in self.workers:
            for shard in self.spoken[w]:
                home = self.roles.homes[shard]
                if w == home or n not in (w, home):
                    continue
                up, down = (self.steps[w] * self._moved(w, shard, pushed=way) for way in (True, False))
                up, down = pushed * up, fetched * down
                out, back = (out + up, back + down) if w == n else (out + down, back + up)
        for shard, backup in enumerate(self.roles.backups):
            home = self.roles.homes[shard]
            if n in (home, backup):
                link = self._link(home, backup)
                copied = pushed * self.roles.workers * self.there.push_bytes[shard] / link.bytes_per_s
                out, back = (out + copied, back) if n == home else (out, back + copied)
        return max(out, back)

    def _tensors(self, n: int) -> float:
        """What it carries of values and gradients between the nodes of one worker."""
        return self.steps[n] * self.cut.sent_s[n] if self.cut is not None and n in self.workers else 0.0

    def _served(self, n: int, pushed: float, updated: float, fetched: float) -> float:
        """What the process that holds a node's shards computes; updated: per worker, as the others."""
        times = [self.shards[shard] for shard in self.roles.shards_of(n)]
        times += [(*self.backups[shard][:2], 0.0) for shard in self.roles.backups_of(n)]
        return self.roles.workers * sum(pushed * p + updated * u + fetched * a for p, u, a in times)

    def _messages(self, n: int) -> float:
        """How many a node's daemon sends and receives for one push of each worker with its answer."""
        each = [parts + 1 for parts in self.there.parts]
        own = self.steps[n] * sum(each[shard] for shard in self.spoken[n]) if n in self.workers else 0.0
        copied = [*self.roles.shards_of(n), *self.roles.backups_of(n)] if self.backups else []
        return own + self.roles.workers * sum(each[shard] for shard in [*self.roles.shards_of(n), *copied])

    def _carried(self, n: int) -> float:
        """What a node's daemon computes: messages, and copies between a worker and a shard that are both here."""
        here = [s for s in self.roles.shards_of(n) if n in self.workers and s in self.spoken[n]]
        copied = sum(self._moved(n, s, pushed=True) / self.there.n_push for s in here)
        copied += sum(self._moved(n, s, pushed=False) / self.there.n_fetch for s in here)
        copied *= self.steps[n] if here else 0.0
        return self._messages(n) * DAEMON_S / min(self.there.n_push, self.there.n_fetch) + copied

    def _over_cores(self, busy: Sequence[float]) -> list[float]:
        """Per node, how long its machine's cores take for what all its nodes do."""
        total: dict[str, float] = {}
        for machine, spent in zip(self.machine, busy, strict=True):
            total[machine] = total.get(machine, 0.0) + spent
        return [total[machine] / self.cores[machine] for machine in self.machine]

    def _moved(self, w: int, shard: int, *, pushed: bool) -> float:
        """Seconds for a worker's push to a shard, or for the parameters that come back."""
        home = self.roles.homes[shard]
        nbytes = self.there.push_bytes[shard] if pushed else self.there.pull_bytes[shard]
        if home == w:  # the daemon copies from one arena to the other
            return 2 * nbytes / self.roles.nodes[w].bytes_per_s
        return nbytes / (self._link(w, home) if pushed else self._link(home, w)).bytes_per_s

    def _link(self, source: int, target: int) -> Link:
        return link(self.links, self.roles.nodes[source].node, self.roles.nodes[target].node)
