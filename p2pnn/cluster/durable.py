"""What a node must have on its disk before it says so: its term, its vote in that term, and its charter.

A node that forgets its vote votes twice, and two leaders of one term follow. So the core keeps two states: the one in
memory, by which it decides, and the one that its disk is known to have, which is all that it tells others. `Stable` keeps
both. At most one write is under way; what changes meanwhile goes into the next one.

A failed write takes the memory back to what the disk has: nobody was told of the rest. The file may hold the newer state
all the same (its rename was done and the folder's fsync failed); that is as if the answer had been lost on its way.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from p2pnn.cluster import charter as charters
from p2pnn.cluster.charter import NOTHING, Charter, Version
from p2pnn.errors import CharterError
from p2pnn.types import NodeId
from p2pnn.wire.charter import CHARTER_BYTES_MAX, Term

FORMAT: Final = 1
FILE_BYTES_MAX: Final = CHARTER_BYTES_MAX + 256
"""The file of the largest charter; a longer one is none of ours."""


class Durable(msgspec.Struct, frozen=True):
    """term: the highest that this node has seen. vote: whom it gave its vote in that term. charter: None before it has one."""

    term: int = 0
    vote: NodeId | None = None
    charter: Charter | None = None

    @property
    def version(self) -> Version:
        return NOTHING if self.charter is None else self.charter.version


class _File(msgspec.Struct, frozen=True, array_like=True):
    format: int
    term: Term
    vote: Annotated[str, Meta(pattern=r"\A([0-9a-f]{32})?\Z")]
    charter: Annotated[bytes, Meta(max_length=CHARTER_BYTES_MAX)]
    sha256: Annotated[bytes, Meta(min_length=32, max_length=32)]


_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(_File)


def encode(durable: Durable) -> bytes:
    """The durable state as a file: MessagePack, a format number first, a hash of the rest last."""
    charter = b"" if durable.charter is None else charters.encode(durable.charter)
    vote = durable.vote or ""
    return _ENCODER.encode(_File(FORMAT, durable.term, vote, charter, _digest(durable.term, vote, charter)))


def decode(data: bytes, name: str) -> Durable:
    """The state in a file called `name`.

    Raises CharterError where it is damaged or newer; then the node must not start, because it might vote twice.
    """
    try:
        found_format = _format_of(data)
        if found_format > FORMAT:
            raise CharterError(f"{name} has format {found_format}, this p2pnn reads up to {FORMAT}; use a newer p2pnn")
        file = _DECODER.decode(data)
        if file.sha256 != _digest(file.term, file.vote, file.charter):
            raise ValueError("its hash is another")
        charter = charters.decode(file.charter) if file.charter else None
    except CharterError as error:
        raise CharterError(str(error) if name in str(error) else f"{name}: {error}") from None
    except (msgspec.MsgspecError, UnicodeError, RecursionError, ValueError) as error:
        raise CharterError(
            f"{name} is damaged ({error}): this node must not vote; restore the file, or remove the node from its cluster "
            "and let it join with an empty state folder"
        ) from None
    return Durable(file.term, NodeId(file.vote) if file.vote else None, charter)


def _format_of(data: bytes) -> int:
    """The number at the file's head, whatever follows it."""
    if len(data) > FILE_BYTES_MAX:
        raise ValueError(f"it has {len(data)} bytes, over the limit of {FILE_BYTES_MAX}")
    first: Any = msgspec.msgpack.decode(data)
    if not isinstance(first, list) or not first or not isinstance(first[0], int):
        raise ValueError("it has no format number")
    return first[0]


def _digest(term: int, vote: str, charter: bytes) -> bytes:
    return hashlib.sha256(b"%d %s %s" % (term, vote.encode(), charter)).digest()


class Stable:
    """memory: the state to decide by. disk: the state that is safe to tell.

    Change by `hold`; then take `next_write` until it is None, and say how each write ended.
    """

    def __init__(self, durable: Durable) -> None:
        self.memory = durable
        self.disk = durable
        self._number = 0
        self._writing: Durable | None = None

    @property
    def is_synced(self) -> bool:
        """Whether the disk has all that memory has."""
        return self.memory is self.disk

    @property
    def is_idle(self) -> bool:
        """Whether no write is under way."""
        return self._writing is None

    def hold(self, **changes: Any) -> None:
        """Change fields of the state in memory: term, vote, charter."""
        self.memory = msgspec.structs.replace(self.memory, **changes)

    def next_write(self) -> tuple[int, Durable] | None:
        """What to write now, and its number; None while a write is under way or nothing has changed."""
        if self._writing is not None or self.is_synced:
            return None
        self._number += 1
        self._writing = self.memory
        return self._number, self.memory

    def wrote(self, number: int) -> bool:
        """The write of this number is durable; whether that is news."""
        if number != self._number or self._writing is None:
            return False
        self.disk, self._writing = self._writing, None
        return True

    def failed(self, number: int) -> bool:
        """The write of this number failed: back to what the disk has; whether that is news."""
        if number != self._number or self._writing is None:
            return False
        self.memory, self._writing = self.disk, None
        return True
