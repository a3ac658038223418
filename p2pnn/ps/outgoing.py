"""What leaves a worker: messages to shards, and a push until it is acknowledged."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from p2pnn.ps.compression import Bytes
from p2pnn.ps.messages import Mark, Pull, Push

SOON_S: Final = 0.02
"""After an answer that a push before is missing, or that the shard has not heard of this worker or generation yet."""

BACKOFF: Final = 2.0
SOON_BACKOFF_MAX: Final = 5
RETRIES_BACKOFF_MAX: Final = 4
"""Each time that nothing was heard the wait doubles, up to sixteen times the first."""


@dataclass(eq=False, frozen=True, slots=True)
class PushPart:
    """Send header and data to the shard, then call `Replica.sent`. needed: the lower, the sooner."""

    shard: int
    push: Push
    data: Bytes
    needed: int


@dataclass(eq=False, frozen=True, slots=True)
class PullRequest:
    shard: int
    pull: Pull
    needed: int = -1


@dataclass(eq=False, frozen=True, slots=True)
class MarkNote:
    """Send the mark to all shards that the replica speaks to."""

    mark: Mark
    needed: int = -1


@dataclass(eq=False, slots=True)
class Outgoing:
    """unsent: parts that are ready to leave; left: those that have left; sending: how many are leaving now."""

    sequence: int
    body: Bytes
    based_on: int
    based_clock: int
    fetch: bool
    awaits: list[int]  # per part, parameters whose gradients are not there yet
    unsent: set[int] = field(default_factory=set)
    left: set[int] = field(default_factory=set)
    sending: int = 0
    tries: int = 0
    retry_at: float | None = None
