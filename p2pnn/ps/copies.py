"""What a replica of a shard holds besides its arrays and slots, so that a learner can become like the others. Pure numbers.

A learner gets the whole state, and then the updates that came meanwhile. While a state of S bytes leaves over a link that carries
more than is written, fewer than S bytes of updates come, and that backlog shrinks from then on. So the copies of S bytes of
updates do for every link that a learner could catch up over.
"""

from __future__ import annotations

from typing import Final

from p2pnn.ps.layout import window
from p2pnn.replication.limits import Limits

SLOTS: Final = window(2)
"""Of a worker, where a shard has several replicas."""

IN_HAND: Final = 2
"""Pushes that are copied, beyond those S bytes, before an older one is let go; and as many on their way to a learner."""


def limits_of(workers: int, push_bytes: int, state_bytes: int) -> Limits:
    """Of a shard with so many workers, whose pushes lie in slots and take no memory here. state_bytes: of its arrays."""
    slots = workers * SLOTS
    room = max(Limits().log_bytes_max, slots * push_bytes)
    copied = state_bytes + IN_HAND * push_bytes
    return Limits(
        staged_max=max(Limits().staged_max, slots),
        staged_bytes_max=room,
        log_bytes_max=room,
        window=SLOTS,
        retained_bytes=min(Limits().retained_bytes, copied),
        catching_up_bytes=copied,
    )


def on_their_way(limits: Limits, push_bytes: int) -> int:
    """Bytes of copies that may be on their way to a learner."""
    return limits.state_window * limits.piece_bytes + IN_HAND * push_bytes


def copies_bytes(push_bytes: int, state_bytes: int, in_round: int) -> int:
    """What a replica takes at most for a learner, or as one: a state that leaves or comes, with the pushes in an open round, and
    copies of updates. in_round: how many pushes a round has; 0 where there are no rounds."""
    limits = limits_of(1, push_bytes, state_bytes)
    return state_bytes + in_round * push_bytes + limits.catching_up_bytes + on_their_way(limits, push_bytes)
