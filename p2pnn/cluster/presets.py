"""How fast membership looks and how long it waits, for three kinds of network.

    loopback   one machine: a stopped process is dead after 1 to 3 s of suspicion
    lan        the constants of hashicorp/memberlist's DefaultLANConfig
    wan        those of its DefaultWANConfig

Times are seconds. Shorter ones find a failure sooner, cost more messages, and suspect a machine that is merely busy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Preset:
    """One choice of all constants; raises ValueError where they contradict each other."""

    probe_interval_s: float
    """One member is probed in each. A crash is first suspected after two of them, whatever the number of members."""

    probe_timeout_s: float
    """For the direct answer; then helpers are asked, who have the rest of the interval."""

    suspicion_min_s: float
    """How long a suspect that enough others suspect too has to refute, at up to ten members; grows with log10."""

    suspicion_max_factor: float
    """How many times longer it has while only one member suspects it."""

    push_pull_s: float
    """Between two exchanges of everything with one member: gossip alone misses one now and then. Longer in large clusters."""

    helpers: int = 3
    """Members asked to probe in our place (k of the SWIM paper); as many must confirm for the shortest suspicion."""

    gossip_interval_s: float = 0.2
    gossip_fanout: int = 3
    """Members told of news in each interval, while there is any."""

    retransmit_factor: int = 4
    """News is told this many times the logarithm of the cluster's size, then kept."""

    def __post_init__(self) -> None:
        relations = {
            "0 < probe_timeout_s < probe_interval_s": 0 < self.probe_timeout_s < self.probe_interval_s,
            "probe_interval_s <= suspicion_min_s": self.probe_interval_s <= self.suspicion_min_s,
            "1 <= suspicion_max_factor": self.suspicion_max_factor >= 1,
            "probe_interval_s < push_pull_s": self.probe_interval_s < self.push_pull_s,
            "0 < helpers, gossip_fanout, retransmit_factor": min(
                self.helpers, self.gossip_fanout, self.retransmit_factor
            )
            > 0,
            "0 < gossip_interval_s": self.gossip_interval_s > 0,
        }
        for relation, holds in relations.items():
            if not holds:
                raise ValueError(f"a preset of membership must satisfy {relation}")

    def suspicion_s(self, members: int) -> tuple[float, float]:
        """The shortest and the longest suspicion in a cluster of so many members."""
        shortest = self.suspicion_min_s * max(1.0, math.log10(max(1, members)))
        return shortest, shortest * self.suspicion_max_factor

    def retransmits(self, members: int) -> int:
        return self.retransmit_factor * math.ceil(math.log10(members + 1))

    def push_pull_interval_s(self, members: int) -> float:
        """Beyond 32 members one push_pull_s more for each doubling, as in memberlist: everything is much, then."""
        return self.push_pull_s * (1 + max(0, math.ceil(math.log2(max(1, members)) - 5)))


PRESETS: Final = {
    "loopback": Preset(0.2, 0.1, suspicion_min_s=1.0, suspicion_max_factor=3.0, push_pull_s=10.0),
    "lan": Preset(1.0, 0.5, suspicion_min_s=4.0, suspicion_max_factor=6.0, push_pull_s=30.0),
    "wan": Preset(
        5.0,
        3.0,
        suspicion_min_s=30.0,
        suspicion_max_factor=6.0,
        push_pull_s=60.0,
        gossip_interval_s=0.5,
        gossip_fanout=4,
    ),
}
