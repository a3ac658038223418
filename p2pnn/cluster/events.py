"""What membership tells its owner, and the record by which a person sees a member."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from p2pnn.cluster.facts import Description
from p2pnn.types import Address, NodeId
from p2pnn.wire.messages import Member


class MemberState(StrEnum):
    """ALIVE: it answers probes, and a control link is open. SUSPECT: somebody says that it does not answer; it may refute.

    DEAD: it did not refute, or is proved gone; it is dialled on. LEFT: it said goodbye. CONNECTING: heard of, not reached
    yet. UNREACHABLE: not reached from here, with a reason, although others may; it is dialled on.
    """

    ALIVE = "alive"
    SUSPECT = "suspect"
    DEAD = "dead"
    LEFT = "left"
    CONNECTING = "connecting"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True, slots=True)
class Dial:
    """Keep trying to hold a control link to this address until Forget."""

    address: Address


@dataclass(frozen=True, slots=True)
class Forget:
    """Dial this address no more; a link that is open stays."""

    address: Address


@dataclass(frozen=True, slots=True)
class MemberJoined:
    """A member, with an open link. It is one until MemberFailed or MemberLeft, whatever its link does."""

    member: Member


@dataclass(frozen=True, slots=True)
class MemberFailed:
    """A member is gone without a goodbye, or was restarted (MemberJoined follows)."""

    node: NodeId
    reason: str


@dataclass(frozen=True, slots=True)
class MemberLeft:
    """A member said goodbye."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class LinkLost:
    """The link to a member broke: what was on its way is lost. That says nothing of the member, which is a suspect now."""

    node: NodeId
    reason: str


@dataclass(frozen=True, slots=True)
class LinkRestored:
    """A link to a member that was never gone is open again."""

    member: Member


@dataclass(frozen=True, slots=True)
class MemberSuspected:
    """`by` says that the member does not answer."""

    node: NodeId
    by: NodeId
    reason: str


@dataclass(frozen=True, slots=True)
class MemberRefuted:
    """A suspect is alive."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class MemberDescribed:
    """What a member says of itself is new or has changed. uptime_s: how long it has run by now, at least."""

    node: NodeId
    about: Description
    uptime_s: float


@dataclass(frozen=True, slots=True)
class NameTaken:
    """A warning: `node` joined under a name that `holder` has already. Both stay; a pin by this name is ambiguous."""

    node: NodeId
    name: str
    holder: NodeId


Event = (
    Dial
    | Forget
    | MemberJoined
    | MemberFailed
    | MemberLeft
    | LinkLost
    | LinkRestored
    | MemberSuspected
    | MemberRefuted
    | MemberDescribed
    | NameTaken
)


@dataclass(frozen=True, slots=True)
class MemberSnapshot:
    """One member, or one configured address behind which no member is known yet (node and name are empty then).

    reason: why it is not alive, as one clause; empty where nothing is wrong. since_s: seconds in this state. by: the names
    of those that suspect it, or say that it is dead. about: what it says of itself.
    """

    node: NodeId
    name: str
    address: Address
    state: MemberState
    reason: str
    since_s: float
    boot: str = ""
    by: tuple[str, ...] = ()
    about: Description = field(default_factory=Description)
