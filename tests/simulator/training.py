"""Workers and a replicated shard of the parameter server in one simulated world: what training asks of replication.

The hosts of `shards` with the real cores on top: `ps.ReplicatedShard` with its slots, gate and arena, `ps.Replica` for the
workers. Bytes of a message are read when it leaves, a little after it was given out, and those that come are written into slots,
so memory that changes too early shows. Pushes are integer one-hot at rate 1: the parameters say what they hold. (`play` is one
seed.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from random import Random
from typing import Any, NamedTuple

import numpy as np

from p2pnn.job.assignment import gone_workers
from p2pnn.job.spec import Optimizer
from p2pnn.ps.consistency import Settings, consistency
from p2pnn.ps.copies import limits_of
from p2pnn.ps.decided import fate_of
from p2pnn.ps.gate import PushGate
from p2pnn.ps.granting import Leased
from p2pnn.ps.layout import WINDOW, ServerLayout, slot_of
from p2pnn.ps.messages import Answer, Mark, Pull, Push, Refusal, Worker
from p2pnn.ps.outgoing import MarkNote, PullRequest, PushPart
from p2pnn.ps.replicated import ReplicatedShard
from p2pnn.ps.sharding import Part, Piece, Sharding, ShardRange
from p2pnn.ps.space import Entry, Flat, Space
from p2pnn.ps.worker import Replica as Model
from p2pnn.replication.configuration import Configuration, Member
from p2pnn.replication.leases import LeaseTable, Wish
from p2pnn.replication.outcomes import FetchConfiguration, Propose
from p2pnn.replication.replica import Replica
from p2pnn.types import NodeId
from p2pnn.wire.messages import Forward, StatePiece, Superseded
from tests.ps.network import workers_named
from tests.simulator.host import Host
from tests.simulator.shard_manager import Alive, Decided, Proposal, Wanted
from tests.simulator.shard_seeds import STRIKES
from tests.simulator.shards import SHARD, Parcel, Result, Shards
from tests.simulator.world import World

SIZE = 6144
PARTS = 3
STEP_S = 0.012
SGD = Optimizer("sgd", 1.0, schedule="constant")

Compute = Callable[[int, int, Flat], Flat]
"""(worker, step, parameters) → gradient."""


def tiny_parts() -> Sharding:
    """One shard of three parameters, each a part of its own."""
    cuts = [n * SIZE // PARTS for n in range(PARTS + 1)]
    runs = list(pairwise(cuts))
    space = Space([Entry(f"w{n}", (b - a,), a, b, False, n) for n, (a, b) in enumerate(runs)])
    pieces = tuple(Piece(n, a, b, a) for n, (a, b) in enumerate(runs))
    parts = tuple(Part(n, a, b, (n,), n) for n, (a, b) in enumerate(runs))
    return Sharding(space, "equal", [ShardRange(0, SIZE, pieces, parts, ((0, SIZE, False),))])


class Pushed(NamedTuple):
    push: Push
    data: bytes

    def __repr__(self) -> str:
        return f"push {self.push.worker.node[:2]}/{self.push.sequence} part {self.push.part} of g{self.push.generation}"


class Pulled(NamedTuple):
    pull: Pull


class Marked(NamedTuple):
    mark: Mark


class Told(NamedTuple):
    answer: Answer
    data: bytes

    def __repr__(self) -> str:
        a = self.answer
        return f"answer to {a.worker.node[:2]}/{a.sequence} pull {a.request}: {a.refusal}, g{a.generation}"


class Wished(NamedTuple):
    worker: Worker
    wish: Wish


class Granted(NamedTuple):
    leased: Leased


class Watched(ReplicatedShard):
    """entries: worker's push → the entry that decided it. refusals: those that were refused."""

    entries: dict[tuple[Worker, int], int]
    refusals: set[tuple[Worker, int]]

    loads = 0

    @property
    def applied(self) -> int:
        return self._applied

    def receive(self, source: NodeId, message: Any, now: float, body: Any = b"") -> None:
        before = self._applied
        super().receive(source, message, now, body)
        self.loads += isinstance(message, StatePiece) and self._applied > before

    def _apply(self, decision: Any, worker: Worker | None, sequence: int, now: float) -> None:
        before = {one.worker: one.sequence for one in self.state.roster.members}
        super()._apply(decision, worker, sequence, now)
        for one in self.state.roster.members:
            for number in range(before[one.worker] + 1, one.sequence + 1):
                self.entries[one.worker, number] = self._applied + 1
                if one.refusal is not None and number == one.sequence:
                    self.refusals.add((one.worker, number))


