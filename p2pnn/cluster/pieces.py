"""A charter on its way: cut into messages, and put together again.

A message holds 48 KiB of it; most charters are one message. The pieces of one charter come from one sender in order, as
links keep it. A receiver puts together one charter at a time, so a peer can make it hold no more than one charter's bytes;
a piece that does not fit is dropped, and the leader sends again what was not acknowledged.
"""

from __future__ import annotations

from collections.abc import Iterator

from p2pnn.cluster.charter import NOTHING, Version
from p2pnn.types import NodeId
from p2pnn.wire.charter import CHARTER_BYTES_MAX, CHARTER_PIECE_BYTES, CharterPiece


def cut(data: bytes, version: Version, committed: Version, cluster: str) -> Iterator[CharterPiece]:
    """The messages that carry an encoded charter. committed: the highest version that the sender knows to be committed."""
    for start in range(0, len(data), CHARTER_PIECE_BYTES):
        piece = data[start : start + CHARTER_PIECE_BYTES]
        yield CharterPiece(*version, *committed, start, len(data), piece, cluster)


class Assembly:
    """At most one charter that is not whole yet."""

    def __init__(self) -> None:
        self._source = NodeId("")
        self._version = NOTHING
        self._total_bytes = 0
        self._data = bytearray()

    def add(self, source: NodeId, piece: CharterPiece) -> bytes | None:
        """The encoded charter where this piece makes it whole. The caller has seen that its version is wanted."""
        version = Version(piece.charter_term, piece.revision)
        if piece.start == 0 and len(piece.piece) == piece.total_bytes:
            return piece.piece
        if piece.start == 0:
            self._source, self._version, self._total_bytes = source, version, piece.total_bytes
            self._data = bytearray(piece.piece)
        elif (source, version, piece.total_bytes, piece.start) != (
            self._source,
            self._version,
            self._total_bytes,
            len(self._data),
        ):
            return None
        else:
            self._data += piece.piece
        if len(self._data) > min(self._total_bytes, CHARTER_BYTES_MAX):
            self._forget()
            return None
        if len(self._data) < self._total_bytes:
            return None
        data = bytes(self._data)
        self._forget()
        return data

    def _forget(self) -> None:
        self._version, self._data = NOTHING, bytearray()
