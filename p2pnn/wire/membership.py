"""The messages by which nodes learn of each other and watch each other: 10–19, as SWIM has them (`p2pnn.cluster`).

They are part of the closed list in `wire.messages`, and travel on control links.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from p2pnn.wire.charter import Revision, Term
from p2pnn.wire.fields import (
    FACTS_MAX,
    ROSTER_MEMBERS_MAX,
    Clause,
    Count,
    Host,
    Incarnation,
    MaybeNode,
    Message,
    Name,
    NodeText,
    Port,
    Software,
    Version,
)


class Life(IntEnum):
    """What is said of a member, by rank: of two facts of one incarnation the one of the higher rank counts."""

    ALIVE = 0
    SUSPECT = 1
    DEAD = 2
    LEFT = 3


class Member(msgspec.Struct, frozen=True, array_like=True):
    """A node as others should know it. hosts: where it was reached or says it is."""

    node: NodeText
    name: Name
    host: Host
    port: Port
    boot: Name


class Roster(Message, tag=10):
    """Nodes that the sender knows. Facts say more, so nobody sends this any more; it is read as hearsay."""

    members: Annotated[tuple[Member, ...], Meta(max_length=ROSTER_MEMBERS_MAX)]


class Fact(msgspec.Struct, frozen=True, array_like=True):
    """What somebody says of a member. Only the member itself raises its incarnation, and only it says what follows `reason`.

    host, port: where the teller reaches it; empty and 0 where it speaks of itself, because only others see its address.
    boot: as in Hello; another one means that it was restarted. by: who says so, where it is not alive; reason: why.
    load: jobs that have or want its place. gflops, memory_mib: its measured speed and free memory; 0 where not measured.
    cluster, charter_term, revision: the newest charter that it knows to be committed; empty and 0 where there is none.
    uptime_s: for how long it ran when it said so. lag_ms: how late its loop comes to its timers.
    draining: 1 while its work moves to others and nobody shall plan on it.
    """

    node: NodeText
    name: Name
    host: Host
    port: Port
    boot: Name
    incarnation: Incarnation
    life: Life
    by: MaybeNode = ""
    reason: Clause = ""
    software: Software = ""
    version_min: Version = 1
    version_max: Version = 1
    load: Count = 0
    gflops: Count = 0
    memory_mib: Count = 0
    cluster: Name = ""
    charter_term: Term = 0
    revision: Revision = 0
    uptime_s: Count = 0
    lag_ms: Count = 0
    draining: Count = 0


Facts = Annotated[tuple[Fact, ...], Meta(max_length=FACTS_MAX)]


class Probe(Message, tag=11):
    """Are you there? Answered by Ack with the same number. facts: what the receiver should know, first of itself."""

    sequence: Count
    facts: Facts = ()


class ProbeRequest(Message, tag=12):
    """Probe `target` for me. Answered by Ack where it answered, by Nack where it has not in time."""

    sequence: Count
    target: NodeText


class Ack(Message, tag=13):
    """The member that a Probe or ProbeRequest of this number asked for answered."""

    sequence: Count
    facts: Facts = ()


class Nack(Message, tag=14):
    """The target of a ProbeRequest has not answered its helper; so the helper lives, and the way to it is open."""

    sequence: Count


class Gossip(Message, tag=15):
    """Facts: rumours, or a part of all that the sender knows."""

    facts: Facts


class Pull(Message, tag=16):
    """Tell me all that you know; answered by Gossip messages."""


class Testimony(Message, tag=17):
    """I had a link to `node`, it was reset, and two redials were refused: no process listens there any more."""

    node: NodeText
    incarnation: Incarnation
