"""SWIM with Lifeguard: who is alive, as all members come to agree on it (Das et al. 2002; arXiv 1707.00788).

    alive ──a probe failed, or the link broke──► suspect ──nobody refuted in time, or proved──► dead
      ▲                                             │                                            │
      └──────── the member itself, with a higher incarnation (refutes) ──────────────────────────┘

`detector` probes, `suspicion` decides how long a suspect has, `rumours` passes news on, `health` makes a slow node careful,
`proof` spares the waiting where a process is plainly gone, `facts` says which of two claims counts. Here they are joined: facts
come in, the table changes, what changed is passed on.

How a suspect learns of it (Lifeguard's buddy system): whatever a node sends to a member that it holds for suspect or dead
carries that fact first. Gossip alone misses a member now and then, so every push_pull_s a node exchanges everything with one
other. There only what the teller knows first-hand is told, with its own link: a member that nobody ever met is forgotten.
Who stood still itself (SIGSTOP, a suspended machine) first gives everybody that time back.

This is a core like `membership`, its owner: `touched` holds the members about which something changed.
"""

from __future__ import annotations

from random import Random
from typing import Final

import msgspec

from p2pnn.cluster.detector import Detector
from p2pnn.cluster.facts import Description, as_seen_from_here, hearsay, living, merge, overrules
from p2pnn.cluster.health import Health
from p2pnn.cluster.presets import Preset
from p2pnn.cluster.proof import Proof
from p2pnn.cluster.rumours import Rumours
from p2pnn.cluster.suspicion import Suspicion
from p2pnn.cluster.table import Known, Table
from p2pnn.types import Address, NodeId
from p2pnn.wire.codec import printable
from p2pnn.wire.fields import CLAUSE_CHARS_MAX, FACTS_MAX, INCARNATION_MAX
from p2pnn.wire.messages import (
    Ack,
    Fact,
    Gossip,
    Life,
    Message,
    Nack,
    Probe,
    ProbeRequest,
    Pull,
    Roster,
    Testimony,
)

PIGGYBACK_MAX: Final = 6
"""Facts on a Probe or an Ack; the rest waits for gossip. Probes stay within one packet."""

PULL_PAUSE_S: Final = 1.0
"""Between two answers to one member's Pulls: everything is much to send for an empty question."""

LONG_STILL_S: Final = 2.5
"""After so long a standstill peers may have broken their links to this node, because it was silent."""

SILENT: Final = "it answers no probe"
GONE: Final = "its link was reset and it refuses connections: no process listens there"


