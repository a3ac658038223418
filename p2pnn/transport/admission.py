"""Who may in: decisions about a Hello, apart from carrying them out.

Both nodes may dial each other at the same moment. The link dialled by the smaller node id stays, and both must come to
that without asking. The listener of a Hello decides, by how far its own attempt towards the same node is:

    own attempt      own id smaller                    own id larger
    connecting       drop it (it said nothing), accept  drop it, accept
    greeting         refuse: ours stays                 accept, close ours: theirs stays

While both have said Hello, the smaller refuses and the larger accepts: one link. If only one has, the other accepts: one
link. A link that is already open stays, unless the peer names another boot: then it was restarted, and the old link is dead
although its end has not been noticed. A second control link of a node that is linked already (it knows us by two
addresses) is answered by a Welcome without a session, and closed: so the dialler learns who lives there.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from enum import Enum

from p2pnn.transport.events import LocalIdentity
from p2pnn.wire.messages import CloseReason, Hello, LinkKind


class Ours(Enum):
    """How far this node's own attempt towards the same peer is."""

    NONE = 0
    CONNECTING = 1
    GREETING = 2


@dataclass(frozen=True, slots=True)
class Linked:
    """A peer with an open control link."""

    boot: str
    session: str
    has_data: bool


@dataclass(frozen=True, slots=True)
class Accept:
    """Let it in; give up the own attempt, if there is one; drop the peer's open link first where `restarted`."""

    restarted: bool = False


@dataclass(frozen=True, slots=True)
class Introduce:
    """Say who we are, then close as REPLACED."""


@dataclass(frozen=True, slots=True)
class Refuse:
    reason: CloseReason
    text: str


def equal(left: str, right: str) -> bool:
    """Compare in a time that tells nothing about where the texts differ."""
    return hmac.compare_digest(left.encode(), right.encode())


def admit(
    local: LocalIdentity, hello: Hello, linked: Linked | None, ours: Ours, full: bool
) -> Accept | Introduce | Refuse:
    """What to answer. linked: the peer's open control link; ours: of the same kind as the Hello's link; full: no room."""
    if not equal(hello.cluster, local.cluster):
        return Refuse(CloseReason.WRONG_CLUSTER, "the names (--cluster) of the two nodes' meshes differ")
    if hello.node == local.node:
        if hello.boot == local.boot:
            return Refuse(CloseReason.SELF, "a node dialled itself")
        return Refuse(CloseReason.SELF, "another daemon runs with this node's id, from a copy of its state folder")
    if full:
        return Refuse(CloseReason.TOO_MANY, "this node has all the links that it can hold")
    if hello.link is LinkKind.DATA:
        return _admit_data(local, hello, linked, ours)
    if linked is not None:
        return Accept(restarted=True) if hello.boot != linked.boot else Introduce()
    return _collide(local, hello, ours)


def _admit_data(local: LocalIdentity, hello: Hello, linked: Linked | None, ours: Ours) -> Accept | Introduce | Refuse:
    if linked is None or hello.boot != linked.boot or not equal(hello.session, linked.session):
        return Refuse(CloseReason.NO_SESSION, "a data link must name the session of a control link that is open")
    if linked.has_data:
        return Refuse(CloseReason.TOO_MANY, "there is a data link to this peer already")
    return _collide(local, hello, ours)


def _collide(local: LocalIdentity, hello: Hello, ours: Ours) -> Accept | Refuse:
    if ours is Ours.GREETING and local.node < hello.node:
        return Refuse(CloseReason.REPLACED, "both nodes dialled; the link of the smaller id stays")
    return Accept()


def outranks(dialled: bool, existing_dialled: bool, smaller: bool) -> bool:
    """Whether a link takes the place of an existing one where both are open, which only nodes with several addresses come to.

    dialled, existing_dialled: by this node. smaller: this node's id is. The smaller id's link stays, the older of equals.
    """
    return dialled == smaller and existing_dialled != smaller
