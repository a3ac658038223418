"""Who is in, and who decides.

Of membership the rest of the program sees only what this package exports: a gossip protocol can take the place of the joining
by roster inside without its owner noticing. The charter's parts are modules of their own, from `cluster.consensus` on.
"""

from p2pnn.cluster.events import (
    Dial,
    Event,
    Forget,
    MemberFailed,
    MemberJoined,
    MemberLeft,
    MemberSnapshot,
    MemberState,
    NameTaken,
)
from p2pnn.cluster.membership import Membership

__all__ = [
    "Dial",
    "Event",
    "Forget",
    "MemberFailed",
    "MemberJoined",
    "MemberLeft",
    "MemberSnapshot",
    "MemberState",
    "Membership",
    "NameTaken",
]
