"""A cluster of charter cores in a simulated world: founding, joining, gossip, a supervisor that keeps changing its work.

`Cluster.run` is one seed: first a storm of faults, in which only safety is asked for; then the calm, in which there must be one
leader within 10 s and a new commit within 12 s, and at last everybody holds the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import msgspec

from p2pnn.cluster.charter import Charter, CharterMember, found
from p2pnn.cluster.consensus import Consensus
from p2pnn.cluster.durable import Durable
from p2pnn.cluster.election import Role, Timing
from p2pnn.cluster.outcomes import Committed, Persist
from p2pnn.cluster.view import Standing
from p2pnn.errors import ProposalRefused
from p2pnn.types import NodeId
from tests.simulator.ablations import without_prevote
from tests.simulator.clock import Clock
from tests.simulator.disk import Disk
from tests.simulator.faults import ALONE, FAULTS, Storm
from tests.simulator.host import Host
from tests.simulator.ledger import Ledger, generations, watched
from tests.simulator.network import Conditions
from tests.simulator.world import Violation, World

LEADER_WITHIN_S = 10.0
COMMIT_WITHIN_S = 12.0
AGREED_WITHIN_S = 20.0
JOBS = ("alpha", "beta", "gamma")


@dataclass
class Result:
    """One seed. violation: empty, or the report. void: faults that were planned and never fired."""

    seed: int
    violation: str = ""
    fired: Counter[str] = field(default_factory=Counter)
    void: tuple[str, ...] = ()
    nodes: int = 0
    steps: int = 0
    elections: int = 0
    commits: int = 0
    leader_after_s: float = 0.0
    commit_after_s: float = 0.0


def node_id(number: int) -> NodeId:
    return NodeId(f"{number:x}" * 8 + "0" * 24)


class Cluster:
    """nodes: how many hosts; the first founds the cluster and the others join. core: the class under test, or an ablation."""

    def __init__(
        self,
        seed: int,
        nodes: int,
        core: type[Consensus] = Consensus,
        *,
        command: str = "",
        through: Callable[[Any], Any] | None = None,
        lying_disks: bool = False,
        timing: Timing | None = None,
        conditions: Conditions | None = None,
        fsync_s: float = 0.002,
    ) -> None:
        self.ledger = Ledger()
        self.propose_every_s = 0.2
        self.fault_every_s = 0.3
        self.fault_lasts_s = 0.7
        self._timing = timing or Timing()
        self._core = watched(core, self.ledger)
        self.world = World(
            seed,
            self._start,
            self._on_event,
            checks=[self.ledger.check],
            command=command,
            through=through,
            conditions=conditions,
        )
        random = self.world.random
        self.nodes = [node_id(number) for number in range(1, nodes + 1)]
        self.proposing = True
        self.dismissals = 0.0
        self.handovers = 0.0
        self.jobs = JOBS
        self.gossip_errors = 0.02
        self._truth: dict[tuple[NodeId, NodeId], tuple[bool, float]] = {}
        for node in self.nodes:
            clock = Clock(random.uniform(0, 1000), random.uniform(0.99, 1.01))
            host = self.world.add(node, clock=clock, disk=Disk(fsync_s), up=False)
            host.disk.lies = lying_disks
            if node == self.nodes[0]:
                host.disk.content = Durable(charter=found("cluster", self.member(node)))
            self.world.boot(node)
        self.world.after(0.1, self._propose)
        self.world.after(0.2, self._gossip)

    # --- looking

    def core(self, node: NodeId) -> Consensus | None:
        core: Any = self.world.hosts[node].core
        return core  # type: ignore[no-any-return]

    def leader(self) -> NodeId | None:
        """The living leader of the highest term."""
        leading, highest = None, -1
        for node, host in self.world.hosts.items():
            core: Any = host.core
            if core is not None and core.role is Role.LEADER and not host.frozen and core.term > highest:
                leading, highest = node, core.term
        return leading

    def leads_all(self) -> bool:
        """One leader, whom every living member knows."""
        leader = self.leader()
        cores = [host.core for host in self.world.hosts.values() if host.core is not None]
        return leader is not None and all(core.snapshot().leader == leader for core in cores)

    def agrees(self) -> bool:
        """All act on one and the same charter, which has all of them as members."""
        charter: Charter | None = None
        for host in self.world.hosts.values():
            core: Any = host.core
            if core is None:
                continue
            acted = core.snapshot().charter
            if acted is None or (charter is not None and acted.version != charter.version):
                return False
            charter = acted
        return charter is not None and set(self.nodes) == set(charter.nodes())

    @staticmethod
    def member(node: NodeId) -> CharterMember:
        return CharterMember(node, "", f"n{node[:1]}")

    # --- one seed

    def run(self, faults: tuple[str, ...], storm_s: float, *, calm_first: bool = False) -> Result:
        """The storm, then the calm. A violation is in the result, not raised. calm_first: let the cluster form before."""
        world = self.world
        result = Result(world.seed, fired=world.fired, nodes=len(self.nodes))
        try:
            if calm_first:
                world.run_until(self.agrees, 5.0)
            storm = Storm(
                world,
                faults,
                world.now + storm_s,
                every_s=self.fault_every_s,
                lasts_s=self.fault_lasts_s,
                aim=self.leader,
                patience_s=storm_s,
            )
            world.run_until(lambda: storm.over, 2 * storm_s)
            self._calm(result)
        except Violation as violation:
            result.violation = str(violation)
        result.void = tuple(fault for fault in faults if not world.fired[fault])
        result.steps, result.elections, result.commits = world.steps, self.ledger.elections, self.ledger.commits
        return result

    def _calm(self, result: Result) -> None:
        world, start = self.world, self.world.now
        self.dismissals = self.handovers = 0.0
        if not world.run_until(lambda: self.leader() is not None, LEADER_WITHIN_S):
            raise world.violation(f"no leader within {LEADER_WITHIN_S} s of the last fault")
        result.leader_after_s = world.now - start
        if not world.run_until(lambda: self.ledger.committed_at > start, start + COMMIT_WITHIN_S - world.now):
            raise world.violation(f"no commit within {COMMIT_WITHIN_S} s of the last fault")
        result.commit_after_s = world.now - start
        world.run_until(lambda: self._members() == set(self.nodes), AGREED_WITHIN_S)
        self.proposing = False
        if not world.run_until(lambda: self.agrees() and self.leads_all(), AGREED_WITHIN_S):
            raise world.violation(f"no agreement within {AGREED_WITHIN_S} s")

    def _members(self) -> set[NodeId]:
        """As the leader has them, committed and with nothing under way."""
        leader = self.leader()
        core = None if leader is None else self.core(leader)
        if core is None or core.charter is None or core.charter is not core.snapshot().charter:
            return set()
        return set(core.charter.nodes())

    # --- what the world calls

    def _start(self, world: World, host: Host) -> Consensus:
        self.ledger.started(host)
        host.notes["started"] = world.now
        core: Consensus = self._core(
            host.node,
            host.disk.content or Durable(),
            host.time(world.now),
            Random(world.random.random()),
            self._timing,
        )
        return core

    def _on_event(self, world: World, host: Host, event: Any) -> None:
        match event:
            case Persist(number, durable):

                def done(kept: bool) -> None:
                    core: Any = host.core
                    if kept:
                        core.persisted(number, host.time(world.now))
                    else:
                        core.persist_failed(number, "no space left", host.time(world.now))

                host.disk.write(world, host, durable, done)
            case Committed(charter):
                self.ledger.acts(world, host, charter)

    def _propose(self) -> None:
        """Every leader (it may not know that it is none any more) admits a node or gives a job another generation."""
        random = self.world.random
        for node, host in self.world.hosts.items() if self.proposing else ():
            core: Any = host.core
            if core is not None and core.role is Role.LEADER:
                for _ in range(random.choice((1, 1, 1, 4))):  # a hasty supervisor does not wait for the commit
                    self.world.act(node, self._propose_at)
        self.world.after(random.uniform(0.2, 1.8) * self.propose_every_s, self._propose)

    def _propose_at(self, core: Consensus, now: float) -> None:
        charter = core.charter
        assert charter is not None
        random = self.world.random
        missing = [node for node in self.nodes if node not in charter.nodes() and self.core(node) is not None]
        try:
            if random.random() < self.dismissals:
                core.propose(now, dismiss=[random.choice(self.nodes)])
            elif random.random() < self.handovers:
                core.hand_over(now)
            elif missing and random.random() < 0.7:
                core.propose(now, admit=[self.member(missing[0])])
            else:
                version = charter.successor().version
                changed = {**generations(charter), random.choice(self.jobs): version.generation}
                assert core.propose(now, work=msgspec.msgpack.encode(changed)) == version
        except ProposalRefused:
            return

    def _gossip(self) -> None:
        """One node hears of all others: late, and a little wrong."""
        world, random = self.world, self.world.random
        observer = random.choice(self.nodes)
        for node in self.nodes:
            if node != observer and random.random() < 0.7:
                world.act(observer, self._hear, observer, node)
        world.after(random.uniform(0.0, 1.0) / len(self.nodes), self._gossip)

    def _hear(self, core: Consensus, now: float, observer: NodeId, node: NodeId) -> None:
        host, world = self.world.hosts[node], self.world
        is_up = host.alive and world.network.is_open(node, observer) and world.network.is_open(observer, node)
        before, since = self._truth.get((observer, node), (is_up, world.now))
        if before != is_up:
            since = world.now
        self._truth[observer, node] = (is_up, since)
        silent_s = world.now - since
        if is_up != (world.random.random() < self.gossip_errors):
            standing = Standing.ALIVE
        elif silent_s > 3.0:
            standing = Standing.DEAD
        elif silent_s > 1.0 or host.core is None:
            standing = Standing.PROVED if host.core is None else Standing.SUSPECT
        else:
            return
        core.observe(node, standing, now)
        other = self.core(node)
        charter = other.snapshot().charter if other is not None and is_up else None
        if charter is not None:
            core.hear_of(node, now, world.now - host.notes["started"], 0.0, charter.version, charter.cluster)


NERVOUS = Timing(
    heartbeat_s=0.04,
    election_min_s=0.15,
    election_max_s=0.22,
    quorum_silence_s=0.4,
    veto_max_s=0.5,
    rank_s=0.02,
    resend_s=0.3,
)
"""Timeouts near the time of a round trip: elections all the time, which safety must bear."""


def one_seed(seed: int, core: type[Consensus] = Consensus, *, command: str = "", lying_disks: bool = False) -> Result:
    """What `./run sim` does with a seed: it draws the cluster's size and temper, the faults, and the storm's length.

    Every second seed is nervous: timeouts, network and disks of one order, and half of those do without PreVote, because
    rule 8 is for liveness only.
    """
    random = Random(seed)
    nodes = random.choice((1, 2, 3, 3, 3, 3, 4, 5, 5, 5, 5, 7))
    chosen = {random.choice(("partition", "one-way partition", "cut")), random.choice(("crash", "power cut", "freeze"))}
    planned = {*chosen, *random.sample(sorted(FAULTS), random.randint(0, 5))}
    faults = tuple(sorted(planned & ALONE if nodes == 1 else planned))
    nervous = random.random() < 0.5
    if nervous and random.random() < 0.5:
        core = without_prevote(core)
    cluster = Cluster(
        seed,
        nodes,
        core,
        command=command or f"./run sim --seed {seed}",
        lying_disks=lying_disks,
        timing=NERVOUS if nervous else Timing(),
        conditions=Conditions(0.005, 0.02) if nervous else Conditions(),
        fsync_s=random.choice((0.002, 0.02)),
    )
    cluster.propose_every_s = random.choice((0.05, 0.2))
    cluster.fault_every_s, cluster.fault_lasts_s = random.choice(((0.3, 0.5), (0.6, 1.0), (1.0, 2.0)))
    cluster.handovers = random.choice((0.0, 0.05))
    cluster.dismissals = random.choice((0.0, 0.3, 0.5, 0.5))
    return cluster.run(faults, random.uniform(5.0, 15.0), calm_first=random.random() < 0.9)
