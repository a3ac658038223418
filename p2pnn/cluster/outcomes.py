"""What consensus tells its owner."""

from __future__ import annotations

import msgspec

from p2pnn.cluster.charter import Charter
from p2pnn.cluster.durable import Durable
from p2pnn.types import NodeId


class Persist(msgspec.Struct, frozen=True):
    """Write `durable` (temporary file, fsync, rename, fsync of the folder; off the loop), then call persisted(number).

    Where that fails: drop the temporary file, do not try again, and call persist_failed(number, reason). There is
    never more than one on its way.
    """

    number: int
    durable: Durable


class LeaderChanged(msgspec.Struct, frozen=True):
    """leader: who leads in `term` as far as this node knows; None while nobody does. reason: why it changed, as a clause."""

    leader: NodeId | None
    term: int
    reason: str


class Committed(msgspec.Struct, frozen=True):
    """Decided: this charter holds until the next one. Versions only rise, but not each one comes by here."""

    charter: Charter


class Gone(msgspec.Struct, frozen=True):
    """To the leader's owner, once: this member is confirmed dead, so what it had may be given to others. A proposal to do so may
    have to wait for the next Committed."""

    node: NodeId


class Alarm(msgspec.Struct, frozen=True):
    """More than half of all members turned suspect at once: nothing is reassigned, because the fault may be ours."""

    suspects: int
    members: int


class AlarmOver(msgspec.Struct, frozen=True):
    """Enough members are back: members that are still dead are reassigned again."""


class DiskFailed(msgspec.Struct, frozen=True):
    """What was to be written is not on the disk; the old state stands. This node neither votes nor leads with what it could
    not write."""

    reason: str


Outcome = Persist | LeaderChanged | Committed | Gone | Alarm | AlarmOver | DiskFailed
