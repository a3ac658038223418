"""Local health: a node that is slow itself should not call others dead (Lifeguard, arXiv 1707.00788, section IV-A).

A score from 0 (well) to 7 counts signs that this node hears late: probes that nobody answered, helpers that sent not
even a Nack, an event loop that came late to its own timer, a suspicion of itself that it had to refute. Each probe answered
in time takes one off. The node's own probe interval and timeout are stretched by 1 + score: it looks less often, and waits
longer before it says anything.
"""

from __future__ import annotations

from typing import Final

SCORE_MAX: Final = 7
"""S − 1 of the paper, whose S is 8: intervals grow eightfold at most."""


class Health:
    """score: 0 to SCORE_MAX; 0 is well."""

    __slots__ = ("score",)

    def __init__(self) -> None:
        self.score = 0

    @property
    def stretch(self) -> int:
        """How many times longer this node waits than its preset says."""
        return 1 + self.score

    def worsen(self, signs: int = 1) -> None:
        self.score = min(SCORE_MAX, self.score + signs)

    def improve(self) -> None:
        """A probe was answered in time."""
        self.score = max(0, self.score - 1)
