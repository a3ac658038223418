"""The table of data ranges as a replicated shard under faults: replicas agree, and every batch of every epoch is trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from typing import Any

import msgspec
import pytest

from p2pnn.replication import leases
from p2pnn.replication.leases import Done, LeaseTable, Lost, Take
from p2pnn.replication.outcomes import Acknowledge, Apply, Finished, LoadState, Received, TakeState
from p2pnn.types import NodeId
from tests.simulator.host import Host
from tests.simulator.shards import LIMITS, SHARD, Decided, Parcel, Pusher, ReplicaHost, Shards
from tests.simulator.world import World

EPOCHS, BATCHES = 4, 60
COORDINATOR = NodeId("c" * 32)


class TableHost(ReplicaHost):
    """A replica of the table."""

    def __init__(self, shards: Shards, host: Host, now: float) -> None:
        super().__init__(shards, host, now)
        self.table = LeaseTable(EPOCHS, BATCHES)


class Client(ABC):
    """Somebody who changes the table, one update at a time."""

    def __init__(self, shards: Leased, host: Host, now: float) -> None:
        self.shards = shards
        self.worker = shards.incarnation(host)
        self.pusher = Pusher(SHARD, self.worker, now, LIMITS, shards.timing)
        self.due = now

    @abstractmethod
    def next_update(self) -> leases.Update | None:
        """What it wants now, if anything."""

    def receive(self, source: NodeId, message: Any, now: float) -> None:
        match message:
            case Parcel(inner, _):
                self.pusher.receive(source, inner, now)
            case Decided(configuration):
                self.pusher.configured(configuration, now)

    def get_timer(self) -> float:
        timer = self.pusher.get_timer()
        return self.due if timer is None else min(timer, self.due)

    def handle_timer(self, now: float) -> None:
        timer = self.pusher.get_timer()
        if timer is not None and now >= timer:
            self.pusher.handle_timer(now)
        if now >= self.due:
            self.due = now + 0.05
            update = self.next_update() if timer is None else None
            if update is not None:
                self.pusher.push([leases.encode(update)], now)

    def messages_to_send(self, now: float) -> list[tuple[NodeId, Any]]:
        return [(target, Parcel(message, body)) for target, message, body in self.pusher.messages_to_send(now)]

    def next_event(self) -> Any:
        return self.pusher.next_event()


class Trainer(Client):
    """A worker: it takes a range, trains it, says so."""

    def __init__(self, shards: Leased, host: Host, now: float) -> None:
        super().__init__(shards, host, now)
        self.held: tuple[leases.Lease, ...] = ()
        shards.started.append(self.worker)

    def next_update(self) -> leases.Update:
        if not self.held:
            return Take(self.worker, 7)
        lease = self.held[0]
        self.shards.trained.update((lease.epoch, at) for at in range(lease.start, lease.stop))
        return Done(self.worker, lease)


class Coordinator(Client):
    """It gives up the ranges of workers that are gone, and now and then of one that lives."""

    def next_update(self) -> leases.Update | None:
        living = [self.shards.world.hosts[node].core for node in self.shards.workers]
        alive = {core.worker for core in living if isinstance(core, Trainer)}
        gone = [worker for worker in self.shards.started if worker not in alive and worker not in self.shards.given_up]
        if not gone and len(alive - self.shards.given_up) > 1 and self.shards.world.random.random() < 0.01:
            gone = [worker for worker in alive if worker not in self.shards.given_up][:1]
        if not gone:
            return None
        self.shards.given_up.add(gone[0])
        return Lost(gone[0])


class Leased(Shards):
    """The table in place of parameters; trained: how often each batch was, in truth."""

    def __init__(self, seed: int) -> None:
        self.started: list[int] = []
        self.given_up: set[int] = set()
        self.trained: Counter[tuple[int, int]] = Counter()
        self.states: dict[int, bytes] = {}
        super().__init__(seed, replica_host=TableHost, worker_host=Trainer)
        self._roles[COORDINATOR] = Coordinator
        self._add(COORDINATOR)
        self.workers.append(COORDINATOR)

    def _on_event(self, world: World, host: Host, event: Any) -> None:
        core: Any = host.core
        now = host.time(world.now)
        match event:
            case Received(worker, sequence, _):
                core.replica.accept(worker, sequence, now)
            case Apply(number, _, _, pieces):
                core.table.apply(leases.decode(pieces))
                state = core.table.state()
                assert self.states.setdefault(number, state) == state, f"replicas differ after entry {number}"
            case Acknowledge(node, message, _):
                answer = core.table.answer(message.worker)
                core.send(node, Parcel(msgspec.structs.replace(message, answer=answer), b""))
            case TakeState(number):
                core.replica.state_taken(number, [core.table.state()], now)
            case LoadState(number, pieces):
                core.table.load(pieces)
                assert core.table.state() == self.states[number]
            case Finished(_, answer, _) if isinstance(core, Trainer):
                core.held = leases.read_answer(answer)
            case _ if not isinstance(event, Finished):
                super()._on_event(world, host, event)

    def table(self) -> LeaseTable | None:
        """The primary's."""
        assert self.ledger.configuration is not None
        core = self.world.hosts[self.ledger.configuration.primary.id].core
        is_it = isinstance(core, TableHost) and core.member == self.ledger.configuration.primary
        return core.table if is_it and isinstance(core, TableHost) else None

    def is_over(self) -> bool:
        table = self.table()
        return table is not None and table.is_over


@pytest.mark.parametrize("seed", range(1, 9))
def test_every_batch_is_trained_whoever_dies(seed: int) -> None:
    leased = Leased(seed)
    world, random = leased.world, leased.world.random
    for at in range(1, 7):
        node = random.choice([*leased.workers[:-1], leased.replicas[0] if at == 3 else leased.workers[0]])
        world.at(at * 0.4, world.crash, node)
        world.at(at * 0.4 + random.uniform(0.1, 0.6), world.boot, node)
    world.at(1.0, leased._slow_host, world, world.hosts[leased.replicas[1]])
    assert world.run_until(leased.is_over, 60.0)
    table = leased.table()
    assert table is not None
    for coverage in table.coverage():
        assert coverage.once + coverage.more == BATCHES
        assert coverage.never == 0
        for batch in range(BATCHES):
            assert leased.trained[coverage.epoch, batch] >= 1
    twice = sum(count > 1 for count in leased.trained.values())
    assert sum(coverage.more for coverage in table.coverage()) <= twice
    assert len(table.coverage()) == EPOCHS
