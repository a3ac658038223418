"""A histogram of small whole numbers (staleness) in bounded space: 0 to 15 each, then by powers of two."""

from __future__ import annotations

from dataclasses import dataclass, field

SINGLE = 16


@dataclass
class Histogram:
    """counts: the bucket's lowest number → how many."""

    counts: dict[int, int] = field(default_factory=dict)
    total: int = 0
    sum: int = 0
    max: int = 0

    def add(self, number: int) -> None:
        bucket = number if number < SINGLE else 1 << (number.bit_length() - 1)
        self.counts[bucket] = self.counts.get(bucket, 0) + 1
        self.total += 1
        self.sum += number
        self.max = max(self.max, number)

    @property
    def mean(self) -> float:
        return self.sum / self.total if self.total else 0.0

    def rows(self) -> list[tuple[str, int]]:
        """(`3` or `16–31`, how many), ascending, for a person."""
        return [(str(low) if low < SINGLE else f"{low}–{2 * low - 1}", self.counts[low]) for low in sorted(self.counts)]
