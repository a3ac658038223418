"""Workers and shards under virtual time, with messages that are late, lost, doubled and out of order; one seed decides all.

Bytes are treated as a transport without copies would: those of a message are read when it has left, not when it was given
out, and the place that a message is received into holds garbage until the last moment. So whoever lets memory change too early
is caught.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from p2pnn.job.spec import Optimizer
from p2pnn.ps.compression import Bytes
from p2pnn.ps.consistency import Settings
from p2pnn.ps.inbox import Receive, Wait
from p2pnn.ps.messages import Answer, Push, Worker
from p2pnn.ps.port import PullRequest, PushPart
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


class Network:
    """compute: what a step is. slow: worker's number → how many times longer its steps take. on_push, on_answer see messages."""

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
        places: int = 2,
        inner: Optimizer | None = None,
        on_push: Callable[[int, Push], None] | None = None,
        on_answer: Callable[[int, Answer], None] | None = None,
    ) -> None:
        self.dice = random.Random(seed)
        self.now = 0.0
        self.faults, self.steps, self.fired = faults, steps, 0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self._compute, self._slow = compute, slow or {}
        self._on_push, self._on_answer = on_push, on_answer
        self.sharding, self.settings = sharding, settings
        self.names = workers_named(workers)
        total = steps if settings.consistency.in_rounds else steps * workers
        self.shards = [
            Shard(shard, values, optimizer, settings, self.names, steps=total, places=places)
            for shard, values in zip(sharding.shards, sharding.split(initial), strict=True)
        ]
        self.replicas = [
            Replica(name, sharding, settings, optimizer=inner, steps=steps, retry_s=1.0) for name in self.names
        ]
        self._computing = [False] * workers
        self._timers: list[float | None] = [None] * workers
        self._stopped: set[int] = set()
        self._waiting: list[dict[Worker, tuple[PushPart, bytes]]] = [{} for _ in sharding.shards]
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
        left = [r for n, r in enumerate(self.replicas) if n not in self._stopped]
        return all(r.step >= self.steps and not r.unacknowledged for r in left)

    def values(self) -> Flat:
        return self.sharding.join([shard.arrays["parameters"] for shard in self.shards])

    def stop(self, number: int) -> None:
        """A worker is there no more; what it has sent still arrives."""
        self._stopped.add(number)

    def change_workers(self, generation: int, names: Sequence[Worker]) -> None:
        for shard in self.shards:
            self._soon(lambda shard=shard: shard.set_workers(generation, names, self.now))  # type: ignore[misc]
            self.at(0.1, lambda shard=shard: self._serve(self.shards.index(shard)))  # type: ignore[misc]
        for n, name in enumerate(self.names):
            if name in names:
                self._soon(lambda n=n: (self.replicas[n].restart(generation, self.now), self._pump(n)))  # type: ignore[misc]

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
        if not self._computing[n] and replica.step < self.steps and replica.begin_step(self.now):
            self._computing[n] = True
            used = replica.parameters.copy()
            took = 0.01 * (0.5 + self.dice.random()) * self._slow.get(n, 1.0)
            self.at(took, lambda: self._backward(n, used, len(self.sharding.space.entries)))
        self._pump(n)

    def _backward(self, n: int, used: Flat, left: int) -> None:
        """Gradients become ready from the last parameter to the first."""
        replica, entries = self.replicas[n], self.sharding.space.entries
        if left == len(entries):
            replica.gradient[:] = self._compute(n, replica.step, used)
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

    def _leave(self, n: int, message: PushPart | PullRequest) -> None:
        data = message.data.tobytes() if isinstance(message, PushPart) else b""
        self.replicas[n].sent(message)
        for _ in range(2 if self._happens(self.faults.doubled) else 1):
            if not self._happens(self.faults.lost):
                self._soon(lambda: self._arrive(message, data))

    # shards

    def _arrive(self, message: PushPart | PullRequest, data: bytes) -> None:
        shard = self.shards[message.shard]
        if isinstance(message, PullRequest):
            shard.pull(message.pull, self.now)
        else:
            if self._on_push:
                self._on_push(message.shard, message.push)
            found = shard.announce(message.push, self.now)
            if isinstance(found, Wait):
                self._waiting[message.shard][message.push.worker] = message, data
            elif isinstance(found, Receive):
                found.into[:] = 0xFF
                self._soon(lambda: self._receive(message.shard, found, data))
        self._serve(message.shard)

    def _receive(self, index: int, receive: Receive, data: bytes) -> None:
        if self._happens(self.faults.broken):
            self.shards[index].broken(receive, self.now)
        else:
            receive.into[:] = np.frombuffer(data, np.uint8)
            self.shards[index].received(receive, self.now)
        self._serve(index)

    def _serve(self, index: int) -> None:
        shard = self.shards[index]
        while shard.work(self.now):
            pass
        while (answer := shard.next_answer(self.now)) is not None:
            self.at(self.dice.random() * self.faults.leaving_s, lambda a=answer: self._answer(index, a))  # type: ignore[misc]
        while (worker := shard.next_room(self.now)) is not None:
            waited = self._waiting[index].pop(worker, None)
            if waited is not None:
                self._soon(lambda w=waited: self._arrive(*w))  # type: ignore[misc]

    def _answer(self, index: int, answer: Answer) -> None:
        data = answer.values.data.tobytes() if answer.values else b""
        if self._on_answer:
            self._on_answer(index, answer)
        self.shards[index].answer_sent(answer, self.now)
        self._serve(index)
        n = self.names.index(answer.worker)
        for _ in range(2 if self._happens(self.faults.doubled) else 1):
            if not self._happens(self.faults.lost):
                self._soon(lambda: self._answer_arrives(n, index, answer, data))

    def _answer_arrives(self, n: int, index: int, answer: Answer, data: bytes) -> None:
        replica = self.replicas[n]
        place = replica.place(index, answer)
        if place is None:
            replica.answered(index, answer, self.now, took_values=False)
        else:
            place[:] = 0xFF
            self._soon(lambda: self._answer_received(n, index, answer, place, data))
        self._go(n)

    def _answer_received(self, n: int, index: int, answer: Answer, place: Bytes, data: bytes) -> None:
        replica = self.replicas[n]
        if self._happens(self.faults.broken):
            replica.broken(index, self.now)
        else:
            place[:] = np.frombuffer(data, np.uint8)
            replica.answered(index, answer, self.now, took_values=True)
        self._go(n)
