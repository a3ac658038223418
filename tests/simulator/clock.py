"""A node's own clock: it runs a little fast or slow, and shows another time than its neighbour's.

Cores are promised a clock that never goes back, and nothing more: no two nodes' clocks are ever compared. Here every node's
clock starts somewhere else and drifts, so a core that compares them, or counts on equal seconds, fails.
"""

from __future__ import annotations


class Clock:
    """offset_s: what it shows at true time 0. rate: its seconds per true second; 1.0 is a perfect clock."""

    __slots__ = ("offset_s", "rate")

    def __init__(self, offset_s: float = 0.0, rate: float = 1.0) -> None:
        assert rate > 0
        self.offset_s = offset_s
        self.rate = rate

    def local(self, true_s: float) -> float:
        """What the clock shows at a true time."""
        return self.offset_s + self.rate * true_s

    def true(self, local_s: float) -> float:
        """The true time at which the clock shows `local_s`."""
        return (local_s - self.offset_s) / self.rate

    def set_rate(self, rate: float, true_s: float) -> None:
        """Drift at another rate from now on, without a jump."""
        assert rate > 0
        self.offset_s += (self.rate - rate) * true_s
        self.rate = rate