class ServerHost:
    """A process that holds the shard, with the daemon in front of it."""

    def __init__(self, training: Shards, host: Host, now: float) -> None:
        assert isinstance(training, Training)
        self.member = Member(host.node, training.incarnation(host))
        self._training, self._host = training, host
        layout = training.layout
        self._arena = memoryview(bytearray(layout.arena_bytes))
        self._gate = PushGate(training.plan, layout)
        self.shard = Watched(
            SHARD,
            self.member,
            training.sharding.shards[0],
            training.initial,
            training.optimizer,
            training.settings,
            training.names,
            now=now,
            limits=training.limits,
            timing=training.timing,
            replica=training.replica,
            slot=partial(slot_of, self._arena, layout.slots[0]),
            steps=0,
            leases=training.new_table(),
        )
        self.shard.entries, self.shard.refusals = {}, training.in_vain
        self.replica = self.shard.replica
        self._alive_due = now
        self._leaving: list[tuple[float, NodeId, Any]] = []
        self._last: dict[NodeId, float] = {}
        self._shows: list[Any] = []
        self._wrote = 0

    # --- the daemon

    def receive(self, source: NodeId, message: Any, now: float) -> None:
        match message:
            case Parcel(Forward() as inner, body):
                self._forwarded(source, inner, body, now)
            case Parcel(inner, body):
                before = self.shard.loads
                self.shard.receive(source, inner, now, body)
                self._training.ledger.transfers += self.shard.loads - before
            case Decided(held):
                self.shard.configured(message.configuration, now)
                for gone in gone_workers(held.gone, self._training.plan):
                    self.shard.leave(self._training.names[gone], now)
            case Pushed(push, data):
                self._pushed(source, push, data, now)
            case Pulled(pull):
                self._ask(source, pull.generation)
                self.shard.pull(pull, now)
            case Marked(mark):
                self.shard.mark(mark.worker, mark.sequence, now)
                if mark.rests:
                    self.shard.rest(mark.worker, mark.pushes, now)
            case Wished(worker, wish):
                self.shard.wish(worker, wish, now)
        self._serve(now)

    def _ask(self, source: NodeId, generation: int) -> bool:
        """Whether a worker is right here; else it is told."""
        if not self.shard.is_primary and generation <= self.shard.generation:
            self._leave(source, Superseded(*SHARD, self.shard.generation), 0.0)
        return self.shard.is_primary

    def _pushed(self, source: NodeId, push: Push, data: bytes, now: float) -> None:
        worker = self._training.names.index(push.worker)
        about = (0, worker, push.sequence, push.part)
        self._free()
        if not self._ask(source, push.generation) or push.generation != self.shard.generation:
            self.shard.arrived(push, now)
        elif self._gate.refusal(worker, worker, *about[:1], *about[2:], len(data)):
            return
        elif self._gate.is_known(*about):
            self.shard.arrived(push, now)
        else:
            self._write(about, data)
            self.shard.arrived(push, now)

    def _forwarded(self, source: NodeId, message: Forward, data: bytes, now: float) -> None:
        configuration = self.replica.configuration
        if message.generation == self.shard.generation and (
            configuration is None or source != configuration.primary.id
        ):
            return
        view = self.shard.slot_view(message.worker, message.sequence, message.start, len(data))
        assert view is not None
        part = next(n for n, (start, _) in enumerate(self._training.layout.slots[0].parts) if start == message.start)
        about = (0, message.worker - 1, message.sequence, part)
        self._free()
        if message.generation != self.shard.generation:
            self.shard.receive(source, message, now)  # the fence says what there is to say
        elif self._gate.refusal(about[1], None, 0, *about[2:], len(data)):
            self._training.full += self.replica.role == 2
        else:
            if not self._gate.is_known(*about, forwarded=True):
                self._write(about, data, forwarded=True)
            self.shard.receive(source, message, now, view)

    def _write(self, about: tuple[int, int, int, int], data: bytes, *, forwarded: bool = False) -> None:
        offset, size = self._gate.take(*about)
        self._arena[offset : offset + size] = data
        self._gate.received(*about, forwarded=forwarded)

    def _free(self) -> None:
        for number, worker in enumerate(self._training.names):
            self._gate.acknowledged(0, number, self.shard.acknowledged(worker))

    # --- the executor

    def _serve(self, now: float) -> None:
        shard, training = self.shard, self._training
        while shard.work(now) or self._writes(now):
            pass
        while (answer := shard.next_answer(now)) is not None:
            worker = training.names.index(answer.worker)
            if answer.sequence and answer.refusal in training.decided:
                training.answers(self, worker, answer)
            self._leave(training.workers[worker], answer, now)
        while (leased := shard.next_leased()) is not None:
            training.ledger.certain(shard.applied)
            self._leave(training.workers[training.names.index(leased.worker)], Granted(leased), now)
        for parcel in shard.messages_to_send(now):
            self._leave(parcel[0], parcel, now)
        while (event := shard.next_event()) is not None:
            self._shows.append(event)

    def _writes(self, now: float) -> bool:
        """What a server does at a mark, once it is the primary: read all there is."""
        done = self.shard.served_to
        if not self.shard.is_serving or not self.shard.is_marked(done + 1) or done + 1 == self._wrote:
            return False
        self._wrote = done + 1
        self._training.reads(done + 1, self.shard.arrays["parameters"])
        self.shard.served(done + 1, now)
        return True

    def _leave(self, target: NodeId, what: Any, now: float) -> None:
        """Bytes are read when it is its turn, in the order of the link."""
        soon = now + self._training.world.random.random() * self._training.leaves_within_s
        at = self._last[target] = max(self._last.get(target, 0.0), soon)
        self._leaving.append((at, target, what))

    def get_timer(self) -> float:
        due = [self._alive_due, *(at for at, _, _ in self._leaving)]
        timer = self.shard.get_timer()
        return min(due if timer is None else [*due, timer])

    def handle_timer(self, now: float) -> None:
        timer = self.shard.get_timer()
        if timer is not None and now >= timer:
            self.shard.handle_timer(now)
        self._serve(now)

    def messages_to_send(self, now: float) -> list[tuple[NodeId, Any]]:
        out: list[tuple[NodeId, Any]] = []
        if now >= self._alive_due:
            self._alive_due = now + 0.1
            out += [(manager, Alive(self.member)) for manager in self._training.managers]
        due = [one for one in self._leaving if one[0] <= now]
        self._leaving = [one for one in self._leaving if one[0] > now]
        for _, target, what in due:
            match what:
                case Answer():
                    data = what.values.data.tobytes() if what.values else b""
                    out.append((target, Told(what, data)))
                    self.shard.answer_sent(what, now)
                case Superseded():
                    out.append((target, Parcel(what, b"")))
                case Granted():
                    out.append((target, what))
                case _:
                    out.append((target, Parcel(what[1], bytes(what[2]))))
                    self.shard.sent(what)
        if due:
            self._serve(now)
        return out

    def next_event(self) -> Any:
        return self._shows.pop(0) if self._shows else None

    # --- what the end reads

    @property
    def counts(self) -> dict[int, int]:
        values = self.shard.arrays["parameters"]
        assert (values == np.rint(values)).all(), "the parameters are sums of ones"
        return {int(cell): int(values[cell]) for cell in np.flatnonzero(values)}


