"""A discrete-event model of a plan: what the mesh runtime will do, played on the nodes' profiles without computing anything.

Modelled as the runtime works: one task at a time per node, backward before forward and older micro-batches first; one
tensor at a time in each node's daemon; nodes that share a machine share its cores; each directed link sends one tensor at
a time, and what may go overtakes what may not;
frames and credits (micro-batch m enters a node only if m < retired + frames, and senders learn `retired` one latency
late); each node's update after its last backward pass, and its next step only after that, or with K mini-batches in flight
(`async:K`) mini-batch t after max(0, t − delay) updates. Several steps are played, because a node starts the next step while
others still finish; the first ones only warm up, and of K in flight the last ones only drain.

Pure and deterministic: ties fall by (kind, micro-batch, segment), so the same arguments give the same floats.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from p2pnn.job.segment import segments
from p2pnn.plan.cost import Links, Seconds, Workload, link, seconds
from p2pnn.plan.profile import Profile

HOP_S: Final = 1.5e-4
"""Executor to daemon and daemon to executor: two socket pairs at 0.07 ms each."""

DAEMON_S: Final = 2e-4
"""What a daemon computes for one tensor that it sends or receives, with the messages about it. It needs a core, too."""

CROWDING: Final = 1.2
"""How much longer what moves bytes takes beside another pass on the same machine: they share caches and memory. (Arithmetic
took 1.02 times as long.)"""

STEPS: Final = 3
FLOW_STEPS: Final = 24
"""Steps that are played with mini-batches in flight, besides those that warm up and drain: nodes run ahead, and then wait for
each other, so that a few steps say little of the pace. (Three were up to a third too fast.)"""
STREAM_MAX: Final = 24
"""Micro-batches played of an evaluation or prediction; the rest follows at their pace."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """step_s: of one training step (micro_batches micro-batches), or of the whole pass when nothing is trained.
    busy: the fraction of that time that each node computes."""

    step_s: float
    samples_per_s: float
    busy: tuple[float, ...]


def predict(
    work: Workload, assignment: Sequence[int], profiles: Sequence[Profile], links: Links, frames: int
) -> Prediction:
    """Play the plan. profiles: one per node number in `assignment`; frames ≥ 1."""
    around = max(1, work.in_flight)  # so many steps warm up; in flight, as many drain
    rounds = steps_played(work)
    size = work.micro_batches if work.training else min(work.micro_batches, STREAM_MAX)
    clips = work.clips and work.in_flight < 2  # in flight, each node clips for itself
    play = _Play(_Stages(work, assignment, profiles), profiles, links, frames, rounds, size, clips)
    play.run()
    if work.training:
        begin, end = around - 1, rounds - 1 - work.in_flight
        first, last = play.ended[begin], play.ended[end]
        step_s = (last - first) / (end - begin)
        spent = zip(play.busy_then_s[end], play.busy_then_s[begin], strict=True)
        busy = [max(0.0, total - warm) / (last - first) for total, warm in spent]
    else:
        first, last = play.ended[0], play.ended[-1]
        pace = (last - first) / (size - 1) if size > 1 else last
        step_s = last + pace * (work.micro_batches - size)
        busy = [b / last for b in play.busy_s]
    rows = work.rows * work.micro_batches
    return Prediction(step_s, rows / step_s, tuple(min(1.0, b) for b in busy))


def steps_played(work: Workload) -> int:
    """Of a job that trains; one pass of any other."""
    if not work.training:
        return 1
    return max(FLOW_STEPS, work.in_flight) + 2 * work.in_flight if work.in_flight else STEPS


class _Stages:
    """Segments as tasks: seconds per pass, what each waits for, and what each sends (target segment's node, bytes)."""

    def __init__(self, work: Workload, assignment: Sequence[int], profiles: Sequence[Profile]) -> None:
        cut = [
            (s.node, [i for i in s.ops if i in work.active])
            for s in segments(work.graph, assignment)
            if any(i in work.active for i in s.ops)
        ]
        home = {op: number for number, (_, ops) in enumerate(cut) for op in ops}
        costs: list[Seconds] = [seconds(work, p) for p in profiles]
        self.node = [node for node, _ in cut]
        self.forward_s = [float(costs[n].forward[ops].sum()) + costs[n].dispatch for n, ops in cut]
        trained = [any(i in work.with_gradient for i in ops) for _, ops in cut]
        self.backward_s = [
            float(costs[n].backward[ops].sum()) + costs[n].dispatch if t else -1.0
            for (n, ops), t in zip(cut, trained, strict=True)
        ]
        self.moving_s = [
            [float(costs[n].forward_moving[ops].sum()), float(costs[n].backward_moving[ops].sum())] for n, ops in cut
        ]
        owned = [[i for i in range(work.count) if assignment[i] == n] for n in range(len(profiles))]
        for n in range(len(profiles)):  # a frame's inputs are filled by the first segment that runs on it
            first = next((s for s, node in enumerate(self.node) if node == n), -1)
            if first >= 0:
                self.forward_s[first] += costs[n].feeding(work, [i for m, ops in cut if m == n for i in ops])
        self.delays = (*work.delays(assignment), *[0] * len(profiles))[: len(profiles)]
        self.update_s = [float(costs[n].updating(self.delays[n])[ops].sum()) for n, ops in enumerate(owned)]
        # Tasks are (segment, backward); a task waits for `needs` others and, when done, frees local ones and sends.
        self.needs = [[0] * len(cut), [1] * len(cut)]
        self.frees: dict[tuple[int, int], list[tuple[int, int]]] = {(s, 0): [(s, 1)] for s in range(len(cut))}
        self.sends: dict[tuple[int, int], list[tuple[int, int, list[tuple[int, int]]]]] = {}
        for border in work.borders:
            if border.producer >= 0:
                self._forward(home, border.producer, border.readers, border.bytes)
                self._backward(home, border.producer, border.gradients, border.bytes)

    def _forward(self, home: dict[int, int], producer: int, readers: Sequence[int], nbytes: int) -> None:
        source = home[producer]
        remote: dict[int, list[tuple[int, int]]] = {}
        for target in sorted({home[c] for c in readers} - {source}):
            self.needs[0][target] += 1
            if self.node[target] == self.node[source]:
                self.frees.setdefault((source, 0), []).append((target, 0))
            else:
                remote.setdefault(self.node[target], []).append((target, 0))
        self.sends.setdefault((source, 0), []).extend((node, nbytes, tasks) for node, tasks in remote.items())

    def _backward(self, home: dict[int, int], producer: int, consumers: Sequence[int], nbytes: int) -> None:
        target = home[producer]
        for source in (home[c] for c in consumers):
            if source == target:
                continue
            self.needs[1][target] += 1
            if self.node[source] == self.node[target]:
                self.frees.setdefault((source, 1), []).append((target, 1))
            else:
                self.sends.setdefault((source, 1), []).append((self.node[target], nbytes, [(target, 1)]))


class _Play:
    """The state of one play. `ended`: when each step's last update (or each micro-batch's last pass) was done."""

    def __init__(
        self,
        stages: _Stages,
        profiles: Sequence[Profile],
        links: Links,
        frames: int,
        rounds: int,
        size: int,
        clips: bool,
    ) -> None:
        self.stages, self.frames, self.size, self.clips = stages, frames, size, clips
        self.total = rounds * size
        nodes, count = len(profiles), len(stages.node)
        used = {(stages.node[s], target) for (s, _), sends in stages.sends.items() for target, _, _ in sends}
        self.links = {(a, b): link(links, profiles[a].node, profiles[b].node) for a, b in sorted(used)}
        self.credits = {(b, a): link(links, profiles[b].node, profiles[a].node).latency_s + HOP_S for a, b in used}
        self.training = any(s >= 0 for s in stages.backward_s)
        self.passes = [s >= 0 for s in stages.backward_s]
        self.machine = [p.machine or f"node {n}" for n, p in enumerate(profiles)]
        self.cores = {m: profiles[n].cores if profiles[n].machine else 2 for n, m in enumerate(self.machine)}
        self.carrying = [False] * nodes
        self.errands: list[deque[Callable[[], None]]] = [deque() for _ in range(nodes)]
        self.own = [[s for s in range(count) if stages.node[s] == n] for n in range(nodes)]
        self.missing: dict[tuple[int, int, int], int] = {}
        self.next = [[0] * count, [0] * count]
        self.open_tasks: dict[tuple[int, int], int] = {}
        self.per_micro_batch = [
            sum(1 + self.passes[s] for s in own)
            + sum(len(stages.sends.get((s, b), ())) for s in own for b in range(1 + self.passes[s]))
            for own in self.own
        ]
        self.retired = [0] * nodes
        self.heard = dict.fromkeys(self.links, 0)
        self.updates = [0] * nodes
        self.due = [0] * nodes
        self.working = [False] * nodes
        self.sending = dict.fromkeys(self.links, False)
        self.waiting: dict[tuple[int, int], list[tuple[int, int, int, list[tuple[int, int]]]]] = {
            p: [] for p in self.links
        }
        self.busy_s = [0.0] * nodes
        self.busy_then_s: list[list[float]] = []
        self.ended: list[float] = []
        self.left = {m: sum(1 for own in self.own if own) for m in range(rounds if self.training else self.total)}
        self.now = 0.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.made = 0

    def run(self) -> None:
        """Play until nothing happens any more. Raises AssertionError where work is left: then frames and credits err."""
        self._dispatch()
        while self.events:
            self.now, _, event = heapq.heappop(self.events)
            event()
            while self.events and self.events[0][0] == self.now:
                heapq.heappop(self.events)[2]()
            self._dispatch()
        assert not any(self.left.values()), "the modelled plan hangs"

    def _at(self, delay: float, event: Callable[[], None]) -> None:
        self.made += 1
        heapq.heappush(self.events, (self.now + delay, self.made, event))

    def _dispatch(self) -> None:
        for pair in self.links:
            if not self.sending[pair]:
                self._send(pair)
        for node, errands in enumerate(self.errands):
            if errands and not self.carrying[node] and self.cores[self.machine[node]] > 0:
                self._carry(node, errands.popleft())
        for node in range(len(self.own)):
            if not self.working[node] and self.cores[self.machine[node]] > 0:
                self._start(node)

    def _start(self, node: int) -> None:
        """Begin what comes first: an update that is due, a backward pass, a forward pass."""
        if self.due[node] > self.updates[node]:
            length = self.stages.update_s[node]
            self._work(node, length, length, partial(self._updated, node))
            return
        for backward in (1, 0):
            ready = [(self.next[backward][s], s) for s in self.own[node] if self._ready(node, s, backward)]
            if ready:
                m, s = min(ready)
                length = self.stages.backward_s[s] if backward else self.stages.forward_s[s]
                self.next[backward][s] += 1
                moving = self.stages.moving_s[s][backward]
                self._work(node, length, moving, partial(self._done, node, s, backward, m))
                return

    def _ready(self, node: int, s: int, backward: int) -> bool:
        m = self.next[backward][s]
        if m >= self.total or (backward and not self.passes[s]):
            return False
        if not backward and (m >= self.retired[node] + self.frames):
            return False
        if not backward and self.training and self.updates[node] + self.stages.delays[node] < m // self.size:
            return False
        return self.missing.get((s, backward, m), self.stages.needs[backward][s]) == 0

    def _work(self, node: int, length: float, moving: float, done: Callable[[], None]) -> None:
        """Work for `length` seconds; `moving` of them are moving bytes."""
        if any(w and self.machine[n] == self.machine[node] for n, w in enumerate(self.working)):
            length += (CROWDING - 1) * moving
        self.working[node] = True
        self.cores[self.machine[node]] -= 1
        self.busy_s[node] += length

        def end() -> None:
            self.working[node] = False
            self.cores[self.machine[node]] += 1
            done()

        self._at(length, end)

    def _carry(self, node: int, done: Callable[[], None]) -> None:
        """The node's daemon works on one tensor."""
        self.carrying[node] = True
        self.cores[self.machine[node]] -= 1

        def end() -> None:
            self.carrying[node] = False
            self.cores[self.machine[node]] += 1
            done()

        self._at(DAEMON_S, end)

    def _free(self, tasks: Sequence[tuple[int, int]], m: int) -> None:
        for s, backward in tasks:
            key = (s, backward, m)
            self.missing[key] = self.missing.get(key, self.stages.needs[backward][s]) - 1

    def _done(self, node: int, s: int, backward: int, m: int) -> None:
        self._free(self.stages.frees.get((s, backward), ()), m)
        for target, nbytes, tasks in self.stages.sends.get((s, backward), ()):
            heapq.heappush(self.waiting[node, target], (m, self.made, nbytes, tasks))
            self.made += 1
        self._retire(node, m)
        last = (m + 1) % self.size == 0
        if self.training and last and all(self._through(o, m) for o in self.own[node]):
            # Global-norm clipping needs every node's sum of squares first.
            if not self.clips:
                self.due[node] = m // self.size + 1
            elif all(self._through(o, m) for own in self.own for o in own):
                wait = max((x.latency_s for x in self.links.values()), default=0.0) + (HOP_S if self.links else 0.0)
                self._at(wait, partial(self._all_due, m // self.size + 1))

    def _through(self, s: int, m: int) -> bool:
        """Whether the segment's passes over micro-batch m, in this step the last one, have ended."""
        last = 1 if self.passes[s] else 0
        return self.next[last][s] > m and not (self.working[self.stages.node[s]] and self.next[last][s] == m + 1)

    def _all_due(self, step: int) -> None:
        for node, own in enumerate(self.own):
            self.due[node] = step if own else 0

    def _updated(self, node: int) -> None:
        self.updates[node] += 1
        self._one_left(self.updates[node] - 1)

    def _retire(self, node: int, m: int) -> None:
        key = (node, m)
        self.open_tasks[key] = self.open_tasks.get(key, self.per_micro_batch[node]) - 1
        while self.open_tasks.get((node, self.retired[node])) == 0:
            self.retired[node] += 1
            count = self.retired[node]
            if not self.training:
                self._one_left(count - 1)
            for source, target in self.links:
                if target == node:
                    self._at(self.credits[node, source], partial(self._hear, (source, target), count))

    def _hear(self, pair: tuple[int, int], count: int) -> None:
        self.heard[pair] = max(self.heard[pair], count)

    def _one_left(self, key: int) -> None:
        self.left[key] -= 1
        if self.left[key] == 0:
            self.ended.append(self.now)
            self.busy_then_s.append(list(self.busy_s))

    def _send(self, pair: tuple[int, int]) -> None:
        """Send the oldest tensor that its receiver has room for."""
        queue = self.waiting[pair]
        if not queue or queue[0][0] >= self.heard[pair] + self.frames:
            return
        m, _, nbytes, tasks = heapq.heappop(queue)
        self.sending[pair] = True

        def left() -> None:
            self.sending[pair] = False
            self._retire(pair[0], m)
            arrived = partial(self.errands[pair[1]].append, partial(self._free, tasks, m))
            self._at(self.links[pair].latency_s + HOP_S, arrived)

        travel = partial(self._at, nbytes / self.links[pair].bytes_per_s, left)
        self.errands[pair[0]].append(travel)
