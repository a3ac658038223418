"""A replicated shard in a simulated world: workers push integer one-hot updates, replicas die, a manager decides who is in sync.

Who decides is a host of its own (`shard_manager`): a job's coordinator, with what the product does of a start that loses nodes
(`shard_charter` puts the real charter below it). So nobody comes into the start: a process that is lost stays so. `Shards.run` is
one seed: a storm, in which only safety is asked for, then the calm, in which writes must resume within 3 s (of 99 in 100 storms
within 2) where a process of the in-sync set lives, and at last every acknowledged update reads exactly 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from p2pnn.job.assignment import Assignment, initial
from p2pnn.job.plan import NodeShare, Plan, ShardHome
from p2pnn.job.plan import Replica as Place
from p2pnn.job.spec import DataParallel
from p2pnn.replication.configuration import Configuration, Member, demoted, removed
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
from tests.job.test_supervisor import make_spec
from tests.simulator.clock import Clock
from tests.simulator.disk import Disk
from tests.simulator.faults import FAULTS, Fault, Storm, Undo
from tests.simulator.host import Host
from tests.simulator.network import Conditions
from tests.simulator.shard_ledger import Ledger
from tests.simulator.shard_manager import Alive, Decided, ManagerHost, Proposal, Wanted
from tests.simulator.world import Violation, World

MANAGED_WITHIN_S = 10.0
RESUMES_WITHIN_S = 3.0
"""Two seconds in 99 of 100 storms (what is printed as p99); a host whose links are slow makes the rest."""
SETTLES_WITHIN_S = 10.0
SHARD = Shard("digits-1", 0)
MANAGER = NodeId("f" * 32)
START = 1
"""Of the start: its generation, and the incarnation of the processes that it began with."""
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
    promotions: int = 0
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
            case Decided():
                self.replica.configured(message.configuration, now)

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
            case Decided():
                self.pusher.configured(message.configuration, now)

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


def start_of(workers: Sequence[NodeId], holders: Sequence[NodeId]) -> Plan:
    """A plan: each worker on a node of its own, then those that hold the one shard, the primary first."""
    nodes = tuple(NodeShare(node, node[:2], "", 1, 1, 2, 0.1) for node in (*workers, *holders))
    replicas = tuple(Place((number,)) for number in range(len(workers)))
    home = ShardHome(tuple(range(len(workers), len(nodes))))
    return Plan(nodes, (), 1, 1.0, 1.0, replicas=replicas, shards=(home,))


class Shards:
    """copies: how many processes hold the shard when the start begins. replica: the class under test, or an ablation.

    assignment: the newest that is committed. missed: workers' nodes that the coordinator takes for lost. lost_after_s: of a
    holder's silence; sees_deaths: whether a process that died is seen at once.
    """

    managers: tuple[NodeId, ...] = (MANAGER,)

    def __init__(
        self,
        seed: int,
        copies: int = 3,
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
        how: str = "async",
    ) -> None:
        self.ledger = Ledger()
        self.replica = replica
        self.timing = timing or Timing()
        self.pushing = True
        self.push_every_s = 0.03
        self.refusals = 0.02
        self.whims = 0.0
        self.lost_after_s, self.sees_deaths = 0.5, False
        self.missed: set[NodeId] = set()
        self.fault_every_s, self.fault_lasts_s = 0.6, 0.6
        self.names_processes = names_processes
        self._manager = manager
        self._cell = 0
        self._incarnations = 0
        self.promotions = 0
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
        self.replicas = [NodeId(f"a{number:x}" + "0" * 30) for number in range(1, copies + 1)]
        self.workers = [NodeId(f"b{number:x}" + "0" * 30) for number in range(1, workers + 1)]
        self.spec = make_spec(data=DataParallel(consistency=how))
        self.plan = start_of(self.workers, self.replicas)
        self.first = self.assignment = initial(self.plan, START)
        self.founders = {member.id: member for member in self.first.shards[0].in_sync}
        for node in self.replicas + self.workers:
            self._roles[node] = replica_host if node in self.replicas else worker_host
            self._add(node)
        self.ledger.commits(self.first.shards[0])
        for node in self.managers:
            self._add(node)

    # --- what hosts ask for

    def incarnation(self, host: Host) -> int:
        """Of the process that starts now at a host: a number of its own; those that hold the shard first have the start's."""
        if host.node in self.replicas and (host.boot == 1 or not self.names_processes):
            return START
        self._incarnations += 1
        return START + self._incarnations

    def update(self) -> tuple[int, bytes]:
        """A one-hot update: its cell, and its bytes."""
        self._cell += 1
        return self._cell, self._cell.to_bytes(8) + bytes(self.world.random.randrange(600))

    def whim(self, before: Configuration) -> Configuration:
        """What a primary might wish, and has no reason to."""
        random = self.world.random
        backups = before.in_sync[1:]
        changes = [before]
        if backups:
            chosen = random.choice(backups)
            changes += [demoted(before, chosen), removed(before, chosen)]
        if before.learners:
            changes.append(removed(before, random.choice(before.learners)))
        return random.choice(changes)

    def commits(self, held: Assignment) -> None:
        """Somebody learns of a commit, maybe not as the first."""
        if held.version <= self.assignment.version:
            return
        before, after = self.assignment.shards[0], held.shards[0]
        self.assignment = held
        self.promotions += len(set(after.in_sync) - set(before.in_sync))
        if after != before:
            self.ledger.commits(after)

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
        result.promotions = self.promotions
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
        if not world.run_until(self.is_whole, SETTLES_WITHIN_S):
            raise self._standstill(f"not all who are left are in sync within {SETTLES_WITHIN_S} s")
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

    def is_whole(self) -> bool:
        """Whether all who are left are in sync, and live."""
        configuration = self.ledger.configuration
        assert configuration is not None
        return not configuration.learners and all(member in self.ledger.living for member in configuration.in_sync)

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
