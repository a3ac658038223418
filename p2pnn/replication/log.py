"""The log: updates in the order that primaries gave them, and which of each worker's has its place.

Entry n follows entry n − 1. `ordered` is the generation whose primary gave the entry its number; a generation has one primary,
which never gives a number twice, so (number, ordered) says which update it is. The oldest entries go when all in-sync
replicas know them to be committed and there are more than are kept for who was away.
"""

from __future__ import annotations

from typing import Annotated, Final, Protocol

import msgspec
from msgspec import Meta

from p2pnn.errors import RemoteProtocolError
from p2pnn.replication.staging import Update
from p2pnn.wire.fields import Count
from p2pnn.wire.messages import CloseReason


class Entry:
    """since: when it came here. update: None for one without bytes: that was refused (only its sequence counts; `error` says
    why), or that is the shard's own (`SHARD`). head: what the owner has decided of it, opaque here.

    end_bytes: the log's, of all its entries up to this one, those that are gone included.
    """

    __slots__ = ("end_bytes", "error", "head", "number", "ordered", "sequence", "since", "update", "worker")

    def __init__(
        self,
        number: int,
        ordered: int,
        worker: int,
        sequence: int,
        update: Update | None,
        since: float,
        error: str = "",
        head: bytes = b"",
    ) -> None:
        self.number = number
        self.ordered = ordered
        self.worker = worker
        self.sequence = sequence
        self.update = update
        self.since = since
        self.error = error
        self.head = head
        self.end_bytes = 0

    @property
    def is_complete(self) -> bool:
        return self.update is None or self.update.is_complete

    @property
    def total_bytes(self) -> int:
        return 0 if self.update is None else self.update.total_bytes


SHARD: Final = 0
"""The worker of the entries that no worker pushed: the shard's own decisions."""


class Log:
    """floor: entries up to this number are not here (any more)."""

    def __init__(self, floor: int = 0) -> None:
        self.floor = floor
        self._floor_bytes = 0
        self._entries: list[Entry] = []
        self._latest: dict[int, int] = {}

    @property
    def last(self) -> int:
        return self.floor + len(self._entries)

    def get(self, number: int) -> Entry | None:
        at = number - self.floor - 1
        return self._entries[at] if 0 <= at < len(self._entries) else None

    def after(self, number: int) -> list[Entry]:
        """The entries behind this number."""
        return self._entries[max(0, number - self.floor) :]

    def between(self, after: int, to: int) -> list[Entry]:
        """The entries behind one number, up to another."""
        return self._entries[max(0, after - self.floor) : max(0, to - self.floor)]

    def latest(self, worker: int) -> int:
        """The last sequence of this worker in the log; 0 where there is none."""
        return self._latest.get(worker, 0)

    def append(self, entry: Entry) -> None:
        assert entry.number == self.last + 1, f"entry {entry.number} does not follow {self.last}"
        entry.end_bytes = self._end_bytes(self.last) + entry.total_bytes
        self._entries.append(entry)
        self._latest[entry.worker] = entry.sequence

    def truncate(self, number: int) -> list[Entry]:
        """Drop all behind this number; returns them."""
        at = max(0, number - self.floor)
        dropped, self._entries = self._entries[at:], self._entries[:at]
        if dropped:
            self._latest = {entry.worker: entry.sequence for entry in self._entries}
        return dropped

    def complete(self, known: int) -> int:
        """Up to which number all bytes are here; up to `known` they are."""
        for entry in self.after(known):
            if not entry.is_complete:
                return entry.number - 1
        return self.last

    def reset(self, floor: int) -> None:
        """Empty, behind a state that was loaded."""
        self.floor = floor
        self._floor_bytes = 0
        self._entries, self._latest = [], {}

    def trim(self, to: int, entries: int, bytes_: int) -> None:
        """Drop entries up to a number, the oldest first, until no more than so many, of so many bytes, are left of them."""
        spare = min(to - self.floor, len(self._entries))
        if spare <= 0:
            return
        kept_bytes = self._entries[spare - 1].end_bytes - self._floor_bytes
        count = 0
        while count < spare and (spare - count > entries or kept_bytes > bytes_):
            kept_bytes -= self._entries[count].total_bytes
            count += 1
        for entry in self._entries[:count]:
            if self._latest.get(entry.worker) == entry.sequence:
                del self._latest[entry.worker]
        self._floor_bytes = self._end_bytes(self.floor + count)
        del self._entries[:count]
        self.floor += count

    def let_go(self, after: int, to: int, keep_copies: bool) -> None:
        """What is behind one number, up to another, is applied, and its bytes may change from now on: keep copies, or nothing."""
        for entry in self.between(after, to):
            if entry.update is not None:
                entry.update.let_go(keep_copies)

    def open_bytes(self, committed: int) -> int:
        """Bytes of the entries behind what is committed."""
        return self._end_bytes(self.last) - self._end_bytes(committed)

    def _end_bytes(self, number: int) -> int:
        entry = self.get(number)
        return self._floor_bytes if entry is None else entry.end_bytes


class _Head(msgspec.Struct, frozen=True, array_like=True):
    format: Annotated[int, Meta(ge=1, le=1)]
    sequences: dict[Count, Count]


FORMAT: Final = 1
_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(_Head)


class Sequences(Protocol):
    """The last sequence of each worker among what is committed, as far as the log does not say it. An owner whose state knows
    that anyway is asked, instead of keeping it twice: then it says `applied`, up to which its state knows.
    """

    def __len__(self) -> int: ...

    def __contains__(self, worker: int) -> bool: ...

    def last(self, worker: int) -> int:
        """0 where there is none."""

    def committed(self, worker: int, sequence: int) -> None:
        """This one is."""

    def encode(self) -> bytes:
        """What travels before the owner's state; nothing, where it is a part of that."""

    def load(self, data: bytes) -> None:
        """What was encoded: the owner's state comes right after it."""


class Sessions:
    """The last sequence of each worker incarnation among what is committed: with it, an update counts once, however often it
    is pushed. Part of the replicated state, so it travels with it, and lies in its checkpoints.
    """

    def __init__(self) -> None:
        self._sequences: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._sequences)

    def __contains__(self, worker: int) -> bool:
        return worker in self._sequences

    def last(self, worker: int) -> int:
        return self._sequences.get(worker, 0)

    def committed(self, worker: int, sequence: int) -> None:
        self._sequences[worker] = sequence

    def encode(self) -> bytes:
        return _encoder.encode(_Head(FORMAT, self._sequences))

    def load(self, data: bytes) -> None:
        """Become the table of `encode`. Raises RemoteProtocolError for bytes that are none."""
        self._sequences = Sessions.decode(data)._sequences

    @classmethod
    def decode(cls, data: bytes) -> Sessions:
        """Raises RemoteProtocolError for bytes that are no such table."""
        try:
            head = _decoder.decode(data)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise RemoteProtocolError(
                CloseReason.MALFORMED, f"the head of a shard's state, {len(data)} bytes, cannot be read: {error}"
            ) from None
        sessions = cls()
        sessions._sequences = dict(head.sequences)
        return sessions
