"""What membership tells its owner, and the record by which a person sees a member."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from p2pnn.types import Address, NodeId
from p2pnn.wire.messages import Member


class MemberState(StrEnum):
    """ALIVE: a control link is open. CONNECTING: heard of, not reached yet. UNREACHABLE: lost or never reached, with a
    reason; it is dialled on. LEFT: it said goodbye."""

    ALIVE = "alive"
    CONNECTING = "connecting"
    UNREACHABLE = "unreachable"
    LEFT = "left"


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
    member: Member


@dataclass(frozen=True, slots=True)
class MemberFailed:
    """A member that had joined is gone without a goodbye, or was restarted (MemberJoined follows at once)."""

    node: NodeId
    reason: str


@dataclass(frozen=True, slots=True)
class MemberLeft:
    """A member that had joined said goodbye."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class NameTaken:
    """A warning: `node` joined under a name that `holder` has already. Both stay; a pin by this name is ambiguous."""

    node: NodeId
    name: str
    holder: NodeId


Event = Dial | Forget | MemberJoined | MemberFailed | MemberLeft | NameTaken


@dataclass(frozen=True, slots=True)
class MemberSnapshot:
    """One member, or one configured address behind which no member is known yet (node and name are empty then).

    reason: why it is not alive, as one clause; empty where nothing is wrong. since_s: seconds in this state.
    """

    node: NodeId
    name: str
    address: Address
    state: MemberState
    reason: str
    since_s: float
    boot: str = ""