class WorkerHost:
    """A worker that trains one step after the other."""

    def __init__(self, training: Shards, host: Host, now: float) -> None:
        assert isinstance(training, Training)
        self._training = training
        self.number = training.workers.index(host.node)
        self.name = training.names[self.number]
        self.model = Model(self.name, training.sharding, training.settings, retry_s=0.05)
        self._configuration: Configuration | None = None
        self._ends: float | None = None
        self._used: Flat | None = None
        self._asks = True
        self._drawn = self._through = 0  # the newest mark
        self._go(now)

    def receive(self, source: NodeId, message: Any, now: float) -> None:
        match message:
            case Decided():
                configuration = message.configuration
                if self._configuration is None or configuration.generation > self._configuration.generation:
                    self._configuration = configuration
                    self.model.restart(configuration.generation, now, 0)
            case Parcel(Superseded(), _):
                self._asks = True
            case Told(answer, data):
                place = self.model.place(0, answer)
                if place is not None:
                    place[:] = np.frombuffer(data, np.uint8)
                self.model.answered(0, answer, now, took_values=place is not None)
                self._asks = self._asks or answer.refusal is Refusal.STALE_GENERATION
        self._go(now)

    def _go(self, now: float) -> None:
        training, model = self._training, self.model
        may = training.may_step(model.step)
        if self._ends is None and may and self._passes_mark(now) and model.begin_step(now):
            self._used = model.parameters.copy()
            training.uses(self.number, model.step, self._used)
            slow = training.slow.get(self.number, 1.0)
            self._ends = now + STEP_S * (0.5 + training.world.random.random()) * slow

    def _passes_mark(self, now: float) -> bool:
        """Draw the mark that lies here, if any, and read the values of that moment."""
        training, model = self._training, self.model
        mark = model.step // training.mark_every if training.mark_every else 0
        if mark == self._through or model.step % training.mark_every:
            return True
        if self._drawn < mark:
            if not model.settle(now):
                return False
            model.mark(mark, now, fetch=True)
            self._drawn = mark
        if not model.has_values:
            return False
        model.install()
        training.reads(mark, model.parameters)
        self._through = mark
        return True

    def get_timer(self) -> float | None:
        times = [at for at in (self._ends, self.model.get_timer()) if at is not None]
        return min(times, default=None)

    def handle_timer(self, now: float) -> None:
        timer = self.model.get_timer()
        if timer is not None and now >= timer:
            self.model.handle_timer(now)
        if self._ends is not None and now >= self._ends:
            assert self._used is not None
            training, model, step = self._training, self.model, self.model.step
            model.gradient[:] = training.compute(self.number, step, self._used)
            training.ledger.pushes(self.number + 1, step + 1, training.cell(self.number, step))
            for entry in reversed(training.sharding.space.entries):
                model.gradient_ready(entry.name, now)
            model.end_step(now)
            self._ends = None
        self._go(now)

    def messages_to_send(self, now: float) -> list[tuple[NodeId, Any]]:
        out: list[tuple[NodeId, Any]] = []
        if self._configuration is None:
            return out
        primary = self._configuration.primary.id
        while (message := self.model.next_message(now)) is not None:
            match message:
                case PushPart():
                    out.append((primary, Pushed(message.push, message.data.tobytes())))
                case PullRequest():
                    out.append((primary, Pulled(message.pull)))
                case MarkNote():
                    out.append((primary, Marked(message.mark)))
            self.model.sent(message)
        return out

    def next_event(self) -> Any:
        asks, self._asks = self._asks, False
        return FetchConfiguration() if asks else None


