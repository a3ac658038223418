"""Every limit of the wire, with its unit in its name and its reason beside it.

Constants are part of the protocol: both sides hold each other to them, so they change only with the protocol version
(`proto/README.md`, "Limits"). `Limits` are one side's own choice: how long it waits and how much it queues. Limits of a
message's fields stand beside the message, in `wire.messages`. Each is checked before memory is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

PREFIX_BYTES: Final = 32
"""The fixed start of a frame; a multiple of ALIGN_BYTES, so that a padded header leaves the body aligned."""

ALIGN_BYTES: Final = 8
"""A body starts at a multiple of this from its frame's first byte: the widest element (float64, int64) needs no more."""

HEADER_BYTES_MAX: Final = 64 * 1024
"""One message in MessagePack. Enough for a plan of hundreds of transfers; small enough to decode in well under 1 ms."""

PIECE_BYTES_MAX: Final = 1024 * 1024
"""The part of a body in one frame. Throughput is flat from 1 MiB on, and an urgent message waits for 1 MiB at most
(8 ms on 1 Gbit/s)."""

STREAMS_MAX: Final = 64
"""Bodies that one direction of a link may have begun and not ended."""

PRIORITIES: Final = 16
"""Priorities of bodies, 0 (first) to 15."""

ROUND_STREAMS: Final = 4
"""Bodies of one priority that take turns, piece by piece. More of them share the link no better and only finish later."""

BODY_BYTES_MAX: Final = 1024**3
"""One body. A tensor or a blob's piece beyond 1 GiB does not fit the frames of any node that we know."""

RECEIVE_BUFFER_BYTES: Final = 72 * 1024
"""Per link, for what is not received straight into its place. Holds the largest prefix, header and padding, and, in
traffic of small messages, about a thousand of them at one system call."""

DATA_WINDOW_BYTES: Final = 16 * 1024
"""On a data link, how much of that buffer is offered: what is read of a body with its prefix has to be copied to its place, so
read little of it; but enough that small tensors come with one system call."""

READ_AHEAD_BYTES: Final = 4 * 1024
"""How much is received into that buffer behind the rest of a piece, by the same system call: the next frame's header, and
the first bytes of its piece, which have to be copied; so again little, but enough for a stream of small tensors."""

COALESCE_BYTES_MAX: Final = 64 * 1024
"""Small messages that leave with one write."""

assert PREFIX_BYTES % ALIGN_BYTES == 0
assert HEADER_BYTES_MAX % ALIGN_BYTES == 0
assert RECEIVE_BUFFER_BYTES >= PREFIX_BYTES + HEADER_BYTES_MAX
assert PREFIX_BYTES < DATA_WINDOW_BYTES <= RECEIVE_BUFFER_BYTES
assert PRIORITIES * ROUND_STREAMS <= STREAMS_MAX, "a sender that obeys its own rules never passes the peer's limit"
assert PREFIX_BYTES < READ_AHEAD_BYTES <= DATA_WINDOW_BYTES
assert PIECE_BYTES_MAX < BODY_BYTES_MAX < 2**63
assert PIECE_BYTES_MAX < 2**32


@dataclass(frozen=True, slots=True)
class Limits:
    """What one side of a link waits for and keeps; raises ValueError where the numbers contradict each other."""

    handshake_deadline_s: float = 5.0
    """From connecting to Welcome. More lets idle strangers hold sockets; less refuses a busy machine."""

    frame_deadline_s: float = 30.0
    """From a frame's first byte to its last: 35 kB/s at the largest frame, below any network worth training on."""

    stall_deadline_s: float = 10.0
    """Without a single byte while a frame or a body is unfinished. Less punishes a busy peer, more keeps its buffers."""

    ping_interval_s: float = 1.0
    """Between our Pings on a control link: the round trip time is never older than this."""

    silent_deadline_s: float = 5.0
    """Without a single byte on a control link, though we ping: four lost answers. TCP alone would take minutes."""

    body_bytes_max: int = BODY_BYTES_MAX
    """One body, either way. Lower it where a test or a small machine wants to."""

    piece_bytes: int = PIECE_BYTES_MAX
    """The size of the pieces that we send."""

    queue_messages_max: int = 8192
    """Messages, with bodies or without, that wait to be sent. Beyond, the peer does not read: OVERFLOW."""

    queue_bytes_max: int = 8 * 1024 * 1024
    """Their headers together. Bodies are not counted: they stay in their owners' memory."""

    def __post_init__(self) -> None:
        relations = {
            "0 < ping_interval_s < silent_deadline_s": 0 < self.ping_interval_s < self.silent_deadline_s,
            "0 < stall_deadline_s <= frame_deadline_s": 0 < self.stall_deadline_s <= self.frame_deadline_s,
            "0 < handshake_deadline_s": self.handshake_deadline_s > 0,
            "0 <= body_bytes_max <= BODY_BYTES_MAX": 0 <= self.body_bytes_max <= BODY_BYTES_MAX,
            "0 < piece_bytes <= PIECE_BYTES_MAX": 0 < self.piece_bytes <= PIECE_BYTES_MAX,
            "queue_messages_max >= 1": self.queue_messages_max >= 1,
            "queue_bytes_max >= HEADER_BYTES_MAX + PREFIX_BYTES": self.queue_bytes_max
            >= HEADER_BYTES_MAX + PREFIX_BYTES,
        }
        for relation, holds in relations.items():
            if not holds:
                raise ValueError(f"wire limits must satisfy {relation}")


DEFAULTS: Final = Limits()
