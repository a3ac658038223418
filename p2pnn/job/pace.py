"""How many steps a run is granted at a time, and how long what is left will take, by how fast the last ones went."""

from __future__ import annotations

from typing import Final

PIECE_S: Final = 0.5
"""Aim for the length of one Train command."""

AHEAD: Final = 3
"""Train commands that are granted. A pause waits for as many; and while a coordinator is replaced, nodes have the work of the
last two, which is longer than an election takes where the old one was seen to die."""

FIRST_PIECE_STEPS: Final = 4


class Pace:
    """Pure. steps_per_s: 0 until some are done."""

    def __init__(self) -> None:
        self.steps_per_s = 0.0

    def trained(self, steps: int, elapsed_s: float) -> None:
        """Some steps were done within this time of being granted."""
        self.steps_per_s = max(self.steps_per_s * 0.5, steps / max(1e-6, elapsed_s))

    def piece(self) -> int:
        """Steps to grant at once."""
        return max(1, int(self.steps_per_s * PIECE_S)) if self.steps_per_s else FIRST_PIECE_STEPS

    def left_s(self, steps: int) -> float | None:
        """For how long so many steps will last; None while that is not known."""
        return steps / self.steps_per_s if self.steps_per_s else None
