"""The real charter as the configuration manager of a simulated shard: three voters, whose leader looks after the shard.

Each host runs the charter's core as `cluster.Cluster` has it, and beside it what the elected coordinator would do: it takes
proposals, gives a lost primary's place to an in-sync replica, and admits learners. The configuration is the charter's work; its
generation is the version of the commit that wrote it. Everybody acts on what is committed only.
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
from p2pnn.replication.configuration import Configuration, may_follow
from p2pnn.types import NodeId
from tests.simulator.host import Host
from tests.simulator.shards import ManagerHost, Proposal, Shards, Wanted
from tests.simulator.world import World

VOTERS = tuple(NodeId(f"f{number}" + "0" * 30) for number in range(1, 4))
_decode = msgspec.msgpack.Decoder(Configuration).decode


class VoterHost(ManagerHost):
    """A voter of the charter. What it has committed is what it knows of the shard; only the leader changes it."""

    def __init__(self, shards: Shards, host: Host, now: float) -> None:
        super().__init__(shards, host, now)
        self.host = host
        durable = host.disk.content or Durable(charter=founded(shards.first))
        host.disk.content = durable
        self.consensus = Consensus(host.node, durable, now, Random(shards.world.random.random()))
        self.acted: Configuration | None = None

    @property
    def configuration(self) -> Configuration:
        """The committed one, as far as this voter knows; the first, before it knows of any."""
        return self.acted or self._shards.first

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

    def _look(self, now: float) -> None:
        if self.consensus.role is Role.LEADER and self.acted is not None:
            super()._look(now)

    def _decide(self, configuration: Configuration) -> None:
        """Propose it to the charter: by the compare-and-set that a charter is. What is under way already goes first."""
        charter = self.consensus.charter
        if self.consensus.role is not Role.LEADER or charter is None or self.acted is None:
            return
        if not may_follow(_decode(charter.work), configuration):
            return
        now = self.host.time(self._shards.world.now)
        decided = msgspec.structs.replace(configuration, generation=charter.successor().version.generation)
        try:
            self.consensus.propose(now, work=msgspec.msgpack.encode(decided))
        except ProposalRefused:
            return

    def committed(self, charter: Charter) -> None:
        """This voter learns of a commit, and tells all."""
        configuration = _decode(charter.work)
        if self.acted is None or configuration.generation > self.acted.generation:
            self.acted = configuration
            assert isinstance(self._shards, CharteredShards)
            self._shards.commits(configuration)
            self._tell_all()


def founded(first: Configuration) -> Charter:
    """What all voters begin with."""
    members = tuple(CharterMember(node, "", node[:2]) for node in VOTERS)
    return Charter(FORMAT, "cluster", 0, 1, VOTERS, members, msgspec.msgpack.encode(first))


class CharteredShards(Shards):
    """A shard whose manager is the charter."""

    managers = VOTERS

    def is_managed(self) -> bool:
        """Whether a leader's charter is committed in its term."""
        voters = [self.world.hosts[node].core for node in self.managers]
        leaders = [one.consensus for one in voters if isinstance(one, VoterHost) and one.consensus.role is Role.LEADER]
        newest = max(leaders, key=lambda one: one.term, default=None)
        return newest is not None and newest.charter is newest.snapshot().charter

    def commits(self, configuration: Configuration) -> None:
        """The ledger sees a commit when the first voter learns of it; others learn later."""
        newest = self.ledger.configuration
        assert newest is not None
        if configuration.generation > newest.generation:
            self.ledger.commits(configuration)

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
                core.committed(charter)
            case _ if isinstance(core, ManagerHost):
                pass
            case _:
                super()._on_event(world, host, event)
