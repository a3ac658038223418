"""Who decides who is in sync: a job's coordinator, with the real `job.failover` over the real `job.assignment`.

The charter is one durable assignment here (`shard_charter` has the real one); a commit takes a while, and a coordinator may die
before it has told anybody. It knows who lives by what it hears, so partitions and freezes make it wrong, and whoever it takes for
lost never comes back into the start. That a process has died it sees at once where the seed says so, as a link that breaks shows
it. A loss with which the start would be over is passed over: what would come then is another start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from p2pnn.job.actions import Reassign, TellAssigned
from p2pnn.job.assignment import Assignment, committed, encode_configuration
from p2pnn.job.failover import Failover
from p2pnn.job.ledger import Ledger
from p2pnn.replication.configuration import Configuration, Member
from p2pnn.types import NodeId
from tests.job.test_supervisor import make_record
from tests.simulator.host import Host

if TYPE_CHECKING:
    from tests.simulator.shards import Shards


class Alive(NamedTuple):
    member: Member


class Proposal(NamedTuple):
    configuration: Configuration


class Wanted(NamedTuple):
    """What holds now."""


class Decided(NamedTuple):
    """What `wire.Assigned` tells."""

    assignment: Assignment

    @property
    def configuration(self) -> Configuration:
        return self.assignment.shards[0]


class ManagerHost:
    """The coordinator, as a core. failover: None while it is none."""

    failover_of: type[Failover] = Failover

    def __init__(self, shards: Shards, host: Host, now: float) -> None:
        self._shards = shards
        self._notes = host.notes  # durable
        self._seen: dict[NodeId, tuple[Member, float]] = {}
        self._since = now
        self._tick_due = self._tell_due = now
        self._pending: list[tuple[float, Reassign]] = []
        self._outbox: list[tuple[NodeId, Any]] = []
        self.failover: Failover | None = None
        self._ledger = self._new_ledger()
        self._begin(now)

    def receive(self, source: NodeId, message: Any, now: float) -> None:
        match message:
            case Alive(member):
                self._seen[source] = (member, now)
            case Wanted() if self.failover is not None:
                self.failover.wish(source, 0, b"")
            case Proposal(configuration) if self.failover is not None:
                self.failover.wish(source, 0, encode_configuration(configuration))
        self._carry_out(now)

    def get_timer(self) -> float:
        return min([self._tick_due, *(due for due, _ in self._pending)])

    def handle_timer(self, now: float) -> None:
        due = [action for at, action in self._pending if at <= now]
        self._pending = [(at, action) for at, action in self._pending if at > now]
        for action in due:
            self._commit(action, now)
        if now >= self._tick_due:
            self._tick_due = now + 0.05
            self._look(now)
        self._carry_out(now)

    def messages_to_send(self, now: float) -> list[tuple[NodeId, Any]]:
        out, self._outbox = self._outbox, []
        return out

    def next_event(self) -> Any:
        return None

    # --- inside

    def _new_ledger(self) -> Ledger:
        shards = self._shards
        return Ledger(make_record(shards.spec, state="running", plan=shards.plan), {})

    def _begin(self, now: float) -> None:
        """Take the start up, as it is committed."""
        self._take_over(self._notes.setdefault("assignment", self._shards.first), now)

    def _take_over(self, held: Assignment, now: float) -> None:
        self._ledger = self._new_ledger()
        spec, nobody = self._shards.spec, lambda now: None
        self.failover = self.failover_of(self._ledger, spec, lambda index, now: None, self._over, nobody)
        self.failover.take_over(self._shards.plan, held)
        self._carry_out(now)

    @staticmethod
    def _over(text: str, now: float) -> None:
        raise AssertionError(f"the start is over, though it was said to go on: {text}")

    def _carry_out(self, now: float) -> None:
        while (action := self._ledger.next_action()) is not None:
            match action:
                case Reassign():
                    self._pending.append((now + self._shards.world.random.expovariate(1 / 0.02), action))
                case TellAssigned(nodes, held):
                    self._outbox += [(node, Decided(held)) for node in nodes]

    def _commit(self, action: Reassign, now: float) -> None:
        assert self.failover is not None
        generation = self._notes["assignment"].version[0] + self._shards.world.random.randint(1, 3)
        held = self._notes["assignment"] = committed(action.before, action.after, generation)
        self._shards.commits(held)
        self.failover.reassigned(generation, now)

    def _look(self, now: float) -> None:
        """Whom has it not heard; and, now and then, a change for no reason."""
        failover, shards = self.failover, self._shards
        if failover is None:
            return
        if now >= self._tell_due:  # a link loses nothing unless it breaks, and then the coordinator says it again
            self._tell_due = now + 0.5
            self._outbox += [(node, Decided(failover.assignment)) for node in failover.nodes]
        for node in failover.nodes:
            if self._is_lost(node, now):
                failover.lose(node, "it is silent")
        if shards.whims and shards.world.random.random() < shards.whims:
            self._change(failover)

    def _change(self, failover: Failover) -> None:
        held = failover.assignment.shards[0]
        if self._shards.world.random.random() < 0.05:
            failover.lose(self._shards.world.random.choice(held.members).id, "it is thought to be lost")
        else:
            failover.wish(held.primary.id, 0, encode_configuration(self._shards.whim(held)))

    def _is_lost(self, node: NodeId, now: float) -> bool:
        shards = self._shards
        if node not in shards.replicas:
            return node in shards.missed
        member = shards.founders[node]
        seen, at = self._seen.get(node, (member, self._since))
        core: Any = shards.world.hosts[node].core
        is_dead = shards.sees_deaths and (core is None or core.member != member)
        return is_dead or seen != member or now - at > shards.lost_after_s
