"""Workers and shards under virtual time, with messages that are late, lost, doubled and out of order; one seed decides all.

Each process has an arena and a daemon that knows its layout and asks its gate, as nodes do. Bytes are treated as a transport
without copies would: those of a message are read when it has left, not when it was given out, and the place that a message is
received into holds garbage until the last moment. So whoever lets memory change too early is caught.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from p2pnn.job.plan import NodeShare, Plan, ShardHome
from p2pnn.job.plan import Replica as Place
from p2pnn.job.spec import Optimizer
from p2pnn.ps.allotment import Allotment
from p2pnn.ps.consistency import Settings
from p2pnn.ps.gate import PushGate, ValuesGate
from p2pnn.ps.layout import Bump, ServerLayout, WorkerLayout, slot_of
from p2pnn.ps.messages import Answer, Mark, Push, Worker
from p2pnn.ps.outgoing import MarkNote, PullRequest, PushPart
from p2pnn.ps.shard import Shard
from p2pnn.ps.sharding import Sharding
from p2pnn.ps.space import Flat
from p2pnn.ps.worker import Replica
from p2pnn.types import NodeId

EVENTS_MAX = 50_000


@dataclass(frozen=True)
class Faults:
    """Probabilities per message; delay_s: the longest; leaving_s: how long its bytes are read for at most, before that."""

    lost: float = 0.0
    doubled: float = 0.0
    broken: float = 0.0
    delay_s: float = 0.01
    leaving_s: float = 0.001


NONE = Faults()
STORM = Faults(lost=0.05, doubled=0.1, broken=0.05, delay_s=0.05)

Compute = Callable[[int, int, Flat], Flat]
"""(worker's number, step, parameters) → gradient, both float32 of the whole space."""


def workers_named(count: int) -> list[Worker]:
    return [Worker(NodeId(f"{n:02x}" * 16)) for n in range(count)]


def plan_of(workers: int, shards: int) -> Plan:
    """Each worker and each shard on a node of its own, the workers first."""
    names = [NodeId(f"{n:02x}" * 16) for n in range(workers + shards)]
    nodes = tuple(NodeShare(name, name[:4], "", 0, 0, 0, 0.0) for name in names)
    replicas = tuple(Place((n,)) for n in range(workers))
    homes = tuple(ShardHome((workers + n,)) for n in range(shards))
    return Plan(nodes, (), 1, 0.0, 0.0, replicas=replicas, shards=homes)


@dataclass(frozen=True)
class Line:
    """A mark of the script: when all global steps below `until` are done. fetch: who wants the values of that moment."""

    until: int
    fetch: frozenset[int] | None = None

    def is_wanted_by(self, worker: int) -> bool:
        return self.fetch is None or worker in self.fetch


@dataclass
class Course:
    """How far one worker is in the script. line: the next; drawn: whether its mark is."""

    line: int = 0
    drawn: bool = False
    seen: dict[int, Flat] = field(default_factory=dict)  # mark → the parameters that it fetched there


class Network:
    """compute: what a step is. slow: worker's number → how many times longer its steps take. on_push, on_answer see messages.

    steps: of each worker; or with a script, of all together, and then the lines of the script are marks.
    """

    def __init__(
        self,
        seed: int,
        sharding: Sharding,
        initial: Flat,
        optimizer: Optimizer,
        settings: Settings,
        workers: int,
        compute: Compute,
        *,
        steps: int,
        faults: Faults = NONE,
        slow: dict[int, float] | None = None,
        script: Sequence[Line] = (),
        inner: Optimizer | None = None,
        on_push: Callable[[int, Push], None] | None = None,
        on_answer: Callable[[int, Answer], None] | None = None,
    ) -> None:
        self.dice = random.Random(seed)
        self.now = 0.0
        self.faults, self.fired = faults, 0
        self.script = script
        self.allotments = [Allotment(workers, n, settings.consistency.kind == "sync") for n in range(workers)]
        self.steps = [allotment.local(steps) if script else steps for allotment in self.allotments]
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self._compute, self._slow = compute, slow or {}
        self._on_push, self._on_answer = on_push, on_answer
        self.sharding, self.settings = sharding, settings
        self.names = workers_named(workers)
        total = steps if settings.consistency.in_rounds else steps * workers
        self._plan = plan_of(workers, len(sharding.shards))
        self._servers = [ServerLayout.of(sharding, [n], settings, workers) for n in range(len(sharding.shards))]
        self._server_arenas = [memoryview(bytearray(layout.arena_bytes)) for layout in self._servers]
        self.shards = [
            Shard(
                shard,
                values,
                optimizer,
                settings,
                self.names,
                steps=total,
                slot=partial(slot_of, arena, layout.slots[shard.index]),
                buffer=Bump(arena, layout.rest, layout.arena_bytes),
            )
            for shard, values, layout, arena in zip(
                sharding.shards, sharding.split(initial), self._servers, self._server_arenas, strict=True
            )
        ]
        self._gates = [PushGate(self._plan, layout) for layout in self._servers]
        layout = WorkerLayout.of(sharding, settings)
        self._worker_arenas = [memoryview(bytearray(layout.stop)) for _ in self.names]
        self.replicas = [
            Replica(
                name,
                sharding,
                settings,
                optimizer=inner,
                steps=steps,
                retry_s=1.0,
                buffer=Bump(arena, layout.bodies, layout.stop),
            )
            for name, arena in zip(self.names, self._worker_arenas, strict=True)
        ]
        self._landings = [ValuesGate(self._plan, layout) for _ in self.names]
        for gate in self._landings:
            for shard in sharding.shards:
                gate.lend(shard.index)
        self.courses = [Course() for _ in self.names]
        self.saved: list[dict[int, dict[str, Flat]]] = [{} for _ in self.shards]  # mark → what a server writes there
        self._computing = [False] * workers
        self._timers: list[float | None] = [None] * workers
        self._stopped: set[int] = set()
        for n in range(workers):
            self.at(self.dice.random() * 0.01, lambda n=n: self._go(n))  # type: ignore[misc]

    def at(self, delay: float, what: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._heap, (self.now + delay, self._number, what))

    def run(self, until: Callable[[], bool] | None = None) -> None:
        """Until all workers have taken their steps and all pushes are acknowledged (or `until` says so)."""
        for _ in range(EVENTS_MAX):
            if until() if until else self.is_done():
                return
            assert self._heap, f"nothing happens any more: {[r.step for r in self.replicas]}"
            self.now, _, what = heapq.heappop(self._heap)
            what()
        raise AssertionError(f"no end: {[r.step for r in self.replicas]}")

    def is_done(self) -> bool:
        left = [n for n in range(len(self.replicas)) if n not in self._stopped]
        through = all(self.courses[n].line == len(self.script) for n in left)
        return through and all(
            self.replicas[n].step >= self.steps[n] and not self.replicas[n].unacknowledged for n in left
        )

    def values(self) -> Flat:
        return self.sharding.join([shard.arrays["parameters"] for shard in self.shards])

    def stop(self, number: int) -> None:
        """A worker is there no more; what it has sent still arrives."""
        self._stopped.add(number)

    def lose(self, number: int) -> None:
        """Shards hear, each at its time, that a worker is gone."""
        for index, shard in enumerate(self.shards):
            self._soon(lambda shard=shard, index=index: (shard.leave(self.names[number], self.now), self._serve(index)))  # type: ignore[misc]

    def _soon(self, what: Callable[[], Any]) -> None:
        self.at(self.dice.random() * self.faults.delay_s, lambda: (what(), None)[1])

    def _happens(self, probability: float) -> bool:
        happens = self.dice.random() < probability
        self.fired += happens
        return happens

    # workers

    def _go(self, n: int) -> None:
        replica = self.replicas[n]
        if n in self._stopped:
            return
        until = self._draw(n)
        if self.settings.consistency.backup and replica.step < until and replica.may_begin:
            replica.skip_to(max(replica.step, min(replica.version, until)))
            until = self._draw(n)
        if not self._computing[n] and replica.step < until and replica.begin_step(self.now):
            self._computing[n] = True
            used = replica.parameters.copy()
            took = 0.01 * (0.5 + self.dice.random()) * self._slow.get(n, 1.0)
            self.at(took, lambda: self._backward(n, used, len(self.sharding.space.entries)))
        self._pump(n)

    def _draw(self, n: int) -> int:
        """Go on in the script as far as can be. Returns up to which of its steps the worker may go now."""
        replica, course = self.replicas[n], self.courses[n]
        while course.line < len(self.script):
            line = self.script[course.line]
            until = self.allotments[n].local(line.until)
            if not course.drawn:
                if self._computing[n] or replica.step < until or not replica.settle(self.now):
                    return until
                replica.mark(course.line + 1, self.now, fetch=line.is_wanted_by(n))
                course.drawn = True
            if line.is_wanted_by(n):
                if not replica.has_values:
                    return until
                replica.install()
                course.seen[course.line + 1] = replica.parameters.copy()
            course.line += 1
            course.drawn = False
        return self.steps[n]

    def _backward(self, n: int, used: Flat, left: int) -> None:
        """Gradients become ready from the last parameter to the first."""
        replica, entries = self.replicas[n], self.sharding.space.entries
        if left == len(entries):
            step = self.allotments[n].batch(replica.step) if self.script else replica.step
            replica.gradient[:] = self._compute(n, step, used)
        replica.gradient_ready(entries[left - 1].name, self.now)
        if left > 1:
            self.at(0.0005, lambda: self._backward(n, used, left - 1))
        else:
            replica.end_step(self.now)
            self._computing[n] = False
        self._pump(n)
        if left == 1:
            self._go(n)

    def _pump(self, n: int) -> None:
        replica = self.replicas[n]
        while (message := replica.next_message(self.now)) is not None and n not in self._stopped:
            self.at(self.dice.random() * self.faults.leaving_s, lambda m=message: self._leave(n, m))  # type: ignore[misc]
        at = replica.get_timer()
        if at is not None and at != self._timers[n]:
            self._timers[n] = at
            self.at(max(0.0, at - self.now), lambda: self._timer(n))

    def _timer(self, n: int) -> None:
        self._timers[n] = None
        self.replicas[n].handle_timer(self.now)
        self._pump(n)

    def _leave(self, n: int, message: PushPart | PullRequest | MarkNote) -> None:
        data = message.data.tobytes() if isinstance(message, PushPart) else b""
        self.replicas[n].sent(message)
        shards = range(len(self.shards)) if isinstance(message, MarkNote) else [message.shard]
        told = message.mark if isinstance(message, MarkNote) else message
        for shard in shards:
            for _ in range(2 if self._happens(self.faults.doubled) else 1):
                if not self._happens(self.faults.lost):
                    self._soon(partial(self._arrive, n, shard, told, data))

    # shards

    def _arrive(self, n: int, index: int, message: PushPart | PullRequest | Mark, data: bytes) -> None:
        shard = self.shards[index]
        if isinstance(message, Mark):
            if message.generation == shard.generation:
                shard.mark(message.worker, message.sequence, self.now)
        elif isinstance(message, PullRequest):
            shard.pull(message.pull, self.now)
        else:
            if self._on_push:
                self._on_push(index, message.push)
            self._announce(n, index, message.push, data)
        self._serve(index)

    def _announce(self, n: int, index: int, push: Push, data: bytes) -> None:
        """As the daemon does before a byte of a body comes."""
        gate, about = self._gates[index], (index, n, push.sequence, push.part)
        if push.generation != self.shards[index].generation:
            self.shards[index].arrived(push, self.now)
        elif gate.refusal(n, n, index, push.sequence, push.part, len(data)):
            return
        elif gate.is_known(*about):
            self.shards[index].arrived(push, self.now)
        else:
            offset, size = gate.take(*about)
            place = self._server_arenas[index][offset : offset + size]
            place[:] = b"\xff" * size
            self._soon(lambda: self._receive(gate, about, push, place, data))

    def _receive(
        self, gate: PushGate, about: tuple[int, int, int, int], push: Push, place: memoryview, data: bytes
    ) -> None:
        if gate is not self._gates[about[0]]:
            return  # the start that it was meant for is over, and so is its arena
        if self._happens(self.faults.broken):
            gate.broken(*about)
        else:
            place[:] = data
            gate.received(*about)
            self.shards[about[0]].arrived(push, self.now)
        self._serve(about[0])

    def _serve(self, index: int) -> None:
        shard, saved = self.shards[index], self.saved[index]
        if len(saved) < len(self.script) and shard.is_marked(len(saved) + 1):
            mark = len(saved) + 1
            saved[mark] = {name: array.copy() for name, array in shard.arrays.items()}
            self._soon(lambda: (shard.served(mark), self._serve(index)))
        while shard.work(self.now):
            pass
        while (answer := shard.next_answer(self.now)) is not None:
            n = self.names.index(answer.worker)
            self._gates[index].acknowledged(index, n, shard.acknowledged(answer.worker))
            self.at(self.dice.random() * self.faults.leaving_s, partial(self._answer, n, index, answer))

    def _answer(self, n: int, index: int, answer: Answer) -> None:
        data = answer.values.data.tobytes() if answer.values else b""
        if self._on_answer:
            self._on_answer(index, answer)
        self.shards[index].answer_sent(answer, self.now)
        self._serve(index)
        for _ in range(2 if self._happens(self.faults.doubled) else 1):
            if not self._happens(self.faults.lost):
                self._soon(partial(self._answer_arrives, n, index, answer, data))

    def _answer_arrives(self, n: int, index: int, answer: Answer, data: bytes) -> None:
        gate, values = self._landings[n], answer.values
        if values is not None:
            assert gate.refusal(index, len(self.names) + index, len(data), values.whole) == ""
        landing = gate.take(index, len(data)) if values is not None else None
        if landing is None:
            self.replicas[n].answered(index, answer, self.now, took_values=False)
        else:
            place = self._worker_arenas[n][landing[0] : sum(landing)]
            place[:] = b"\xff" * len(data)
            self._soon(partial(self._answer_received, n, index, answer, place, data))
        self._go(n)

    def _answer_received(self, n: int, index: int, answer: Answer, place: memoryview, data: bytes) -> None:
        if self._happens(self.faults.broken):
            self._landings[n].broken(index)
            self.replicas[n].broken(index, self.now)
        else:
            place[:] = data
            self._soon(partial(self._take, n, index, answer, place))
        self._go(n)

    def _take(self, n: int, index: int, answer: Answer, landed: memoryview) -> None:
        """The executor comes to it."""
        replica = self.replicas[n]
        place = replica.place(index, answer)
        if place is not None:
            place[:] = np.frombuffer(landed, np.uint8)
        replica.answered(index, answer, self.now, took_values=place is not None)
        self._landings[n].lend(index)
        self._go(n)
