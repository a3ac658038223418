"""What a shard says of itself, for whoever watches the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from p2pnn.ps.histogram import Histogram
from p2pnn.ps.messages import Refusal, Worker


@dataclass(frozen=True, slots=True)
class Report:
    """What a shard says of itself. queued: pushes that are whole and not decided. heard: per worker, when its last push was
    logged. taken: per worker, how many of its pushes were applied. norms: of the newest of these. refused: (worker, why) →
    how often. Bytes are those of bodies.
    """

    version: int
    log_number: int
    queued: int
    staleness: Histogram
    refused: Mapping[tuple[Worker, Refusal], int]
    set_aside: frozenset[Worker]
    heard: Mapping[Worker, float]
    taken: Mapping[Worker, int]
    norms: Mapping[Worker, float]
    received_bytes: int
    sent_bytes: int
