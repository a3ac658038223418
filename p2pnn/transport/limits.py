"""What the transport waits for and keeps; the limits of one link's bytes are `wire.limits.Limits`."""

from __future__ import annotations

from dataclasses import dataclass, field

from p2pnn.wire.limits import Limits as WireLimits


@dataclass(frozen=True, slots=True)
class Limits:
    """One node's choices; raises ValueError where they contradict each other."""

    wire: WireLimits = field(default_factory=WireLimits)

    connect_deadline_s: float = 5.0
    """For the name and the TCP connection. TCP alone would try for two minutes where packets are dropped."""

    redial_first_s: float = 0.1
    """Delay after the first failed attempt; it doubles. Less hammers a peer that is starting."""

    redial_max_s: float = 5.0
    """Longest delay. More saves packets, less finds a returning peer sooner."""

    data_deadline_s: float = 10.0
    """Until a data link is open, counted from the first body for it. Then the peer counts as lost."""

    goodbye_s: float = 1.0
    """For a Close to reach the peer; then the socket is reset."""

    cancel_grace_s: float = 2.0
    """How long a cancelled send whose body has begun may move no byte, before the links to that peer are given up."""

    cancel_max_s: float = 30.0
    """How long such a send may take to finish in all: a daemon that stops waits for it. At 1 MB/s it is a body of 30 MB."""

    handshakes_max: int = 64
    """Incoming links that have not said Hello yet: strangers, at 72 KiB each."""

    handshakes_of_host_max: int = 32
    """Of those, from one address, where nodes have keys: so that one machine cannot keep all others out."""

    links_max: int = 2200
    """All links: two to each of 1,024 members, and some that come and go. Each is a descriptor and 72 KiB."""

    bodies_max: int = 1024
    """Calls of send_body that wait for one peer. Frames and credits keep the real number far below; more is a bug."""

    turn_bytes: int = 4 * 1024 * 1024
    """How much one link may write, or read, before the loop's other links get their turn: about a millisecond's worth."""

    def __post_init__(self) -> None:
        relations = {
            "0 < redial_first_s <= redial_max_s": 0 < self.redial_first_s <= self.redial_max_s,
            "0 < connect_deadline_s": self.connect_deadline_s > 0,
            "0 < data_deadline_s": self.data_deadline_s > 0,
            "0 < goodbye_s": self.goodbye_s > 0,
            "0 < cancel_grace_s <= cancel_max_s": 0 < self.cancel_grace_s <= self.cancel_max_s,
            "0 < handshakes_max <= links_max": 0 < self.handshakes_max <= self.links_max,
            "0 < bodies_max < wire.queue_messages_max": 0 < self.bodies_max < self.wire.queue_messages_max,
            "wire.piece_bytes <= turn_bytes": self.wire.piece_bytes <= self.turn_bytes,
        }
        for relation, holds in relations.items():
            if not holds:
                raise ValueError(f"transport limits must satisfy {relation}")
