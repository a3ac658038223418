"""Workers that train what a replicated shard leases to them, and die: every batch is trained, and the coverage is what happened.

The world of `training`, with epochs of few batches and a mark behind each. A worker that dies, or only seems to, never comes
back: a little later all processes of the shard are told that it is gone. What pushes held is known here, so what the table says
of how often each batch was trained can be compared with what the shard has decided. (`play` is one seed.)
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from random import Random
from typing import Any, cast

import numpy as np

from p2pnn.ps.leasing import Leasing
from p2pnn.ps.messages import Answer, Refusal
from p2pnn.ps.space import Flat
from p2pnn.replication.leases import Coverage, LeaseTable
from p2pnn.replication.replica import Replica
from p2pnn.types import NodeId
from tests.simulator.host import Host
from tests.simulator.shard_seeds import STRIKES
from tests.simulator.shards import Result, Shards
from tests.simulator.training import SIZE, STEP_S, Granted, ServerHost, Training, Wished, WorkerHost

EPOCHS = 200
RANGE_S = 0.25


class Trainer(WorkerHost):
    """A worker that trains what it is granted."""

    def __init__(self, training: Shards, host: Host, now: float) -> None:
        self.leasing = Leasing(0, retry_s=0.2)
        self.epoch = 0
        self._begun = 0
        self._wishes: list[Any] = []
        super().__init__(training, host, now)
        self.model.decided.on_refused = self.leasing.refused

    @property
    def _leased(self) -> Leased:
        return cast(Leased, self._training)

    def receive(self, source: NodeId, message: Any, now: float) -> None:
        before = self._configuration
        if isinstance(message, Granted):
            leased = message.leased
            self.leasing.leased(leased.number, leased.ranges, leased.trained_below, leased.again, leased.never)
        super().receive(source, message, now)
        if self._configuration is not before:
            self.leasing.say_again()
            self._go(now)

    def _go(self, now: float) -> None:
        training, model, leasing = self._leased, self.model, self.leasing
        idle = False
        if self._ends is None and self._follows(now):
            if model.step < leasing.granted:
                if model.begin_step(now):
                    leasing.begins(now)
                    self._begun = model.step + 1
                    self._used = model.parameters.copy()
                    training.batches[self.number, model.step + 1] = leasing.batch(model.step)
                    slow = training.slow.get(self.number, 1.0)
                    self._ends = now + STEP_S * (0.5 + training.world.random.random()) * slow
            elif model.version >= 0 and model.settle(now):
                idle = True
                model.rest()
        leasing.until = leasing.below if leasing.trained_below < leasing.below else -1
        steps, pushes = model.acknowledged
        wish = leasing.next_wish(now, self._begun, steps, pushes, idle=idle, able=model.version >= 0)
        if wish is not None:
            self._wishes.append(wish)

    def _follows(self, now: float) -> bool:
        """Go on with the script: train an epoch, draw a mark and read the values there, train the next."""
        training, model = self._leased, self.model
        end = (self.epoch + 1) * training.batches_per_epoch
        if self.leasing.trained_below < end:
            if self.epoch < training.epochs_allowed():
                self.leasing.grant(end)
            return True
        mark = self.epoch + 1
        if self._drawn < mark:
            if not model.settle(now):
                return False
            model.mark(mark, now, fetch=True)
            self._drawn = mark
        if not model.has_values:
            return False
        model.install()
        training.reads(mark, model.parameters)
        self.epoch += 1
        return self._follows(now)

    def get_timer(self) -> float | None:
        times = [at for at in (super().get_timer(), self.leasing.get_timer()) if at is not None]
        return min(times, default=None)

    def handle_timer(self, now: float) -> None:
        ends = self._ends
        super().handle_timer(now)
        if ends is not None and self._ends is not ends and now >= ends:
            self.leasing.ended(now)
            self._go(now)

    def messages_to_send(self, now: float) -> list[tuple[NodeId, Any]]:
        if self._configuration is None:
            return []
        wishes, self._wishes = self._wishes, []
        out = super().messages_to_send(now)
        return [*out, *((self._configuration.primary.id, Wished(self.name, wish)) for wish in wishes)]


class Leased(Training):
    """batches: (worker, sequence) → the batch that this push holds. deaths: workers that die or seem to, and when; zombies: those
    that only seem to."""

    worker_host = Trainer

    def __init__(self, seed: int, *arguments: Any, batches: int = 40, **more: Any) -> None:
        self.batches_per_epoch = batches
        self.batches: dict[tuple[int, int], int] = {}
        self.allowed = 0
        self.again = 0
        super().__init__(seed, *arguments, **more)

    def new_table(self) -> LeaseTable:
        return LeaseTable(self.batches_per_epoch, EPOCHS)

    def epochs_allowed(self) -> int:
        """Epochs that may be begun: as many as there are, until the end, which all workers reach together."""
        if self.pushing:
            trainers = [host for host in self._trainers() if host is not None]
            self.allowed = max((one.epoch + 1 for one in trainers), default=1)
        return min(self.allowed, EPOCHS)

    def uses(self, worker: int, step: int, parameters: Flat) -> None:
        """Its own pushes alone are known to be in there."""

    def answers(self, host: ServerHost, worker: int, answer: Answer) -> None:
        is_bound = not self.settings.staleness_max
        assert answer.refusal is not Refusal.TOO_STALE or not is_bound, (
            f"push {answer.sequence} of worker {worker} is behind the bound"
        )
        super().answers(host, worker, answer)

    def reads(self, mark: int, parameters: Flat) -> None:
        """All batches of the epochs before the mark, and none behind it."""
        trained = self.trained(parameters)
        end = mark * self.batches_per_epoch
        missing = [batch for batch in range(end) if not trained[batch]]
        assert not missing, f"at mark {mark} nobody has trained {missing}"
        assert max(trained, default=0) < end, f"at mark {mark} there is batch {max(trained)} already"
        self.marked = max(self.marked, mark)

    def trained(self, parameters: Flat) -> Counter[int]:
        """How often each batch is in there."""
        found: Counter[int] = Counter()
        for (worker, sequence), batch in self.batches.items():
            found[batch] += int(parameters[self.cell(worker, sequence - 1)])
        return +found

    def lose(self, worker: int, *, dies: bool) -> None:
        """A worker dies, or is cut off from those who would hear of it; they are told a little later."""
        if dies:
            self.world.crash(self.workers[worker])
        self.world.after(self.world.random.uniform(0.02, 0.8), self.missed.add, self.workers[worker])
        self.world.fired["lost worker"] += 1

    def _trainers(self) -> list[Trainer | None]:
        return [
            cast("Trainer | None", host.core)
            for node in self.workers
            if (host := self.world.hosts.get(node)) is not None
        ]

    def _living(self) -> list[Trainer]:
        return [one for one in self._trainers() if one is not None and one.number not in self.gone]

    def may_step(self, step: int) -> bool:
        return True

    def _is_quiet(self) -> bool:
        living = self._living()
        if any(one.epoch < self.allowed or one.model.unacknowledged or one._ends is not None for one in living):
            return False
        configuration, primary = self.ledger.configuration, self.ledger.primary()
        assert configuration is not None
        if primary is None or not primary.is_serving or primary.committed < primary.log.last:
            return False
        replicas = [self.ledger.living.get(member) for member in configuration.in_sync]
        if len({None if one is None else one.committed for one in replicas} | {primary.committed}) != 1:
            return False
        self._compare(configuration.in_sync[0].id)
        return True

    def _compare(self, node: NodeId) -> None:
        """What the table says, with what was decided."""
        core = self.world.hosts[node].core
        assert isinstance(core, ServerHost)
        state = core.shard.state
        table = state.leases
        assert table is not None
        late = {
            n: state.guard.refused[name, Refusal.UNKNOWN] for n, name in enumerate(self.names)
        }  # it was gone by then
        decided = {n: state.roster[name].sequence - late[n] for n, name in enumerate(self.names)}
        found = Counter(
            b
            for (n, sequence), b in self.batches.items()
            if sequence <= decided[n] and (self.names[n], sequence) not in self.in_vain
        )
        for epoch in range(self.allowed + 1):
            first = epoch * self.batches_per_epoch
            counts = Counter(min(2, found[b]) for b in range(first, first + self.batches_per_epoch))
            wanted, told = Coverage(epoch, counts[1], counts[2], counts[0]), table.coverage(epoch)
            if told != wanted:
                raise self.world.violation(f"the table says {told}, what happened is {wanted}")
            self.again += told.more


def play(seed: int, replica: type[Replica] = Replica, *, command: str = "") -> tuple[Leased, Result]:
    """What `./run sim --training` does with a seed of leases."""
    random = Random(seed)
    copies, workers = random.choice((2, 2, 3, 4)), random.randint(1, 4)
    leased = Leased(
        seed,
        copies,
        workers,
        replica,
        how=(how := random.choice(("async", "async", "ssp:0", "ssp:2"))),
        staleness_max=random.choice((0, 0, 1, 4)) if how == "async" else 0,
        slow={0: random.choice((1.0, 4.0))},
        batches=random.choice((7, 40)),
        command=command or f"./run sim --training --seed {seed}",
    )
    leased.leaves_within_s = random.choice((0.001, 0.01))
    leased.whims = random.choice((0.0, 0.05, 0.2))
    leased.lost_after_s, leased.sees_deaths = random.choice(((0.5, False), (2.0, True), (2.0, True)))
    leased.fault_every_s, leased.fault_lasts_s = random.choice(((0.3, 0.4), (0.6, 0.6), (1.0, 1.5)))
    for worker in random.sample(range(workers), random.randint(min(1, workers - 1), workers - 1)):
        leased.world.at(random.uniform(0.5, 3.5), partial(leased.lose, worker, dies=random.random() < 0.6))
    chosen = {random.choice(("partition", "one-way partition", "cut")), "crash"}
    faults = tuple(sorted({*chosen, *random.sample(STRIKES, random.randint(0, 2))}))
    return leased, leased.run(faults, random.uniform(2.0, 4.0))


assert SIZE // 4 > 4.0 / (STEP_S * 0.5), "a worker has a cell for each step that it may take"
assert np.float32(SIZE) == SIZE
