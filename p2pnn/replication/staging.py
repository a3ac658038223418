"""Updates that are arriving: each is received whole before anything is done with it, because half an update cannot be undone.

Pieces come in any order, twice, or never. Memory is bounded: when there is no room for a new update, the one of which nothing
has arrived for longest gives way, if it has been idle; otherwise the new one is dropped, and its worker sends it again.
"""

from __future__ import annotations

from p2pnn.replication.limits import Limits

Body = bytes | bytearray | memoryview
"""Bytes that are never opened here. Whoever receives into memory of its own hands in views of it; they are let go when the
update has been applied and is no longer retained."""

Key = tuple[int, int]
"""Worker's incarnation and sequence."""


class Update:
    """The bytes of one push, as far as they are here. offered, accepted, error, head: how far its check is, on the primary.

    is_gone: they were all here, were applied, and are not here any more.
    """

    __slots__ = (
        "accepted",
        "claimed",
        "error",
        "head",
        "held_bytes",
        "is_gone",
        "key",
        "offered",
        "pieces",
        "total_bytes",
        "touched",
    )

    def __init__(self, key: Key, total_bytes: int, now: float) -> None:
        self.key = key
        self.total_bytes = total_bytes
        self.pieces: dict[int, Body] = {}
        self.held_bytes = 0
        self.touched = now
        self.claimed = False
        self.offered = False
        self.accepted = False
        self.error = ""
        self.head = b""
        self.is_gone = False

    @property
    def is_complete(self) -> bool:
        return self.held_bytes == self.total_bytes

    def add(self, start: int, body: Body, now: float, pieces_max: int) -> bool:
        """Keep a piece; whether it is new. Pieces that overlap cannot be told from each other: then all are dropped."""
        size = len(body)
        if size == 0 or start in self.pieces or start + size > self.total_bytes or self.is_complete:
            return False
        self.touched = now
        self.pieces[start] = body
        self.held_bytes += size
        if len(self.pieces) > pieces_max or (self.held_bytes >= self.total_bytes and not self._fits_together()):
            self.pieces.clear()
            self.held_bytes = 0
            return False
        return True

    def body(self) -> tuple[Body, ...]:
        """The pieces in their order."""
        return tuple(self.pieces[start] for start in sorted(self.pieces))

    def let_go(self, keep_copies: bool) -> None:
        """The memory of its pieces may change from now on."""
        if keep_copies:
            self.pieces = {start: bytes(body) for start, body in self.pieces.items()}
        else:
            self.pieces.clear()
            self.is_gone = True

    def _fits_together(self) -> bool:
        at = 0
        for start in sorted(self.pieces):
            if start != at:
                return False
            at += len(self.pieces[start])
        return at == self.total_bytes


class Staging:
    """The updates of one replica that have no place in its log yet, and those in its log whose bytes are not all here."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._updates: dict[Key, Update] = {}
        self._bytes = 0
        self.dropped = 0

    def get(self, key: Key) -> Update | None:
        return self._updates.get(key)

    def waiting(self) -> list[Key]:
        """Updates that were accepted and have no number yet."""
        return [key for key, update in self._updates.items() if update.accepted]

    def since(self, time: float) -> list[Update]:
        """Updates of which something has come since then."""
        return [update for update in self._updates.values() if update.touched >= time]

    def open(self, key: Key, total_bytes: int, now: float) -> Update | None:
        """The update of this key, a new one if there is none; None where there is no room for it."""
        update = self._updates.get(key)
        if update is not None and (update.total_bytes == total_bytes or update.claimed):
            return update if update.total_bytes == total_bytes else None
        if update is not None:
            self.remove(key)
        if not self._make_room(total_bytes, now):
            self.dropped += 1
            return None
        return self._keep(Update(key, total_bytes, now))

    def claim(self, key: Key, total_bytes: int, now: float) -> Update:
        """The update that has a number now: it stays until it is complete, whatever room there is (the log has its own bound)."""
        update = self._updates.get(key)
        if update is None or update.total_bytes != total_bytes:
            self.remove(key)
            update = self._keep(Update(key, total_bytes, now))
        update.claimed = True
        if update.is_complete:
            self.remove(key)
        return update

    def remove(self, key: Key) -> None:
        update = self._updates.pop(key, None)
        if update is not None:
            self._bytes -= update.total_bytes

    def clear(self) -> None:
        self._updates.clear()
        self._bytes = 0

    def forget_checks(self) -> None:
        """What is staged was checked by a primary that this node is not (any more)."""
        for update in self._updates.values():
            update.offered = update.accepted = False
            update.error, update.head = "", b""

    def _keep(self, update: Update) -> Update:
        self._updates[update.key] = update
        self._bytes += update.total_bytes
        return update

    def _make_room(self, total_bytes: int, now: float) -> bool:
        limits = self._limits
        if total_bytes > limits.staged_bytes_max:
            return False
        idle = sorted(
            (update.touched, key)
            for key, update in self._updates.items()
            if not update.claimed and now - update.touched >= limits.staged_idle_s
        )
        while len(self._updates) >= limits.staged_max or self._bytes + total_bytes > limits.staged_bytes_max:
            if not idle:
                return False
            self.remove(idle.pop(0)[1])
        return True
