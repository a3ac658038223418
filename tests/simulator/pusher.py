"""A worker of bare replicas, which `ps.port` is to a shard: number updates, send them to the primary until they are acknowledged.

An update is kept until it is acknowledged, and sent again to a new primary at once; the shard counts it once. The owner hands in
configurations as the charter commits them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from p2pnn.errors import QueueFullError
from p2pnn.replication.configuration import Configuration
from p2pnn.replication.holding import Parcel, Shard
from p2pnn.replication.limits import Limits, Timing
from p2pnn.replication.outcomes import FetchConfiguration
from p2pnn.replication.staging import Body
from p2pnn.types import NodeId
from p2pnn.wire.fields import Message
from p2pnn.wire.messages import Push, Pushed, Superseded


class Finished(NamedTuple):
    """To the pusher's owner: the update is held by all in-sync replicas, or was refused (`error`), and needs no more care."""

    sequence: int
    answer: bytes
    error: str


class _Pending:
    __slots__ = ("again_at", "pieces", "total_bytes", "tries")

    def __init__(self, pieces: Sequence[tuple[int, Body]], total_bytes: int) -> None:
        self.pieces = pieces
        self.total_bytes = total_bytes
        self.tries = 0
        self.again_at = 0.0


class Pusher:
    """One worker incarnation's, for one shard. worker: a random number that its process drew. Sequences begin at 1."""

    def __init__(
        self, shard: Shard, worker: int, now: float, limits: Limits | None = None, timing: Timing | None = None
    ) -> None:
        self.shard = shard
        self.worker = worker
        self.configuration: Configuration | None = None
        self._limits = limits or Limits()
        self._timing = timing or Timing()
        self._pending: dict[int, _Pending] = {}
        self._sequence = 0
        self._known = 0
        self._fetch_due = now
        self._outbox: list[Parcel] = []
        self._events: deque[Finished | FetchConfiguration] = deque()

    @property
    def may_push(self) -> bool:
        """Whether another update may be under way now."""
        return len(self._pending) < self._limits.window

    def push(self, update: Sequence[Body], now: float) -> int:
        """Send an update; its parts must not change until Finished tells of the sequence that is returned.

        Raises QueueFullError where may_push is false, ValueError for no bytes.
        """
        if not self.may_push:
            raise QueueFullError(
                f"{len(self._pending)} updates of shard {self.shard.number} wait for its primary; wait for Finished"
            )
        pieces, at, size = [], 0, self._limits.piece_bytes
        for part in update:
            for start in range(0, len(part), size):
                pieces.append((at, part[start : start + size]))
                at += len(pieces[-1][1])
        if at == 0:
            raise ValueError("an update without a byte")
        self._sequence += 1
        self._pending[self._sequence] = _Pending(pieces, at)
        self._transmit(self._sequence, now)
        return self._sequence

    def configured(self, configuration: Configuration, now: float) -> None:
        """The charter has committed this configuration: what is not acknowledged goes to its primary."""
        if self.configuration is None or configuration.generation > self.configuration.generation:
            self.configuration = configuration
            self._known = max(self._known, configuration.generation)
            for sequence, pending in self._pending.items():
                pending.tries = 0
                self._transmit(sequence, now)

    def receive(self, source: NodeId, message: Message, now: float) -> None:
        """An answer of this shard to this worker; others are ignored."""
        match message:
            case Pushed() if (message.job, message.shard, message.worker) == (*self.shard, self.worker):
                self._finish(message)
                self._hear_of(message.generation, now)
            case Superseded() if (message.job, message.shard) == self.shard:
                self._hear_of(message.generation, now)

    def get_timer(self) -> float | None:
        """When handle_timer wants to be called next."""
        due = [pending.again_at for pending in self._pending.values()]
        if self._is_behind():
            due.append(self._fetch_due)
        return min(due, default=None)

    def handle_timer(self, now: float) -> None:
        if self._is_behind():
            self._fetch(now)
        for sequence, pending in self._pending.items():
            if now >= pending.again_at:
                self._transmit(sequence, now)
                self._fetch(now)

    def messages_to_send(self, now: float) -> list[Parcel]:
        """Messages since the last call, each with its body; any may be lost."""
        out, self._outbox = self._outbox, []
        return out

    def next_event(self) -> Finished | FetchConfiguration | None:
        return self._events.popleft() if self._events else None

    # --- inside

    def _finish(self, message: Pushed) -> None:
        for sequence in [one for one in self._pending if one <= message.sequence]:
            del self._pending[sequence]
            is_last = sequence == message.sequence
            answer, error = (message.answer, message.error) if is_last else (b"", "")
            self._events.append(Finished(sequence, answer, error))

    def _transmit(self, sequence: int, now: float) -> None:
        pending, timing = self._pending[sequence], self._timing
        on_their_way_s = sum(one.total_bytes for one in self._pending.values()) / timing.slow_bytes_per_s
        again_s = min(timing.push_again_s * 2**pending.tries, timing.push_again_max_s)
        pending.again_at = now + again_s + on_their_way_s
        pending.tries = min(pending.tries + 1, 16)
        if self.configuration is None:
            self._fetch(now)
            return
        where = (*self.shard, self.configuration.generation, self.worker, sequence)
        for start, piece in pending.pieces:
            self._outbox.append((self.configuration.primary.id, Push(*where, start, pending.total_bytes), piece))

    def _is_behind(self) -> bool:
        return self._known > (0 if self.configuration is None else self.configuration.generation)

    def _hear_of(self, generation: int, now: float) -> None:
        self._known = max(self._known, generation)
        if self._is_behind():
            self._fetch(now)

    def _fetch(self, now: float) -> None:
        if now >= self._fetch_due:
            self._fetch_due = now + self._timing.fetch_again_s
            self._events.append(FetchConfiguration())
