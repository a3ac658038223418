"""Contiguous cuts by exact dynamic programming, over unequal nodes, links and memories.

The ops, in graph order, are cut into k stages, one per node. With M micro-batches, stage s on node n takes c(s) seconds for
forward and backward of one micro-batch and u(s) for its update; what crosses boundary b takes t(b) there and back, and
occupies the busier direction for r(b). The pipeline fills once and then runs at the pace of its bottleneck:

    step = Σ c(s) + Σ t(b) + max( (M − 1)·c(s) + u(s) over stages, (M − 1)·r(b) over boundaries )

A value that is read several stages on is charged to each boundary it crosses, though in truth it goes straight to its readers;
with that, each term depends on one stage or one boundary. For a threshold θ on the maximum, the least sum is a plain
min-plus DP over boundaries in which everything from θ on is forbidden. The solver starts with θ = ∞. As sums only grow
when θ falls, a better step must have a maximum below that of the solution just found, and below the best step less its
sum: the lesser is the next θ. It stops when sum(θ) plus the least possible maximum is no better than the best step seen:
the result is the exact minimum for an order of nodes, found on a part of the Pareto front of (sum, maximum). All ordered
choices of k nodes are tried while there are at most ORDERS_MAX; beyond that, a greedy order is improved by swaps.
(PipeDream, Narayanan et al. 2019, §3.1, minimizes the maximum alone, for equal workers.)

With K mini-batches in flight (`async:K`) the pipeline never drains. A step takes as long as its slowest stage or boundary,
unless K mini-batches are too few to keep all of them busy:

    step = max( (Σ c(s) + Σ t(b)) / K, c(s) + u(s) over stages, r(b) over boundaries )

and the same search finds the minimum, as this, too, only grows with the sum and with the maximum. Stage s of k runs
⌈(K − 1)(k − 1 − s)/(k − 1)⌉ updates behind, which decides what it keeps and what its update takes.

Legal boundaries part no group (see `pins.groups`), leave an op with parameters on both sides, and every stage holds one, so
that losses, metrics and softmax stay with the last stage. Pinned ops lie where they are pinned, as a constant on their node's
c, u and memory, and only free ops are cut; then a stage may be empty where its node has pinned ops.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise, permutations
from math import comb, factorial, inf
from typing import Final

import numpy as np
from numpy.typing import NDArray

from p2pnn.plan.cost import Floats, Links, Workload, limits, link, memory_bytes, seconds
from p2pnn.plan.pins import groups
from p2pnn.plan.profile import Profile

ORDERS_MAX: Final = 120
"""Ordered choices of nodes that are tried one by one: all orders of five nodes."""

SWAP_ROUNDS: Final = 3


@dataclass(frozen=True, slots=True)
class Cut:
    """nodes: indices into the profiles, in stage order. assignment: position in `nodes` per op. objective: seconds."""

    nodes: tuple[int, ...]
    assignment: tuple[int, ...]
    objective: float


def boundaries(work: Workload, pinned: Mapping[int, int]) -> list[int]:
    """Where the graph may be cut: b stands between ops b − 1 and b. Without 0 and the end; ascending."""
    free = [bool(work.parameter_ops[i]) and i not in pinned for i in range(work.count)]
    if pinned:
        first, last = 0, work.count - 1
    else:
        holders = [i for i, holds in enumerate(free) if holds]
        first, last = (holders[0], holders[-1]) if holders else (0, 0)
    legal = np.zeros(work.count + 1, dtype=bool)
    legal[first + 1 : last + 1] = True
    for ops in groups(work.graph):
        if len(ops) > 1 and ops[0] not in pinned:
            legal[ops[0] + 1 : ops[-1] + 1] = False
    return [int(b) for b in np.flatnonzero(legal)]


def stages_max(work: Workload) -> int:
    """How many nodes can have an op with parameters when nothing is pinned; at least 1."""
    edges = [0, *boundaries(work, {}), work.count]
    holders = np.concatenate(([0.0], np.cumsum(work.parameter_ops)))
    return max(1, sum(bool(holders[b] > holders[a]) for a, b in pairwise(edges)))


def best_cuts(
    work: Workload,
    profiles: Sequence[Profile],
    links: Links,
    count: int,
    frames: int,
    pinned: Mapping[int, int],
    cap: int = 0,
    keep: int = 1,
) -> list[Cut]:
    """The `keep` best cuts over `count` of the nodes, each over another order of nodes, best first; none if none fits.

    pinned: op → index into profiles; those nodes are always chosen. cap: bytes a node may use, 0 for no cap.
    """
    needed = sorted(set(pinned.values()))
    others = [n for n in range(len(profiles)) if n not in needed]
    if count < len(needed) or count > len(profiles):
        return []
    if comb(len(others), count - len(needed)) * factorial(count) > ORDERS_MAX:
        return _by_swaps(work, profiles, links, count, frames, pinned, cap)[:keep]
    found: list[Cut] = []
    for extra in combinations(others, count - len(needed)):
        chosen = sorted((*needed, *extra))
        problem = Problem(work, profiles, chosen, links, frames, pinned, cap)
        for order in permutations(chosen):
            bound = found[keep - 1].objective if len(found) >= keep else inf
            cut = problem.solve(order, bound)
            if cut is not None and problem.fits(cut):
                found = sorted([*found, cut], key=lambda c: (c.objective, c.nodes))[:keep]
    return found


def _by_swaps(
    work: Workload,
    profiles: Sequence[Profile],
    links: Links,
    count: int,
    frames: int,
    pinned: Mapping[int, int],
    cap: int,
) -> list[Cut]:
    """Start with the fastest nodes along their fastest links; swap two places, or a place and a node left out."""
    needed = set(pinned.values())
    ranked = sorted(range(len(profiles)), key=lambda n: (n not in needed, -profiles[n].gemm_gflops, n))
    order = ranked[:1]
    while len(order) < count:
        last = profiles[order[-1]].node
        pool = [n for n in ranked[:count] if n not in order]
        order.append(min(pool, key=lambda n: (-link(links, last, profiles[n].node).bytes_per_s, n)))
    order += [n for n in ranked if n not in order]

    def solve(nodes: list[int], bound: float) -> Cut | None:
        problem = Problem(work, profiles, sorted(nodes), links, frames, pinned, cap)
        cut = problem.solve(tuple(nodes), bound)
        return cut if cut is not None and problem.fits(cut) else None

    best = solve(order[:count], inf)
    for _ in range(SWAP_ROUNDS):
        improved = False
        for a in range(count):
            for b in range(a + 1, len(order)):
                if b >= count and order[a] in needed:
                    continue
                trial = list(order)
                trial[a], trial[b] = trial[b], trial[a]
                cut = solve(trial[:count], best.objective if best else inf)
                if cut is not None and (best is None or cut.objective < best.objective):
                    best, order, improved = cut, trial, True
        if not improved:
            break
    return [best] if best else []


class Problem:
    """Matrices of one choice of nodes: what each range of ops costs on each, whether it fits, what each boundary costs."""

    def __init__(
        self,
        work: Workload,
        profiles: Sequence[Profile],
        chosen: Sequence[int],
        links: Links,
        frames: int,
        pinned: Mapping[int, int],
        cap: int,
    ) -> None:
        self.work, self.profiles, self.links, self.pinned = work, profiles, links, pinned
        self.edges = [0, *boundaries(work, pinned), work.count]
        self.pace = 1.0 if work.in_flight else float(work.micro_batches - 1)
        self.fills = max(1, work.in_flight)
        free = np.array([i not in pinned for i in range(work.count)])
        memory = range_memory(work, self.edges, frames, pinned)
        self.frames = frames
        self.room = room = dict(zip(chosen, limits([profiles[n] for n in chosen], cap), strict=True))
        holders = self._between(work.parameter_ops * free) > 0
        upper = np.triu(np.ones((len(self.edges), len(self.edges)), dtype=bool), 1)
        self.cost: dict[
            tuple[int, int], Floats
        ] = {}  # (node, delay) → seconds per range of ops, inf where it cannot be
        self.peak: dict[tuple[int, int], Floats] = {}
        for n in chosen:
            mine = np.array([pinned.get(i) == n for i in range(work.count)])
            slow = self._sharing(chosen, n)
            spent = seconds(work, profiles[n])
            per_op = (spent.forward + spent.backward) * slow
            cost = self._between(per_op * free) + float(per_op[mine].sum()) + 2 * spent.dispatch * slow
            for delay in {self._delay(stage, len(chosen)) for stage in range(len(chosen))}:
                kept, updating = work.versions_bytes(delay), spent.updating(delay)
                update = self._between(updating * free) + float(updating[mine].sum())
                taken = pinned_memory(work, n, frames, pinned) + float(kept[mine].sum())
                needed = np.floor(memory + self._between(kept * free) + taken)  # whole bytes, as memory_bytes
                legal = (needed <= room[n]) & upper
                if bool((work.parameter_ops[mine] > 0).any()):
                    legal |= np.eye(len(self.edges), dtype=bool) & (taken <= room[n])
                elif len(chosen) > 1:
                    legal &= holders
                self.peak[n, delay] = np.where(legal, self.pace * cost + update * slow, inf)
                self.cost[n, delay] = np.where(legal, cost, inf)
        self.forward_bytes, self.backward_bytes = crossing(work, self.edges)

    def _delay(self, stage: int, stages: int) -> int:
        """How many updates behind a stage runs, see the module's docstring; 0 for `sync`."""
        behind = (self.fills - 1) * (stages - 1 - stage)
        return -(-behind // (stages - 1)) if stages > 1 else 0

    def _stages(self, order: Sequence[int]) -> list[tuple[int, int]]:
        """(node, delay) per stage."""
        return [(n, self._delay(stage, len(order))) for stage, n in enumerate(order)]

    def _step(self, total: float, peak: float) -> float:
        """The objective."""
        return max(total / self.fills, peak) if self.work.in_flight else total + peak

    def fits(self, cut: Cut) -> bool:
        """Whether every node has room for its part: pins can part a node's ops in ways that a range does not show."""
        needs = [memory_bytes(self.work, cut.assignment, n, self.frames) for n in range(len(cut.nodes))]
        return all(need <= self.room[n] for need, n in zip(needs, cut.nodes, strict=True))

    def _between(self, per_op: Floats) -> Floats:
        """sums[a, b] over the ops between edges a and b."""
        total = np.concatenate(([0.0], np.cumsum(per_op)))[self.edges]
        return np.asarray(total[None, :] - total[:, None], dtype=np.float64)

    def _sharing(self, chosen: Sequence[int], n: int) -> float:
        """How much slower a node computes when the chosen nodes on its machine outnumber the cores."""
        machine = self.profiles[n].machine
        together = sum(self.profiles[m].machine == machine for m in chosen) if machine else 1
        return max(1.0, together / max(1, self.profiles[n].cores))

    def _border(self, source: int, target: int) -> tuple[Floats, Floats]:
        """Seconds per boundary: t (both ways, with latencies) and (M − 1)·r (the busier direction)."""
        there = link(self.links, self.profiles[source].node, self.profiles[target].node)
        back = link(self.links, self.profiles[target].node, self.profiles[source].node)
        forward, backward = self.forward_bytes / there.bytes_per_s, self.backward_bytes / back.bytes_per_s
        latency = there.latency_s * (self.forward_bytes > 0) + back.latency_s * (self.backward_bytes > 0)
        return forward + backward + latency, self.pace * np.maximum(forward, backward)

    def solve(self, order: tuple[int, ...], bound: float = inf) -> Cut | None:
        """The best cut over the nodes in this order with an objective below `bound`; None where there is none."""
        borders = [self._border(a, b) for a, b in pairwise(order)]
        stages = self._stages(order)
        floor = self._least_peak(stages, borders)
        best: Cut | None = None
        threshold = inf
        while True:
            found = self._least_sum(stages, borders, threshold)
            if found is None or self._step(found[0], floor) >= bound:
                return best
            total, places = found
            peak = self._peak(stages, borders, places)
            if self._step(total, peak) < bound:
                bound = self._step(total, peak)
                best = Cut(order, self._assignment(order, places), bound)
            threshold = min(peak, bound if self.work.in_flight else bound - total)

    def _least_peak(self, stages: Sequence[tuple[int, int]], borders: Sequence[tuple[Floats, Floats]]) -> float:
        reach = self.peak[stages[0]][0]
        for (_, rate), stage in zip(borders, stages[1:], strict=True):
            reach = np.maximum(np.maximum(reach, rate)[:, None], self.peak[stage]).min(axis=0)
        return float(reach[-1])

    def _least_sum(
        self, stages: Sequence[tuple[int, int]], borders: Sequence[tuple[Floats, Floats]], threshold: float
    ) -> tuple[float, list[int]] | None:
        """Least Σc + Σt with every maximum's term strictly below the threshold; and where the stages end."""
        reach: Floats = np.where(self.peak[stages[0]][0] < threshold, self.cost[stages[0]][0], inf)
        steps: list[NDArray[np.intp]] = []
        for (time, rate), stage in zip(borders, stages[1:], strict=True):
            start = np.where(rate < threshold, reach + time, inf)
            table = start[:, None] + np.where(self.peak[stage] < threshold, self.cost[stage], inf)
            steps.append(table.argmin(axis=0))
            reach = table.min(axis=0)
        if not np.isfinite(reach[-1]):
            return None
        places = [len(self.edges) - 1]
        for step in reversed(steps):
            places.append(int(step[places[-1]]))
        return float(reach[-1]), places[::-1]

    def _peak(
        self, stages: Sequence[tuple[int, int]], borders: Sequence[tuple[Floats, Floats]], places: Sequence[int]
    ) -> float:
        starts = [0, *places[:-1]]
        peaks = [float(self.peak[stage][a, b]) for stage, a, b in zip(stages, starts, places, strict=True)]
        return max(peaks + [float(rate[p]) for (_, rate), p in zip(borders, places, strict=False)])

    def _assignment(self, order: tuple[int, ...], places: Sequence[int]) -> tuple[int, ...]:
        found = np.zeros(self.work.count, dtype=np.int64)
        for stage, (a, b) in enumerate(zip([0, *places[:-1]], places, strict=True)):
            found[self.edges[a] : self.edges[b]] = stage
        for op, node in self.pinned.items():
            found[op] = order.index(node)
        return tuple(int(n) for n in found)


def crossing(work: Workload, edges: Sequence[int]) -> tuple[Floats, Floats]:
    """Bytes per micro-batch that cross each boundary forward, and as gradients (one per reader) backward."""
    forward, backward = np.zeros(work.count + 1), np.zeros(work.count + 1)
    for border in work.borders:
        if border.producer >= 0:
            forward[border.producer + 1 : max(border.readers) + 1] += border.bytes
            for consumer in border.gradients:
                backward[border.producer + 1 : consumer + 1] += border.bytes
    return forward[list(edges)], backward[list(edges)]


def range_memory(work: Workload, edges: Sequence[int], frames: int, pinned: Mapping[int, int]) -> Floats:
    """`cost.memory_bytes` of the free ops between edges a and b, as a matrix; an upper bound where ops are pinned."""
    size = work.count + 1
    free = np.array([i not in pinned for i in range(work.count)], dtype=np.float64)

    def sums(per_op: Floats) -> Floats:
        total = np.concatenate(([0.0], np.cumsum(per_op * free)))
        return np.asarray(total[None, :] - total[:, None])

    moved = np.zeros((size, size))  # [a, b]: bytes per frame that enter or leave ops a … b − 1
    for border in work.places:
        p, nbytes = border.producer, border.bytes
        start = p + 1
        for reader in border.readers:  # the first reader at or after a decides where the value enters
            moved[start : reader + 1, reader + 1 :] += nbytes
            start = reader + 1
        if p >= 0:  # or leaves
            moved[: p + 1, p + 1 : max(border.readers) + 1] += work.leaving(border)
        for consumer in border.gradients:
            moved[p + 1 : consumer + 1, consumer + 1 :] += nbytes  # its gradient leaves
            if p >= 0:
                moved[: p + 1, p + 1 : consumer + 1] += nbytes  # or arrives
    with_pinned = np.zeros(work.count)
    for index in range(work.count if pinned else 0):
        with_pinned[index] = _exchanged(work, index)
    scratch = _range_scratch(work, free, whole=not pinned)
    total = sums(work.kept_bytes) + scratch
    total += frames * (sums(work.frame_bytes) + (sums(with_pinned) if pinned else moved))
    return total[np.ix_(list(edges), list(edges))]


def _range_scratch(work: Workload, free: Floats, *, whole: bool) -> Floats:
    """The largest scratch of the ops between a and b, [ops + 1, ops + 1]; summed over parts that no value connects, each a
    segment of its own, where the range is `whole`. (What pins part is seen when the whole assignment is judged.)"""
    size = work.count + 1
    found = np.zeros((size, size))
    if not whole:
        for row in work.scratch_bytes * free:
            for a in range(work.count):
                found[a, a + 1 :] += np.maximum.accumulate(row[a:])
        return found
    producers = [sorted({work.flow.producer[v] for v in op.inputs if v in work.flow.producer}) for op in work.graph.ops]
    columns = [tuple(float(x) for x in column) for column in work.scratch_bytes.T]
    for a in range(work.count):
        part: dict[int, int] = {}  # op → its part's first op
        most: dict[int, tuple[float, ...]] = {}
        total = 0.0
        for b in range(a, work.count):
            joined = {_root(part, p) for p in producers[b] if p >= a}
            first = min(joined, default=b)
            part[b] = first
            peak = columns[b]
            for other in joined:
                part[other] = first
                total -= sum(most[other])
                peak = tuple(map(max, peak, most.pop(other)))
            most[first] = peak
            total += sum(peak)
            found[a, b + 1] = total
    return found


def _root(part: dict[int, int], op: int) -> int:
    while part[op] != op:
        op = part[op]
    return op


def pinned_memory(work: Workload, node: int, frames: int, pinned: Mapping[int, int]) -> float:
    """Upper bound of what the ops that are pinned to a node take there."""
    mine = [i for i, n in pinned.items() if n == node]
    fixed = float(work.kept_bytes[mine].sum() + work.scratch_bytes[:, mine].max(axis=1, initial=0).sum())
    return fixed + frames * (float(work.frame_bytes[mine].sum()) + sum(_exchanged(work, i) for i in mine))


def _exchanged(work: Workload, op: int) -> float:
    """Bytes per frame that one op exchanges when all its neighbours are elsewhere."""
    total = 0.0
    for border in work.places:
        if border.producer == op:
            total += work.leaving(border) + border.bytes * len(border.gradients)
        elif op in border.readers:
            total += border.bytes * (1 + (op in border.gradients))
    return total
