"""Pushes on their way into a shard: who is welcome, where the bytes go, who has to wait for a place, and what is whole.

Per worker the pushes here are numbered without a gap from the last logged one on, and all but the newest are whole. Where pushes
come in rounds there is one per worker. Waiting is in the order of arrival; a link that breaks gives up its turn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence, Set
from dataclasses import dataclass

from p2pnn.ps.compression import Bytes
from p2pnn.ps.messages import Push, Refusal, Worker
from p2pnn.ps.roster import Roster
from p2pnn.ps.staging import Staged, Staging


@dataclass(eq=False, frozen=True, slots=True)
class Receive:
    """Read the part's bytes into `into`, then call `Shard.received`, or `Shard.broken` where they do not come."""

    into: Bytes
    staged: Staged
    part: int


@dataclass(frozen=True, slots=True)
class Discard:
    """Read the part's bytes and drop them. why: None for a push that is known already."""

    why: Refusal | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    """All places are taken: read no byte of it, and announce it again when `next_room` names the worker."""


class Inbox:
    """part_bytes: of each part of a push. places: pushes that can be here at once. whole: in the order in which they got so."""

    def __init__(self, part_bytes: Sequence[int], places: int, roster: Roster, *, one_each: bool) -> None:
        self._part_bytes = part_bytes
        self._roster = roster
        self._one_each = one_each
        self._staging = Staging(part_bytes, places)
        self._staged: dict[Worker, list[Staged]] = {}
        self._waiting: dict[Worker, bool] = {}  # whether `next_room` has named it
        self.whole: deque[Staged] = deque()
        self.received_bytes = 0

    @property
    def free(self) -> int:
        return self._staging.free

    def unwelcome(self, push: Push, generation: int, set_aside: Set[Worker]) -> Refusal | None:
        """Why not to receive it at all, if so."""
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

    def announce(self, push: Push) -> Receive | Discard | Wait:
        """A part of a welcome push that is not logged yet."""
        staged = self._staged.get(push.worker, [])
        known = next((one for one in staged if one.header.sequence == push.sequence), None)
        if known is None:
            expected = self._roster[push.worker].sequence + len(staged) + 1
            if push.sequence != expected or (staged and (self._one_each or not staged[-1].whole)):
                return Discard(Refusal.GAP)
            if not self._has_room(push.worker):
                return Wait()
            known = self._staging.open(push)
            self._staged.setdefault(push.worker, []).append(known)
        if push.part not in known.missing or push.part in known.receiving:
            return Discard()
        known.receiving.add(push.part)
        return Receive(self._staging.part(known, push.part), known, push.part)

    def received(self, receive: Receive) -> None:
        staged = receive.staged
        staged.receiving.discard(receive.part)
        self.received_bytes += receive.into.nbytes
        if self._staging.settle(staged):
            return
        staged.missing.discard(receive.part)
        if staged.whole:
            self.whole.append(staged)

    def broken(self, receive: Receive) -> None:
        receive.staged.receiving.discard(receive.part)
        self._staging.settle(receive.staged)

    def part(self, staged: Staged, index: int) -> Bytes:
        """The bytes of one part."""
        return self._staging.part(staged, index)

    def next_room(self) -> Worker | None:
        """A worker that was told to wait and for which there is a place now."""
        for worker in list(self._waiting)[: self._staging.free]:
            if not self._waiting[worker]:
                self._waiting[worker] = True
                return worker
        return None

    def disconnected(self, worker: Worker) -> None:
        self._waiting.pop(worker, None)

    def close(self, staged: Staged) -> None:
        """The push is decided, or not wanted: its place goes back."""
        worker = staged.header.worker
        self._staged[worker].remove(staged)
        if not self._staged[worker]:
            del self._staged[worker]
        self._staging.close(staged)

    def drop(self, worker: Worker) -> None:
        """Give up all that is here of a worker; it keeps its turn for a place only if it stays."""
        for staged in list(self._staged.get(worker, ())):
            self.close(staged)
        self.whole = deque(staged for staged in self.whole if staged.header.worker != worker)

    @property
    def workers(self) -> list[Worker]:
        """Those of whom something is here."""
        return list(self._staged)

    def grow(self, places: int) -> None:
        """Have at least so many places."""
        self._staging.grow(places)

    def _has_room(self, worker: Worker) -> bool:
        """Whether a place is free for it and for all who asked before it; else it waits."""
        before = list(self._waiting).index(worker) if worker in self._waiting else len(self._waiting)
        if self._staging.free > before:
            self._waiting.pop(worker, None)
            return True
        self._waiting[worker] = False
        return False
