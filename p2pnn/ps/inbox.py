"""Pushes on their way into a shard: who is welcome, and what is whole.

At most `layout.WINDOW` pushes of a worker are here, numbered from the one behind the last that is logged on. Their parts come in
any order. A push is *ready* when it is whole and next in its worker's row; of those that are, they are taken in the order
in which they got whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set

from p2pnn.ps.layout import WINDOW
from p2pnn.ps.messages import Push, Refusal, Worker
from p2pnn.ps.roster import Roster
from p2pnn.ps.staging import Staged, Staging


class Inbox:
    """part_bytes: of each part of a push. staging: where they lie."""

    def __init__(self, part_bytes: Sequence[int], roster: Roster, staging: Staging) -> None:
        self._part_bytes = part_bytes
        self._roster = roster
        self._staging = staging
        self._staged: dict[tuple[Worker, int], Staged] = {}  # (worker, sequence)
        self._whole: dict[tuple[Worker, int], Staged] = {}
        self.received_bytes = 0

    def unwelcome(self, push: Push, generation: int, set_aside: Set[Worker]) -> Refusal | None:
        """Why not to take it at all, if so."""
        if push.worker not in self._roster:
            return Refusal.UNKNOWN
        if push.generation != generation:
            return Refusal.STALE_GENERATION
        if push.worker in set_aside:
            return Refusal.SET_ASIDE
        fits = 0 <= push.part < len(self._part_bytes) and push.byte_count == self._part_bytes[push.part]
        return None if fits else Refusal.SHAPE

    def is_last(self, push: Push) -> bool:
        """Whether it is the part with the highest index: what is said once per push is said with it."""
        return push.part >= len(self._part_bytes) - 1

    def arrived(self, push: Push) -> Refusal | None:
        """A part of a welcome push that is not logged yet lies in its slot. GAP where the push can have none."""
        if push.sequence > self._roster[push.worker].sequence + WINDOW:
            return Refusal.GAP
        key = push.worker, push.sequence
        staged = self._staged.get(key)
        if staged is None:
            staged = self._staged[key] = self._staging.open(push)
        staged.header = push
        if push.part in staged.missing:
            self.received_bytes += push.byte_count
            staged.missing.remove(push.part)
            if not staged.missing:
                self._whole[key] = staged
        return None

    def ready(self, next_of: Callable[[Worker], int]) -> Iterator[Staged]:
        """Whole pushes that may be decided next, in the order in which they got whole; what is decided must be closed.

        next_of: the number of a worker's push that is next.
        """
        for (worker, sequence), staged in list(self._whole.items()):
            if sequence == next_of(worker):
                yield staged

    def get(self, worker: Worker, sequence: int) -> Staged | None:
        """What is here of a push."""
        return self._staged.get((worker, sequence))

    @property
    def whole(self) -> int:
        """How many pushes wait whole."""
        return len(self._whole)

    def take(self, staged: Staged) -> None:
        """The push is being decided: it waits no more, but stays where it is."""
        self._whole.pop((staged.header.worker, staged.header.sequence), None)

    def close(self, staged: Staged) -> None:
        """The push is decided: its slot is the worker's again."""
        self.take(staged)
        self._staged.pop((staged.header.worker, staged.header.sequence), None)

    def drop(self, worker: Worker) -> None:
        """Give up all that is here of a worker."""
        for key in [key for key in self._staged if key[0] == worker]:
            del self._staged[key]
            self._whole.pop(key, None)

    @property
    def workers(self) -> list[Worker]:
        """Those of whom something is here."""
        return list(dict.fromkeys(worker for worker, _ in self._staged))