class Training(Shards):
    """how: the consistency. compute: what a step is; one-hot where it is None. mark_every: steps of a worker between two marks.

    full: Forwards for which a backup had no slot. spread: how far behind the values were that steps were computed from.
    """

    server_host: type[Any] = ServerHost
    worker_host: type[Any] = WorkerHost

    decided = frozenset({None, Refusal.LATE, Refusal.TOO_STALE, Refusal.AHEAD, Refusal.NOT_FINITE, Refusal.RUNAWAY})

    def __init__(
        self,
        seed: int,
        copies: int = 3,
        workers: int = 3,
        replica: type[Replica] = Replica,
        *,
        how: str = "async",
        compute: Compute | None = None,
        initial: Flat | None = None,
        optimizer: Optimizer = SGD,
        slow: dict[int, float] | None = None,
        mark_every: int = 0,
        staleness_max: int = 0,
        **more: Any,
    ) -> None:
        self.mark_every = mark_every
        self.sharding = tiny_parts()
        self.settings = Settings(consistency(how), staleness_max=staleness_max)
        self.in_vain: set[tuple[Worker, int]] = set()  # pushes that the log refuses
        self.names = workers_named(workers)
        self.layout = ServerLayout.of(self.sharding, [0], self.settings, workers, copies=2)
        self.initial = np.zeros(SIZE, np.float32) if initial is None else initial
        self.optimizer = optimizer
        self.compute = compute or self._one_hot
        self.is_counting = compute is None
        self.steps_max = SIZE // workers
        self.slow = slow or {}
        self.leaves_within_s = 0.002
        self.spread = 0
        self.marked = 0
        self.full = 0
        limits = limits_of(workers, 4 * SIZE, 4 * SIZE)
        self.limits = replace(
            limits,
            retained_entries=2,
            retained_bytes=8 * SIZE,
            catching_up_entries=8 if seed % 2 else 4096,  # so that learners get whole states, or entry by entry
            catching_up_bytes=limits.catching_up_bytes if seed % 4 == 0 else 1 << 30,  # else they seldom lack places
            piece_bytes=16384,
            state_window=16,
            entries_max=16,
        )
        super().__init__(
            seed,
            copies,
            workers,
            replica,
            replica_host=self.server_host,
            worker_host=self.worker_host,
            how=how,
            **more,
        )
        for node in self.replicas:
            core: Any = self.world.hosts[node].core
            self.ledger.living[core.member] = core.replica

    @property
    def gone(self) -> tuple[int, ...]:
        """Workers whom the start goes on without."""
        return gone_workers(self.assignment.gone, self.plan)

    def new_table(self) -> LeaseTable | None:
        """Of the data, where it is leased."""
        return None

    # --- what workers do

    def cell(self, worker: int, step: int) -> int:
        return step * len(self.names) + worker

    def _one_hot(self, worker: int, step: int, parameters: Flat) -> Flat:
        gradient = np.zeros(SIZE, np.float32)
        gradient[self.cell(worker, step)] = -1.0
        return gradient

    def may_step(self, step: int) -> bool:
        """Where workers wait for each other, the end is where the foremost is."""
        if self.pushing or not self.settings.consistency.waits:
            return self.pushing and step < self.steps_max
        models: list[Any] = [self.world.hosts[node].core for node in self.workers]
        return step < max(one.model.step + (one._ends is not None) for one in models)

    def uses(self, worker: int, step: int, parameters: Flat) -> None:
        """A worker computes a step from these."""
        how = self.settings.consistency
        if not self.is_counting or not how.waits:
            return
        behind = step - int(parameters[: self.steps_max * len(self.names)].reshape(-1, len(self.names)).sum(0).min())
        bound = how.bound if how.kind == "ssp" else 0
        assert behind <= bound, f"worker {worker} computes step {step} from values that are {behind} pushes behind"
        self.spread = max(self.spread, behind)

    def reads(self, mark: int, parameters: Flat) -> None:
        """Somebody reads what there is at a mark: all pushes before it, and none behind it."""
        if self.is_counting:
            workers = len(self.names)
            counts = parameters[: self.steps_max * workers].reshape(-1, workers).sum(0)
            assert (counts == mark * self.mark_every).all(), f"at mark {mark} there are {counts} pushes of the workers"
        self.marked = max(self.marked, mark)

    def answers(self, host: ServerHost, worker: int, answer: Answer) -> None:
        """A primary is about to say that pushes up to this number are decided."""
        for before in range(min(WINDOW, answer.sequence)):
            if fate_of(answer.lately, before):
                self.ledger.refused.add(self.cell(worker, answer.sequence - 1 - before))
        self.ledger.acknowledges(self.world.now, host.member, host.shard.generation, worker + 1, answer.sequence, 0)
        self.ledger.certain(host.shard.entries.get((answer.worker, answer.sequence), 0))

    # --- what the world calls

    def _crash(self, world: World, host: Host) -> Any:
        """Workers do not come and go here."""
        return (lambda: None) if host.node in self.workers else super()._crash(world, host)

    def _on_event(self, world: World, host: Host, event: Any) -> None:
        match event:
            case FetchConfiguration():
                self._tell_manager(host, Wanted())
            case Propose(configuration, _):
                self._tell_manager(host, Proposal(configuration))

    def _is_quiet(self) -> bool:
        workers: list[Any] = [self.world.hosts[node].core for node in self.workers]
        if any(one.model.unacknowledged or one._ends is not None for one in workers):
            return False
        configuration = self.ledger.configuration
        assert configuration is not None
        primary = self.ledger.primary()
        if primary is None or not primary.is_serving or primary.committed < primary.log.last:
            return False
        replicas = [self.ledger.living.get(member) for member in configuration.in_sync]
        return len({None if one is None else one.committed for one in replicas} | {primary.committed}) == 1


