"""A shard's whole state on its way to a learner, in pieces: cut on the primary, put together on the learner.

Bytes are the head (`log.Sessions`) and then the shard's own. A piece never has bytes of both. Pieces come in order; the
receiver says how many bytes it has, and the sender goes on there when nothing moves. Each side holds one state at a time.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from p2pnn.replication.holding import Shard
from p2pnn.replication.limits import Limits
from p2pnn.replication.staging import Body
from p2pnn.types import NodeId
from p2pnn.wire.messages import StatePiece


class Outgoing:
    """The state after entry `number`, for one learner."""

    def __init__(self, number: int, head: bytes, state: Sequence[Body], limits: Limits, now: float) -> None:
        self.number = number
        self.held_bytes = 0
        self.moved_at = now
        self._head_bytes = len(head)
        self._pieces: dict[int, Body] = {}
        self._starts: list[int] = []
        self._window = limits.state_window
        self._sent = 0
        at = 0
        for part in (memoryview(head), *(memoryview(body) for body in state)):
            for start in range(0, len(part), limits.piece_bytes):
                piece = part[start : start + limits.piece_bytes]  # a view: a state is large
                self._pieces[at] = piece
                self._starts.append(at)
                at += len(piece)
        self.total_bytes = at

    def heard(self, held_bytes: int, now: float) -> None:
        """The learner has so many bytes."""
        if held_bytes > self.held_bytes:
            self.held_bytes = held_bytes
            self.moved_at = now

    def again(self, now: float) -> None:
        """Nothing moves: send again what the learner has not."""
        self._sent = bisect_left(self._starts, self.held_bytes)
        self.moved_at = now

    @property
    def is_over(self) -> bool:
        return self.held_bytes >= self.total_bytes

    def next_pieces(self, shard: Shard, generation: int) -> list[tuple[StatePiece, Body]]:
        """What may be under way now and is not."""
        begun = bisect_left(self._starts, self.held_bytes)
        self._sent = max(self._sent, begun)
        chosen = self._starts[self._sent : begun + self._window]
        self._sent += len(chosen)
        return [
            (
                StatePiece(*shard, generation, self.number, start, self._head_bytes, self.total_bytes),
                self._pieces[start],
            )
            for start in chosen
        ]


class Assembly:
    """At most one state that is not whole yet."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._what: tuple[NodeId, int, int, int] | None = None
        self._head_bytes = 0
        self._pieces: list[tuple[int, Body]] = []
        self._held_bytes = 0

    def add(self, source: NodeId, message: StatePiece, body: Body) -> int:
        """Keep a piece if it is the next one; how many bytes of this state are here now."""
        what = (source, message.number, message.head_bytes, message.total_bytes)
        if what != self._what:
            if message.start != 0 or message.total_bytes > self._bytes_max:
                return 0
            self._what, self._pieces, self._held_bytes = what, [], 0
            self._head_bytes = message.head_bytes
        end = message.start + len(body)
        crosses = message.start < message.head_bytes < end
        if message.start == self._held_bytes and end <= message.total_bytes and not crosses:
            self._pieces.append((message.start, body))
            self._held_bytes = end
        return self._held_bytes

    def take(self) -> tuple[bytes, tuple[Body, ...]]:
        """The head and the shard's own bytes of the whole state, which is forgotten here."""
        head = b"".join(bytes(body) for start, body in self._pieces if start < self._head_bytes)
        state = tuple(body for start, body in self._pieces if start >= self._head_bytes)
        self._what, self._pieces, self._held_bytes = None, [], 0
        return head, state
