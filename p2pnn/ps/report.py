"""What a shard says of itself, for whoever watches the run."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from p2pnn.ps.histogram import Histogram
from p2pnn.ps.messages import Refusal, Worker


class Phase(enum.Enum):
    """What was done with a push, or with a round of them."""

    JUDGED = enum.auto()
    LOGGED = enum.auto()
    APPLIED = enum.auto()


Did = Callable[[Phase, Worker | None, int, int], None]
"""Is told each phase when it is over, of whose push (None: a round's) with which number, and with which version it began."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a shard says of itself. queued: pushes that are whole and not decided. taken: per worker, how many of its
    pushes were applied. zeros: of these, how many in a row up to the newest were all zero. refused: (worker, why) → how often.
    Bytes are those of bodies.
    """

    version: int
    log_number: int
    queued: int
    staleness: Histogram
    refused: Mapping[tuple[Worker, Refusal], int]
    set_aside: frozenset[Worker]
    taken: Mapping[Worker, int]
    zeros: Mapping[Worker, int]
    received_bytes: int
    sent_bytes: int
