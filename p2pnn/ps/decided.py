"""Which steps of a worker its shards have decided, and which of those none of them has taken. Pure.

Each shard decides for its own range. A step counts as trained where any shard has taken its gradient: trained again it would be
in that range twice. What all have refused was not trained: because it was too old, or for what it holds (`messages.BAD`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from p2pnn.ps.messages import BAD, Refusal

TAKEN: Final = 0
OLD: Final = 1
HELD_BAD: Final = 2
_BITS: Final = 2
_MASK: Final = (1 << 2 * _BITS) - 1


def fate(why: Refusal | None) -> int:
    """What became of a push, in two bits: taken, refused though it is good, refused for what it holds."""
    return TAKEN if why is None else HELD_BAD if why in BAD else OLD


def with_fate(lately: int, why: Refusal | None) -> int:
    """What became of a worker's last pushes, as many as it may have under way: the newest in the lowest bits."""
    return (lately << _BITS | fate(why)) & _MASK


def fate_of(lately: int, before: int) -> int:
    """Of the push so many before the newest; taken, where that is not known."""
    return min(lately >> _BITS * before & (1 << _BITS) - 1, HELD_BAD) if before <= 1 else TAKEN


class _Shard(Protocol):
    @property
    def unacknowledged(self) -> int: ...

    def fate(self, push: int) -> int: ...


class Decided:
    """steps, pushes: how many all shards have decided. on_refused(first, stop, bad) is told of steps that none has taken."""

    def __init__(self, step: int) -> None:
        self.steps, self.pushes = step, 0
        self.begun = 0  # pushes
        self.on_refused: Callable[[int, int, bool], None] = lambda first, stop, bad: None
        self._unsure: deque[tuple[int, int]] = deque()  # (push, steps that it and those before it hold)

    def begins(self, steps: int) -> None:
        """A push begins; it and those before it hold so many steps."""
        self.begun += 1
        self._unsure.append((self.begun, steps))

    def heard(self, shards: Sequence[_Shard]) -> None:
        """One of the shards has answered."""
        decided = self.begun - max(shard.unacknowledged for shard in shards)
        while self._unsure and self._unsure[0][0] <= decided:
            push, steps = self._unsure.popleft()
            fates = [shard.fate(push) for shard in shards]
            if TAKEN not in fates:
                self.on_refused(self.steps, steps, OLD not in fates)
            self.steps, self.pushes = steps, push
