"""Who is in, and who decides: membership by SWIM with Lifeguard over a full mesh of control links, and the charter.

Of membership the rest of the program sees only what this package exports. The charter's parts are modules of their own, from
`cluster.consensus` on.
"""

from p2pnn.cluster.events import (
    Dial,
    Event,
    Forget,
    LinkLost,
    LinkRestored,
    MemberDescribed,
    MemberFailed,
    MemberJoined,
    MemberLeft,
    MemberRefuted,
    MemberSnapshot,
    MemberState,
    MemberSuspected,
    NameTaken,
)
from p2pnn.cluster.facts import Description
from p2pnn.cluster.introduction import Limits
from p2pnn.cluster.membership import Membership
from p2pnn.cluster.presets import PRESETS, Preset

__all__ = [
    "PRESETS",
    "Description",
    "Dial",
    "Event",
    "Forget",
    "Limits",
    "LinkLost",
    "LinkRestored",
    "MemberDescribed",
    "MemberFailed",
    "MemberJoined",
    "MemberLeft",
    "MemberRefuted",
    "MemberSnapshot",
    "MemberState",
    "MemberSuspected",
    "Membership",
    "NameTaken",
    "Preset",
]
