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
    """Pure; `now` in seconds. steps_per_s: 0 until some are done.

    What was done while a piece was granted and not done yet is more than that piece: those granted before it came first. All of
    them are counted, so answers that come late and together make nobody look faster than so many pieces in the time of one.
    """

    def __init__(self) -> None:
        self.steps_per_s = 0.0
        self._granted: dict[int, tuple[int, float]] = {}

    def granted(self, number: int, step: int, now: float) -> None:
        """The next piece, by its number. step: how far the run is."""
        self._granted[number] = step, now

    def trained(self, number: int, step: int, now: float) -> None:
        """The piece is done, so the run is at this step. One that another coordinator granted says nothing: when it did is not
        known here, nor what was done before this one came."""
        if (granted := self._granted.pop(number, None)) is not None and now > granted[1]:
            self.steps_per_s = max(self.steps_per_s * 0.5, (step - granted[0]) / (now - granted[1]))

    def piece(self) -> int:
        """Steps to grant at once."""
        return max(1, int(self.steps_per_s * PIECE_S)) if self.steps_per_s else FIRST_PIECE_STEPS

    def left_s(self, steps: int) -> float | None:
        """For how long so many steps will last; None while that is not known."""
        return steps / self.steps_per_s if self.steps_per_s else None
