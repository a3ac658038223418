"""What is said of a member, and which of two facts counts.

Facts of one member are totally ordered: by incarnation, then by rank (alive < suspect < dead < left), then by everything
else, so that two nodes never keep different ones. `merge` takes the greater, so it is commutative, associative and
idempotent: in whatever order, however often and by whomever nodes are told, they end with the same.

Only a member raises its own incarnation, to refute what is said of it; so a suspicion of an older one has no effect.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from p2pnn.types import Address
from p2pnn.wire.messages import Fact, Life, Member


@dataclass(frozen=True, slots=True)
class Description:
    """What a node says of itself in its facts. load: jobs that have or want its place; 0 gflops: not measured yet.

    cluster, charter: the id of its cluster and the version (term, revision) of the newest charter that it knows to be
    committed; empty and zeros where it has none. lag_ms: how late its loop comes to its timers.
    draining: its work moves to others.
    """

    software: str = ""
    versions: tuple[int, int] = (1, 1)
    load: int = 0
    gflops: int = 0
    memory_mib: int = 0
    cluster: str = ""
    charter: tuple[int, int] = (0, 0)
    lag_ms: int = 0
    draining: bool = False


def order(fact: Fact) -> tuple[Any, ...]:
    """The key by which facts of one member compare."""
    return (fact.incarnation, int(fact.life), msgspec.structs.astuple(fact))


def merge(one: Fact, other: Fact) -> Fact:
    """The one that counts, of two facts of one member."""
    return max(one, other, key=order)


def overrules(new: Fact, old: Fact) -> bool:
    """Whether a fact is news to who knows the other: a higher incarnation, or a higher rank in the same."""
    return (new.incarnation, new.life) > (old.incarnation, old.life)


def living(fact: Fact) -> bool:
    """Alive, or only suspect."""
    return fact.life <= Life.SUSPECT


def described(fact: Fact) -> Description:
    """What the member says of itself in a fact."""
    versions, charter = (fact.version_min, fact.version_max), (fact.charter_term, fact.revision)
    return Description(
        fact.software,
        versions,
        fact.load,
        fact.gflops,
        fact.memory_mib,
        fact.cluster,
        charter,
        fact.lag_ms,
        draining=bool(fact.draining),
    )


def member_of(fact: Fact, address: Address) -> Member:
    return Member(fact.node, fact.name, address.host, address.port, fact.boot)


def hearsay(member: Member) -> Fact:
    """What a Roster says, as a fact that any of the member's own overrules."""
    return Fact(member.node, member.name, member.host, member.port, member.boot, 0, Life.ALIVE)


def as_seen_from_here(fact: Fact, teller: Address, by_itself: bool) -> Fact:
    """The fact with an address that leads somewhere from this node; teller: where its teller is reached.

    A node speaks of itself without an address (`by_itself`): the teller's is its own. A loopback address means the teller's
    machine, so seen from another machine it is the teller's host.
    """
    if by_itself:
        return msgspec.structs.replace(fact, host=teller.host, port=teller.port)
    if _loopback(fact.host) and not _loopback(teller.host):
        return msgspec.structs.replace(fact, host=teller.host)
    return fact


def _loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")
