"""Who is in: membership, and nothing else yet.

The rest of the program sees only what this package exports. A gossip protocol can take the place of the joining by
roster inside without its owner noticing.
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