def play(seed: int, replica: type[Replica] = Replica, *, command: str = "") -> tuple[Training, Result]:
    """What `./run sim --training` does with a seed."""
    training, random = draw(seed, replica, command or f"./run sim --training --seed {seed}"), Random(-seed)
    chosen = {random.choice(("partition", "one-way partition", "cut")), "crash"}
    faults = tuple(sorted({*chosen, *random.sample(STRIKES, random.randint(0, 3))}))
    return training, training.run(faults, random.uniform(2.0, 4.0))


def draw(seed: int, replica: type[Replica], command: str) -> Training:
    """The kind, R, workers, how slow they are, how nervous the rest is."""
    random = Random(seed)
    how = random.choice(("async", "async", "ssp:0", "ssp:2", "sync"))
    copies = random.choice((2, 2, 3, 4))
    workers = random.randint(1, 4)
    training = Training(
        seed,
        copies,
        workers,
        replica,
        how=how,
        slow={0: random.choice((1.0, 4.0))},
        mark_every=random.choice((0, 10, 25)),
        command=command,
    )
    training.leaves_within_s = random.choice((0.001, 0.001, 0.01))
    training.whims = random.choice((0.02, 0.05, 0.05, 0.2))
    training.lost_after_s, training.sees_deaths = random.choice(((0.5, False), (2.0, True), (2.0, True)))
    training.fault_every_s, training.fault_lasts_s = random.choice(((0.3, 0.4), (0.6, 0.6), (1.0, 1.5)))
    return training
