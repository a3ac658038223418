"""A replicated shard in a simulated world: workers push integer one-hot updates, replicas die, a manager decides who is in sync.

The configuration manager is a host of its own: linearizable, with delays, and durable over crashes; it sees who lives by what it
hears, so partitions and freezes make it wrong. (`shard_charter` puts the real charter in its place.) `Shards.run` is one seed:
a storm, in which only safety is asked for, then the calm, in which writes must resume within 3 s (of 99 in 100 storms within 2)
where a process of the in-sync set lives, and at last every acknowledged update reads exactly 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from p2pnn.replication.configuration import (
    Configuration,
    Member,
    admitted,
    demoted,
    led_by,
    may_follow,
    removed,
    succession,
)
from p2pnn.replication.holding import Shard
from p2pnn.replication.limits import Limits, Timing
from p2pnn.replication.outcomes import (
    Acknowledge,
    Apply,
    FetchConfiguration,
    Finished,
    LoadState,
    Propose,
    Received,
    TakeState,
)
from p2pnn.replication.pusher import Pusher
from p2pnn.replication.replica import Replica
from p2pnn.types import NodeId
from tests.simulator.clock import Clock
from tests.simulator.disk import Disk
from tests.simulator.faults import FAULTS, Fault, Storm, Undo
from tests.simulator.host import Host
from tests.simulator.network import Conditions
from tests.simulator.shard_ledger import Ledger
from tests.simulator.world import Violation, World

MANAGED_WITHIN_S = 10.0
RESUMES_WITHIN_S = 3.0
"""Two seconds in 99 of 100 storms (what is printed as p99); a host whose links are slow makes the rest."""
SETTLES_WITHIN_S = 10.0
SHARD = Shard("digits-1", 0)
MANAGER = NodeId("f" * 32)
LOST_AFTER_S = 0.5
LIMITS = Limits(
    entries_max=8,
    retained_entries=4,
    retained_bytes=4096,
    catching_up_entries=48,
    catching_up_bytes=24 * 1024,
    staged_max=8,
    staged_idle_s=0.5,
    window=3,
    piece_bytes=256,
    state_window=16,
)
"""So small that all of them matter."""


class Parcel(NamedTuple):
    """A message of the wire with its body, on the simulated wire."""

    message: Any
    body: Any

    def __repr__(self) -> str:
        return repr(self.message) + (f" + {len(self.body)} bytes" if self.body else "")


class Alive(NamedTuple):
    member: Member


class Proposal(NamedTuple):
    configuration: Configuration


class Wanted(NamedTuple):
    """The newest configuration."""


class Decided(NamedTuple):
    configuration: Configuration


class Standstill(Violation):
    """Nothing was lost, but nothing moves."""


@dataclass
class Result:
    """One seed. violation: empty, or the report. void: faults that were planned and never fired. is_lost: no process of the
    in-sync set lived when the calm began."""

    seed: int
    violation: str = ""
    fired: Counter[str] = field(default_factory=Counter)
    void: tuple[str, ...] = ()
    steps: int = 0
    acknowledged: int = 0
    configurations: int = 0
    transfers: int = 0
    is_lost: bool = False
    resumed_after_s: float = 0.0


class ReplicaHost:
    """A replica with its state, as a core: what `node` would be to it. The state is how often 1 was added to each cell."""

    def __init__(self, shards: Shards, host: Host, now: float) -> None:
        self.member = Member(host.node, shards.incarnation(host))
        self.replica = shards.replica(SHARD, self.member, now, LIMITS, shards.timing)
        self.counts: dict[int, int] = {}
        self._managers = shards.managers
        self._alive_due = now
        self._outbox: list[tuple[NodeId, Any]] = []

    def send(self, target: NodeId, message: Any) -> None:
        self._outbox.append((target, message))

    def receive(self, source: NodeId, message: Any, now: float) -> None:
        match message:
            case Parcel(inner, body):
                self.replica.receive(source, inner, now, body)
            case Decided(configuration):
                self.replica.configured(configuration, now)

    def get_timer(self) -> float:
        timer = self.replica.get_timer()
        return self._alive_due if timer is None else min(timer, self._alive_due)

    def handle_timer(self, now: float) -> None:
        if now >= self._alive_due:
            self._alive_due = now + 0.1
            for manager in self._managers:
                self.send(manager, Alive(self.member))
        timer = self.replica.get_timer()
        if timer is not None and now >= timer:
            self.replica.handle_timer(now)

    def messages_to_send(self, now: float) -> list[tuple[NodeId, Any]]:
        out, self._outbox = self._outbox, []
        out += [(target, Parcel(message, body)) for target, message, body in self.replica.messages_to_send(now)]
        return out

    def next_event(self) -> Any:
        return self.replica.next_event()


class WorkerHost:
    """A worker that pushes one update after the other, a new incarnation with each start."""

    def __init__(self, shards: Shards, host: Host, now: float) -> None:
        self.worker = shards.incarnation(host)
        self.pusher = Pusher(SHARD, self.worker, now, LIMITS, shards.timing)
        self._shards = shards
        self._push_due = now

    def receive(self, source: NodeId, message: Any, now: float) -> None:
        match message:
            case Parcel(inner, _):
                self.pusher.receive(source, inner, now)
            case Decided(configuration):
                self.pusher.configured(configuration, now)

    def get_timer(self) -> float | None:
        timer = self.pusher.get_timer()
        due = self._push_due if self._shards.pushing and self.pusher.may_push else None
        return due if timer is None else timer if due is None else min(timer, due)

    def handle_timer(self, now: float) -> None:
        timer = self.pusher.get_timer()
        if timer is not None and now >= timer:
            self.pusher.handle_timer(now)
        if self._shards.pushing and self.pusher.may_push and now >= self._push_due:
            self._push_due = now + self._shards.world.random.expovariate(1 / self._shards.push_every_s)
            cell, update = self._shards.update()
            self._shards.ledger.pushes(self.worker, self.pusher.push([update], now), cell)

    def messages_to_send(self, now: float) -> list[tuple[NodeId, Any]]:
        return [(target, Parcel(message, body)) for target, message, body in self.pusher.messages_to_send(now)]

    def next_event(self) -> Any:
        return self.pusher.next_event()


class ManagerHost:
    """The configuration manager: one committed configuration, replaced only by one that was made from it."""

    may_follow = staticmethod(may_follow)

    def __init__(self, shards: Shards, host: Host, now: float) -> None:
        self._shards = shards
        self._notes = host.notes  # durable
        self._notes.setdefault("configuration", shards.first)
        self._seen: dict[NodeId, tuple[Member, float]] = {}
        self._since = now
        self._tick_due = self._tell_due = now
        self._pending: list[tuple[float, Configuration]] = []
        self._outbox: list[tuple[NodeId, Any]] = []

    @property
    def configuration(self) -> Configuration:
        configuration: Configuration = self._notes["configuration"]
        return configuration

    def receive(self, source: NodeId, message: Any, now: float) -> None:
        match message:
            case Alive(member):
                self._seen[source] = (member, now)
            case Wanted():
                self._outbox.append((source, Decided(self.configuration)))
            case Proposal(configuration):
                self._consider(configuration, now)

    def get_timer(self) -> float:
        return min([self._tick_due, *(due for due, _ in self._pending)])

    def handle_timer(self, now: float) -> None:
        due = [configuration for at, configuration in self._pending if at <= now]
        self._pending = [(at, configuration) for at, configuration in self._pending if at > now]
        for configuration in due:
            if self.may_follow(self.configuration, configuration):
                self._decide(configuration)
        if now >= self._tick_due:
            self._tick_due = now + 0.05
            self._look(now)

    def messages_to_send(self, now: float) -> list[tuple[NodeId, Any]]:
        out, self._outbox = self._outbox, []
        return out

    def next_event(self) -> Any:
        return None

    # --- inside

    def _consider(self, configuration: Configuration, now: float) -> None:
        if len(self._pending) < 16:
            self._pending.append((now + self._shards.world.random.expovariate(1 / 0.02), configuration))

    def _decide(self, configuration: Configuration) -> None:
        generation = self.configuration.generation + self._shards.world.random.randint(1, 3)
        decided = msgspec.structs.replace(configuration, generation=generation)
        self._notes["configuration"] = decided
        self._shards.ledger.commits(decided)
        self._tell_all()

    def _tell_all(self) -> None:
        for node in self._shards.replicas + self._shards.workers:
            self._outbox.append((node, Decided(self.configuration)))

    def _look(self, now: float) -> None:
        """Whom has it not heard; who could help; and, now and then, a change for no reason."""
        before, shards = self.configuration, self._shards
        if now >= self._tell_due:  # a lost message is repeated, as the charter's leader does
            self._tell_due = now + 0.5
            self._tell_all()
        proposal = self.failover(before, {member for member in before.members if self._is_lost(member, now)})
        if proposal is None:
            proposal = self._with_a_learner(before, now)
        if proposal is None and shards.whims and shards.world.random.random() < shards.whims:
            proposal = shards.whim(before)
        if proposal is not None and not self._pending:
            self._consider(proposal, now)

    @staticmethod
    def failover(before: Configuration, lost: set[Member]) -> Configuration | None:
        return succession(before, lost)

    def _is_lost(self, member: Member, now: float) -> bool:
        seen, at = self._seen.get(member.id, (member, self._since))
        return seen != member or now - at > LOST_AFTER_S

    def _with_a_learner(self, before: Configuration, now: float) -> Configuration | None:
        if len(before.members) >= before.copies + self._shards.spare_learners:
            return None
        nodes = {member.id for member in before.members}
        spare = [seen for node, (seen, at) in self._seen.items() if node not in nodes and now - at < LOST_AFTER_S]
        return admitted(before, self._shards.world.random.choice(spare)) if spare else None


class Shards:
    """copies: R. replica: the class under test, or an ablation."""

    managers: tuple[NodeId, ...] = (MANAGER,)

    def __init__(
        self,
        seed: int,
        copies: int = 2,
        replicas: int = 4,
        workers: int = 2,
        replica: type[Replica] = Replica,
        manager: type[ManagerHost] = ManagerHost,
        *,
        command: str = "",
        through: Callable[[Any], Any] | None = None,
        timing: Timing | None = None,
        conditions: Conditions | None = None,
        names_processes: bool = True,
        replica_host: type[ReplicaHost] = ReplicaHost,
        worker_host: type[Any] = WorkerHost,
    ) -> None:
        self.ledger = Ledger()
        self.replica = replica
        self.timing = timing or Timing()
        self.pushing = True
        self.push_every_s = 0.03
        self.refusals = 0.02
        self.whims = 0.0
        self.spare_learners = 0
        self.fault_every_s, self.fault_lasts_s = 0.6, 0.6
        self.names_processes = names_processes
        self._manager = manager
        self._cell = 0
        self._incarnations = 0
        self._roles: dict[NodeId, type[Any]] = {}
        self.world = World(
            seed,
            self._start,
            self._on_event,
            checks=[self._check],
            command=command,
            through=through,
            conditions=conditions,
        )
        self.replicas = [NodeId(f"a{number:x}" + "0" * 30) for number in range(1, replicas + 1)]
        self.workers = [NodeId(f"b{number:x}" + "0" * 30) for number in range(1, workers + 1)]
        for node in self.replicas + self.workers:
            self._roles[node] = replica_host if node in self.replicas else worker_host
            self._add(node)
        founders = [self.world.hosts[node].core.member for node in self.replicas[:copies]]  # type: ignore[union-attr]
        self.first = Configuration(1, copies, tuple(founders))
        self.ledger.commits(self.first)
        for node in self.managers:
            self._add(node)

    # --- what hosts ask for

    def incarnation(self, host: Host) -> int:
        """Of the process that starts now at a host: a number of its own."""
        self._incarnations += 1
        if not self.names_processes and host.node in self.replicas:
            return 1000 + int(host.node[:2], 16)
        return self._incarnations

    def update(self) -> tuple[int, bytes]:
        """A one-hot update: its cell, and its bytes."""
        self._cell += 1
        return self._cell, self._cell.to_bytes(8) + bytes(self.world.random.randrange(600))

    def whim(self, before: Configuration) -> Configuration:
        """A change that is allowed and not needed."""
        random = self.world.random
        backups = before.in_sync[1:]
        changes = [before]
        if backups:
            chosen = random.choice(backups)
            changes += [led_by(before, chosen), demoted(before, chosen), removed(before, chosen)]
        if before.learners:
            changes.append(removed(before, random.choice(before.learners)))
        return random.choice(changes)

    # --- one seed

    def run(self, faults: tuple[str, ...], storm_s: float) -> Result:
        """The storm, then the calm. A violation is in the result, not raised."""
        world = self.world
        result = Result(world.seed, fired=world.fired)
        try:
            world.run_until(lambda: self.ledger.acknowledged > 3, 2.0)
            storm = Storm(
                world,
                faults,
                world.now + storm_s,
                every_s=self.fault_every_s,
                lasts_s=self.fault_lasts_s,
                aim=self._aim,
                patience_s=storm_s / 2,
                table=self.faults(),
            )
            world.run_until(lambda: storm.over or self.is_lost(), 2 * storm_s)
            if not self.is_lost():
                self._calm(result)
        except Violation as violation:
            result.violation = "" if isinstance(violation, Standstill) and self.is_lost() else str(violation)
        result.is_lost = self.is_lost()
        result.void = tuple(fault for fault in faults if not world.fired[fault])
        result.steps, result.acknowledged = world.steps, self.ledger.acknowledged
        result.configurations, result.transfers = self.ledger.configurations, self.ledger.transfers
        return result

    def is_lost(self) -> bool:
        """Whether no process of the committed in-sync set lives: only a checkpoint helps then. It may come out late, where the
        commit that says so does."""
        assert self.ledger.configuration is not None
        for member in self.ledger.configuration.in_sync:
            core: Any = self.world.hosts[member.id].core
            if core is not None and core.member == member:
                return False
        return True

    def faults(self) -> Mapping[str, Fault]:
        """Those of the world, but a process mostly dies only where the in-sync set survives it; one host's links may be slow."""
        return {**FAULTS, "crash": self._crash, "slow host": self._slow_host}

    def _calm(self, result: Result) -> None:
        world, ledger = self.world, self.ledger
        self.whims = 0.0
        if not world.run_until(self.is_managed, MANAGED_WITHIN_S):
            raise self._standstill(f"nobody decides within {MANAGED_WITHIN_S} s of the last fault")
        start = world.now
        if not world.run_until(lambda: ledger.acknowledged_at > start, RESUMES_WITHIN_S):
            raise self._standstill(f"no write within {RESUMES_WITHIN_S} s of the last fault")
        result.resumed_after_s = world.now - start
        if not world.run_until(self.has_copies, SETTLES_WITHIN_S):
            raise self._standstill(f"no {self.first.copies} in-sync replicas within {SETTLES_WITHIN_S} s")
        self.pushing = False
        if not world.run_until(self._is_quiet, SETTLES_WITHIN_S):
            raise self._standstill(f"updates are still under way after {SETTLES_WITHIN_S} s")
        configuration = ledger.configuration
        assert configuration is not None
        for member in configuration.in_sync:
            core: Any = world.hosts[member.id].core
            try:
                ledger.read(core.counts)
            except AssertionError as error:
                raise world.violation(str(error)) from error

    def _standstill(self, what: str) -> Standstill:
        return Standstill(str(self.world.violation(what)))

    def is_managed(self) -> bool:
        """Whether the configuration manager can decide; this one always can."""
        return True

    def has_copies(self) -> bool:
        configuration = self.ledger.configuration
        assert configuration is not None
        return len(configuration.in_sync) >= configuration.copies

    def _is_quiet(self) -> bool:
        """Nothing is under way, and all in-sync replicas have applied the same."""
        configuration = self.ledger.configuration
        assert configuration is not None
        for node in self.workers:
            worker: Any = self.world.hosts[node].core
            if worker is not None and worker.pusher.get_timer() is not None:
                return False
        primary = self.ledger.primary()
        if primary is None or not primary.is_serving or primary.committed < primary.log.last:
            return False
        replicas = [self.ledger.living.get(member) for member in configuration.in_sync]
        applied = {None if one is None else one.committed for one in replicas}
        return len(applied) == 1 and None not in applied

    def _aim(self) -> NodeId | None:
        assert self.ledger.configuration is not None
        return self.world.random.choice(
            (self.ledger.configuration.primary.id, self.ledger.configuration.in_sync[-1].id)
        )

    def _crash(self, world: World, host: Host) -> Undo:
        configuration = self.ledger.configuration
        assert configuration is not None
        others = [member for member in configuration.in_sync if member in self.ledger.living and member.id != host.node]
        if not others and host.node in self.replicas and world.random.random() < 0.97:
            return lambda: None
        return FAULTS["crash"](world, host)

    def _slow_host(self, world: World, host: Host) -> Undo:
        """What one replica hears or says takes long; it lives."""
        slow = Conditions(world.random.uniform(0.1, 1.5), 0.05)
        pairs = [pair for node in self.replicas for pair in ((node, host.node), (host.node, node))]
        world.network.links.update(dict.fromkeys(pairs, slow))
        world.fired["slow host"] += 1

        def undo() -> None:
            for pair in pairs:
                world.network.links.pop(pair, None)

        return undo

    # --- what the world calls

    def _add(self, node: NodeId) -> None:
        random = self.world.random
        clock = Clock(random.uniform(0, 1000), random.uniform(0.99, 1.01))
        self.world.add(node, clock=clock, disk=Disk())

    def _start(self, world: World, host: Host) -> Any:
        now = host.time(world.now)
        if host.node in self.managers:
            return self._manager(self, host, now)
        core = self._roles[host.node](self, host, now)
        if host.node in self.replicas:
            for member in [member for member in self.ledger.living if member.node == host.node]:
                del self.ledger.living[member]
            self.ledger.living[core.member] = core.replica
        return core

    def _check(self, world: World, host: Host) -> None:
        core: Any = host.core
        if core is not None and host.node in self.replicas:
            self.ledger.check(core.member, core.replica)

    def _on_event(self, world: World, host: Host, event: Any) -> None:
        core: Any = host.core
        now = host.time(world.now)
        match event:
            case FetchConfiguration():
                self._tell_manager(host, Wanted())
            case Propose(configuration, _):
                self._tell_manager(host, Proposal(configuration))
            case Received(worker, sequence, pieces):
                self._judge(core.replica, worker, sequence, b"".join(pieces), now)
            case Apply(number, worker, sequence, pieces):
                cells = [int.from_bytes(b"".join(pieces)[:8])] if pieces else []
                self.ledger.applies(number, worker, sequence, cells)
                for cell in cells:
                    core.counts[cell] = core.counts.get(cell, 0) + 1
                    assert core.counts[cell] == 1, f"{host}: an update of {worker} is applied twice"
            case Acknowledge(node, message, number):
                self.ledger.acknowledges(
                    world.now, core.member, message.generation, message.worker, message.sequence, number
                )
                core.send(node, Parcel(message, b""))
            case TakeState(number):
                core.replica.state_taken(number, [msgspec.msgpack.encode(core.counts)], now)
            case LoadState(_, pieces):
                self.ledger.transfers += 1
                core.counts = msgspec.msgpack.decode(b"".join(pieces), type=dict[int, int])
            case Finished():
                pass

    def _tell_manager(self, host: Host, message: Any) -> None:
        for manager in self.managers:
            self.world._send(host, manager, message)

    def _judge(self, replica: Replica, worker: int, sequence: int, update: bytes, now: float) -> None:
        """Some updates are refused, each always (as one with a value that is not finite would be)."""
        cell = int.from_bytes(update[:8])
        if self.refusals and cell % round(1 / self.refusals) == 0:
            self.ledger.refused.add(cell)
            replica.refuse(worker, sequence, "a value is not finite", now)
        else:
            replica.accept(worker, sequence, now)
