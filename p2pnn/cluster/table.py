"""The members as one node knows them: of each the fact that counts, and what its own link tells.

Facts are hearsay that may be merged; a link is seen by this node alone. Both stand side by side here, and neither is taken
for the other: an open link is no sign of life, and a fact opens no link.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from p2pnn.cluster.facts import Description, living
from p2pnn.cluster.proof import Proof
from p2pnn.cluster.suspicion import Suspicion
from p2pnn.types import Address, NodeId
from p2pnn.wire.messages import Fact, Life


@dataclass(slots=True)
class Known:
    """One member. since: when its life became what it is; heard: when it was first heard of.

    address: where it is dialled: that of its last link, before that as it was told. boot: that of its last link, None before
    the first. trouble: why there is no link, since `trouble_since`. joined: the owner was told of it as a member; told:
    whether with its link and as suspect, and of what it says of itself. started: the earliest time that it can have been
    started at, by what it said: news grows old on its way, so the earliest is the nearest.
    """

    fact: Fact
    since: float
    heard: float
    address: Address
    boot: str | None = None
    linked: bool = False
    trouble: str = ""
    trouble_since: float = 0.0
    suspicion: Suspicion | None = None
    proof: Proof = field(default_factory=Proof)
    joined: bool = False
    told_linked: bool = False
    told_suspect: bool = False
    told_about: Description | None = None
    started: float = float("inf")

    @property
    def met(self) -> bool:
        """Whether this node has had a link to the process that the fact speaks of."""
        return self.boot == self.fact.boot

    @property
    def probed(self) -> bool:
        """Whether it is a member to be watched."""
        return living(self.fact) and self.met


class Table:
    """All members but this node itself. size: the living ones, heard of or met, with this node. at: who of the linked ones
    listens at an address, by what it said."""

    def __init__(self) -> None:
        self.known: dict[NodeId, Known] = {}
        self.linked: dict[NodeId, None] = {}
        self.suspects: dict[NodeId, None] = {}
        self.at: dict[Address, NodeId] = {}
        self.size = 1

    def get(self, node: NodeId) -> Known | None:
        return self.known.get(node)

    def add(self, fact: Fact, address: Address, now: float) -> Known:
        known = self.known[NodeId(fact.node)] = Known(fact, now, now, address)
        self.size += living(fact)
        return known

    def drop(self, node: NodeId) -> None:
        known = self.known.pop(node)
        self.size -= living(known.fact)
        self.unlink(known)
        self.suspects.pop(node, None)

    def change(self, known: Known, fact: Fact, now: float) -> None:
        """Another fact counts from now on; a suspicion of an older one ends."""
        node = NodeId(fact.node)
        if (fact.life, fact.boot) != (known.fact.life, known.fact.boot):
            known.since = now
        if fact.boot != known.fact.boot:
            known.started = float("inf")
        self.size += living(fact) - living(known.fact)
        known.fact = fact
        known.suspicion = None
        if fact.life is Life.SUSPECT:
            self.suspects[node] = None
        else:
            self.suspects.pop(node, None)
        if fact.life is Life.ALIVE:
            known.proof = Proof()

    def refine(self, known: Known, fact: Fact) -> None:
        """A fact of the same incarnation and rank: nothing has changed but its words."""
        known.fact = fact

    def link(self, known: Known, address: Address) -> None:
        """A link to it is open, and it listens at `address`; at port 0 where it does not listen."""
        self.unlink(known)
        known.linked, known.address = True, address
        self.linked[NodeId(known.fact.node)] = None
        if address.port:
            self.at[address] = NodeId(known.fact.node)

    def unlink(self, known: Known) -> None:
        node = NodeId(known.fact.node)
        known.linked = False
        self.linked.pop(node, None)
        if self.at.get(known.address) == node:
            del self.at[known.address]

    def reachable(self, but: NodeId | None = None) -> list[NodeId]:
        """Living members with a link, `but` not this one."""
        return [node for node in self.linked if node != but and living(self.known[node].fact)]
