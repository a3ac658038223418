"""The real charter below the coordinator of a simulated shard: three voters, of whom the leader is the coordinator.

Each host runs the charter's core as `cluster.Cluster` has it. The assignment is the charter's work; its generation is the version
of the commit that wrote it. A new leader takes the start up as it is committed. Everybody acts on what is committed only.
"""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec

from p2pnn.cluster.charter import FORMAT, Charter, CharterMember
from p2pnn.cluster.consensus import Consensus
from p2pnn.cluster.durable import Durable
from p2pnn.cluster.election import Role
from p2pnn.cluster.outcomes import Committed, Persist
from p2pnn.errors import ProposalRefused
from p2pnn.job.actions import Reassign
from p2pnn.job.assignment import Assignment, committed, decode, encode
from p2pnn.types import NodeId
from tests.simulator.host import Host
from tests.simulator.shard_manager import ManagerHost, Proposal, Wanted
from tests.simulator.shards import Shards
from tests.simulator.world import World

VOTERS = tuple(NodeId(f"f{number}" + "0" * 30) for number in range(1, 4))


class VoterHost(ManagerHost):
    """A voter of the charter. The leader is the coordinator: it takes the start up when its charter is committed."""

    def __init__(self, shards: Shards, host: Host, now: float) -> None:
        self.host = host
        durable = host.disk.content or Durable(charter=founded(shards.first))
        host.disk.content = durable
        self.consensus = Consensus(host.node, durable, now, Random(shards.world.random.random()))
        self._term = 0
        self._proposed: tuple[bytes, int] | None = None
        super().__init__(shards, host, now)

    def receive(self, source: NodeId, message: Any, now: float) -> None:
        if isinstance(message, Wanted | Proposal) or not isinstance(message, msgspec.Struct):
            super().receive(source, message, now)
        else:
            self.consensus.receive(source, message, now)

    def get_timer(self) -> float:
        timer, own = self.consensus.get_timer(), super().get_timer()
        return own if timer is None else min(timer, own)

    def handle_timer(self, now: float) -> None:
        timer = self.consensus.get_timer()
        if timer is not None and now >= timer:
            self.consensus.handle_timer(now)
        if now >= super().get_timer():
            super().handle_timer(now)

    def messages_to_send(self, now: float) -> list[tuple[NodeId, Any]]:
        return super().messages_to_send(now) + self.consensus.messages_to_send(now)

    def next_event(self) -> Any:
        return self.consensus.next_event()

    # --- as the coordinator

    @property
    def leads(self) -> bool:
        return self.failover is not None and self._is_leader()

    def _is_leader(self) -> bool:
        return self.consensus.role is Role.LEADER and (self.failover is None or self.consensus.term == self._term)

    def _begin(self, now: float) -> None:
        """Not before it is elected."""

    def _look(self, now: float) -> None:
        consensus = self.consensus
        if not self._is_leader():
            self.failover, self._proposed = None, None
            self._pending.clear()
        charter = consensus.charter
        if (
            self.failover is None
            and self._is_leader()
            and charter is not None
            and charter is consensus.snapshot().charter
        ):
            self._term = consensus.term
            self._seen.clear()  # what it heard as a voter may be long ago
            self._since = now
            self._take_over(decode(charter.work), now)
        super()._look(now)

    def _commit(self, action: Reassign, now: float) -> None:
        """Propose it to the charter. What is under way there already goes first."""
        charter = self.consensus.charter
        if not self.leads or charter is None:
            return
        now = self.host.time(self._shards.world.now)
        generation = charter.successor().version.generation
        data = encode(committed(action.before, action.after, generation))
        try:
            self.consensus.propose(now, work=data)
        except ProposalRefused:
            self._pending.append((now + 0.02, action))
            return
        self._proposed = data, generation

    def committed(self, charter: Charter, now: float) -> None:
        """This voter learns of a commit."""
        self._shards.commits(decode(charter.work))
        if self.leads and self._proposed is not None and self._proposed[0] == charter.work:
            generation, self._proposed = self._proposed[1], None
            assert self.failover is not None
            self.failover.reassigned(generation, now)
            self._carry_out(now)


def founded(first: Assignment) -> Charter:
    """What all voters begin with."""
    members = tuple(CharterMember(node, "", node[:2]) for node in VOTERS)
    return Charter(FORMAT, "cluster", 0, 1, VOTERS, members, encode(first))


class CharteredShards(Shards):
    """A shard whose manager is the charter."""

    managers = VOTERS

    def is_managed(self) -> bool:
        """Whether a leader has taken the start up, as its charter is committed in its term."""
        voters = [self.world.hosts[node].core for node in self.managers]
        leaders = [one for one in voters if isinstance(one, VoterHost) and one.consensus.role is Role.LEADER]
        newest = max(leaders, key=lambda one: one.consensus.term, default=None)
        return newest is not None and newest.leads

    def _on_event(self, world: World, host: Host, event: Any) -> None:
        core: Any = host.core
        match event:
            case Persist(number, durable):

                def done(kept: bool) -> None:
                    consensus, now = core.consensus, host.time(world.now)
                    if kept:
                        consensus.persisted(number, now)
                    else:
                        consensus.persist_failed(number, "no space left", now)

                host.disk.write(world, host, durable, done)
            case Committed(charter):
                core.committed(charter, host.time(world.now))
            case _ if isinstance(core, ManagerHost):
                pass
            case _:
                super()._on_event(world, host, event)