class Swim:
    """me: this node's own fact. table: the others. members_max: hearsay cannot make this node remember more."""

    def __init__(
        self, node: NodeId, name: str, boot: str, preset: Preset, members_max: int, now: float, random: Random
    ) -> None:
        self.me = Fact(node, name, "", 0, boot, 1, Life.ALIVE)
        self.table = Table()
        self.health = Health()
        self.touched: dict[NodeId, None] = {}
        self._node = node
        self._preset = preset
        self._members_max = members_max
        self._random = random
        self._detector = Detector(self.table, preset, self.health, random)
        self._rumours = Rumours()
        self._outbox: list[tuple[NodeId, Message]] = []
        self._gossip_at: float | None = None
        self._push_pull_at = now + preset.push_pull_s * self._random.random()
        self._partner: NodeId | None = None
        self._pulled: dict[NodeId, float] = {}
        self._born = now
        self._long_still_at = float("-inf")
        self._seen = now  # the last time at which this core was called

    # --- what links tell

    def link_up(self, node: NodeId, name: str, address: Address, boot: str, now: float) -> None:
        """Greet: tell it of this node, and what is said of it where that is not what its link says."""
        self._notice(now)
        known = self.table.get(node)
        if known is None:
            known = self.table.add(Fact(node, name, address.host, address.port, boot, 0, Life.ALIVE), address, now)
        known.boot, known.trouble, known.proof = boot, "", Proof()
        self.table.link(known, address)
        stale = not known.met or known.fact.life is not Life.ALIVE
        self._outbox.append((node, Gossip((self.me, known.fact) if stale else (self.me,))))
        self.touched[node] = None

    def link_down(self, node: NodeId, reason: str, left: bool, now: float) -> None:
        """The link broke: suspect at once, unless this node has long stood still. Or it said goodbye: then it has left."""
        self._notice(now)
        known = self.table.get(node)
        if known is None or not known.linked:
            return
        self.table.unlink(known)
        known.trouble, known.trouble_since = reason or "the link was closed", now
        self.touched[node] = None
        if left and living(known.fact):
            self._claim(known, Life.LEFT, "", now)
        elif not left:
            known.proof.link_reset()
            if now - self._long_still_at >= self._preset.probe_interval_s:  # else it was this node that was silent
                self.suspect(node, known.trouble, now)

    def refused(self, node: NodeId, now: float) -> None:
        """A redial of its address was refused."""
        known = self.table.get(node)
        if known is None or known.linked or not living(known.fact) or not known.proof.refused(now):
            return
        known.proof.witnesses.add(self._node)
        others = self.table.reachable(but=node)
        for other in self._random.sample(others, min(self._preset.helpers, len(others))):
            self._outbox.append((other, Testimony(node, known.fact.incarnation)))
        self._weigh(known, now)

    def suspect(self, node: NodeId, reason: str, now: float) -> None:
        known = self.table.get(node)
        if known is None or not known.probed:
            return
        if known.fact.life is Life.ALIVE:
            self._claim(known, Life.SUSPECT, reason, now)
        elif known.suspicion is not None and known.suspicion.confirm(self._node):
            self._pass_on(msgspec.structs.replace(known.fact, by=self._node, reason=_clause(reason)), now)
            self.touched[node] = None

    def displace(self, node: NodeId, reason: str, now: float) -> None:
        """It cannot be there any more: another node is."""
        known = self.table.get(node)
        if known is not None and known.met and living(known.fact):
            self._claim(known, Life.DEAD, reason, now)

    # --- messages

    def receive(self, source: NodeId, message: Message, now: float) -> None:
        """A message of a linked node; of others nothing is taken."""
        self._notice(now)
        known = self.table.get(source)
        if known is None or not known.linked:
            return
        match message:
            case Probe() | Ack():
                self._hear(source, known, message.facts, now)
                self._detector.receive(source, message, now)
            case ProbeRequest() | Nack():
                self._detector.receive(source, message, now)
            case Gossip():
                self._hear(source, known, message.facts, now)
            case Roster():
                self._hear(source, known, tuple(map(hearsay, message.members)), now)
            case Pull() if now - self._pulled.get(source, -PULL_PAUSE_S) >= PULL_PAUSE_S:
                self._pulled[source] = now
                self._tell_all(source)
            case Testimony() if known.probed:
                self._testify(source, message, now)

    def describe(self, description: Description, now: float) -> None:
        """What this node says of itself has changed: a new incarnation says so."""
        about = {
            "software": description.software,
            "version_min": description.versions[0],
            "version_max": description.versions[1],
            "load": description.load,
            "gflops": description.gflops,
            "memory_mib": description.memory_mib,
            "cluster": description.cluster,
            "charter_term": description.charter[0],
            "revision": description.charter[1],
            "lag_ms": description.lag_ms,
            "draining": int(description.draining),
        }
        described = msgspec.structs.replace(self.me, **about)
        if described != self.me:
            self.me = described
            self._raise(self.me.incarnation + 1, now)

    def push_pull(self, node: NodeId) -> None:
        """Exchange everything with this member."""
        self._tell_all(node)
        self._outbox.append((node, Pull()))

    def push_pull_soon(self, node: NodeId, now: float) -> None:
        """The next exchange is with this member, and comes soon; of many that return at once, one after the other."""
        self._partner = node
        self._push_pull_at = min(self._push_pull_at, now + self._preset.gossip_interval_s)

    def messages_to_send(self) -> list[tuple[NodeId, Message]]:
        out, self._outbox = self._outbox, []
        probes, self._detector.outbox = self._detector.outbox, []
        return out + [(node, self._dressed(node, message)) for node, message in probes]

    # --- time

    def get_timer(self) -> float | None:
        times = [self._push_pull_at]
        if self._gossip_at is not None:
            times.append(self._gossip_at)
        probe = self._detector.get_timer()
        if probe is not None:
            times.append(probe)
        times += [
            known.suspicion.due for known in map(self.table.get, self.table.suspects) if known and known.suspicion
        ]
        return min(times)

    def handle_timer(self, now: float) -> None:
        self._notice(now)
        failed = self._detector.handle_timer(now)
        if failed is not None:
            self.suspect(failed, SILENT, now)
        for node in list(self.table.suspects):
            known = self.table.known[node]
            if known.suspicion is not None and known.suspicion.due <= now:
                self._claim(known, Life.DEAD, known.fact.reason, now)
        if self._gossip_at is not None and self._gossip_at <= now:
            self._gossip(now)
        if self._push_pull_at <= now:
            self._push_pull_at = now + self._preset.push_pull_interval_s(self.table.size)
            partners = list(
                self.table.linked
            )  # also who is dead to us, with an open link: it may only have missed to refute
            if partners:
                awaited, self._partner = self._partner, None
                self.push_pull(awaited if awaited in partners else self._random.choice(partners))

    def forget(self, node: NodeId) -> None:
        self.table.drop(node)
        self._pulled.pop(node, None)
        self._rumours.drop(node)

    # --- inside: facts

    def _hear(self, source: NodeId, teller: Known, facts: tuple[Fact, ...], now: float) -> None:
        for fact in facts:
            known = self.table.known.get(NodeId(fact.node))
            if known is not None and known.fact == fact and known.suspicion is None:
                continue  # most of all that is heard is known
            if fact.node == self._node:
                self._hear_of_me(source, fact, now)
            else:
                self._learn(as_seen_from_here(fact, teller.address, fact.node == source), now)

    def _hear_of_me(self, source: NodeId, fact: Fact, now: float) -> None:
        """Refute what is not so: by the next incarnation. Also that of a former self, which is the same node to others."""
        me = self.me
        if fact.life is Life.ALIVE and fact.boot == me.boot and fact.incarnation <= me.incarnation:
            return
        if fact.incarnation < me.incarnation:  # refuted already, which its teller has missed
            self._outbox.append((source, Gossip((me,))))
            return
        if fact.boot == me.boot and fact.life is not Life.ALIVE:
            self.health.worsen()
        self._raise(fact.incarnation + 1, now)

    def _raise(self, incarnation: int, now: float) -> None:
        uptime_s = int(now - self._born)
        self.me = msgspec.structs.replace(self.me, incarnation=min(incarnation, INCARNATION_MAX), uptime_s=uptime_s)
        self._pass_on(self.me, now)

    def _learn(self, fact: Fact, now: float) -> None:
        node = NodeId(fact.node)
        known = self.table.get(node)
        if known is None:
            address = Address(fact.host, fact.port)
            room = len(self.table.known) < self._members_max
            if living(fact) and fact.name and fact.host and fact.port and room and address not in self.table.at:
                self.table.add(fact, address, now)
                self._pass_on(fact, now)
                self.touched[node] = None
            return
        if overrules(fact, known.fact):
            self._accept(known, fact, now)
        elif (fact.incarnation, fact.life) == (known.fact.incarnation, known.fact.life):
            self.table.refine(known, merge(fact, known.fact))
            accuser = NodeId(fact.by)
            if known.suspicion is not None and accuser in self.table.known and known.suspicion.confirm(accuser):
                self._pass_on(fact, now)
                self.touched[node] = None

    def _claim(self, known: Known, life: Life, reason: str, now: float) -> None:
        """This node says so, of the incarnation that it knows."""
        self._accept(known, msgspec.structs.replace(known.fact, life=life, by=self._node, reason=_clause(reason)), now)

    def _accept(self, known: Known, fact: Fact, now: float) -> None:
        self.table.change(known, fact, now)
        if fact.life is Life.SUSPECT:
            shortest, longest = self._preset.suspicion_s(self.table.size)
            wanted = min(self._preset.helpers, self.table.size - 2)
            accuser = NodeId(fact.by) or self._node
            known.suspicion = Suspicion(accuser, now, shortest, longest, wanted)
        self._pass_on(fact, now)
        self.touched[NodeId(fact.node)] = None

    def _testify(self, source: NodeId, message: Testimony, now: float) -> None:
        known = self.table.get(NodeId(message.node))
        if known is None or not known.probed or source == message.node:
            return
        if message.incarnation == known.fact.incarnation and len(known.proof.witnesses) < 2:
            known.proof.witnesses.add(source)
            self._weigh(known, now)

    def _weigh(self, known: Known, now: float) -> None:
        if living(known.fact) and known.proof.suffices(self.table.size):
            self._claim(known, Life.DEAD, GONE, now)

    def _notice(self, now: float) -> None:
        """Called late: this node itself stood still, or its loop was held up. So nobody has missed anything meanwhile."""
        late_s = self._preset.probe_timeout_s / 2
        if now - self._seen > late_s:
            due = self.get_timer()
            if due is not None and now - max(due, self._seen) > late_s:
                self._stood_still(now - max(due, self._seen), now)
        self._seen = now

    def _stood_still(self, seconds: float, now: float) -> None:
        self.health.worsen()
        if seconds >= LONG_STILL_S:
            self._long_still_at = now
        self._detector.postpone(seconds, now)
        for known in map(self.table.get, self.table.suspects):
            if known is not None and known.suspicion is not None:
                known.suspicion.postpone(seconds)

    # --- inside: telling

    def watch(self, node: NodeId, now: float) -> None:
        """It is a member from now on: probe it."""
        self._detector.watch(node, now)

    def _pass_on(self, fact: Fact, now: float) -> None:
        self._rumours.add(fact)
        if self._gossip_at is None:
            self._gossip_at = now + self._preset.gossip_interval_s * self._random.random()

    def _gossip(self, now: float) -> None:
        """Tell some linked nodes the news; also those that are dead to us, because they may refute."""
        others = list(self.table.linked)
        for node in self._random.sample(others, min(self._preset.gossip_fanout, len(others))):
            facts = self._news_for(node, FACTS_MAX)
            if facts:
                self._outbox.append((node, Gossip(facts)))
        self._gossip_at = now + self._preset.gossip_interval_s if len(self._rumours) and others else None

    def _dressed(self, node: NodeId, message: Message) -> Message:
        match message:
            case Probe() | Ack():
                return type(message)(message.sequence, self._news_for(node, PIGGYBACK_MAX))
        return message

    def _news_for(self, node: NodeId, count: int) -> tuple[Fact, ...]:
        """What it should know, first what is said of itself where that is bad."""
        known = self.table.get(node)
        own = (known.fact,) if known is not None and known.fact.life is not Life.ALIVE else ()
        return own + self._rumours.take(
            count - len(own), self._preset.retransmits(self.table.size), first=self._node, but=node
        )

    def _tell_all(self, node: NodeId) -> None:
        facts = [self.me, *(known.fact for known in self.table.known.values() if known.met)]
        for start in range(0, len(facts), FACTS_MAX):
            self._outbox.append((node, Gossip(tuple(facts[start : start + FACTS_MAX]))))


def _clause(text: str) -> str:
    return printable(text)[:CLAUSE_CHARS_MAX]
