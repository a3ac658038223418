"""Leftovers: checkpoint parts and parcels in the store that no record names.

A checkpoint of which one node failed to write its part leaves the parts of the others behind, most of all on a full disk; so does
one under way when its job ends. No message tells who has what, so each node looks for itself, when a job has ended and when
it starts, and only while no job that it knows is at work. Even then a record may be on its way that names what lies here (a
coordinator that was killed comes back with a newer checkpoint than its peers know), so what is younger than a day stays.

Only what this program writes for its own use counts as a leftover, told by its first bytes. Data and specifications go by
`p2pnn data rm`, or stay: a person gave them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from p2pnn.data.blobs import BlobStore, blob_id
from p2pnn.errors import StorageError
from p2pnn.job import records
from p2pnn.job.records import JobRecord
from p2pnn.node.parcels import INLINE_BYTES_MAX
from p2pnn.types import BlobId

_PART: Final = b'{"__metadata__":{"p2pnn":'
"""A checkpoint part begins so behind the eight bytes of its header's length (executor.parts)."""

_PARCELS: Final = (b"\xa3job", b"\xa5nodes")
"""A record, a manifest and a plan are MessagePack maps whose first key is one of these; that of a specification is another."""

_REPORTS: Final = b"\x94\x19", b"\x95\x19"
"""The report `Done` of a job's script: an array of four items, or of five, whose first is its tag."""

_HEAD_BYTES: Final = 40

YOUNG_S: Final = 86_400.0
"""Younger blobs are spared: a node that was away so long is rare, and a day's leftovers fit on a disk."""


class _Initial(msgspec.Struct):
    """What matters here of a job's specification."""

    initial: tuple[BlobId, ...] = ()


def leftovers(blobs: BlobStore, known: Iterable[JobRecord], now_s: float) -> Iterator[BlobId]:
    """The blobs that are leftovers while these records are all there are. now_s: seconds since 1970.

    Raises StorageError where the disk fails.
    """
    named: set[str] = set()
    for record in known:
        named |= {record.spec, *record.part_blobs(), *_initial(blobs, record.spec)}
        data = records.encode(record)
        if len(data) > INLINE_BYTES_MAX:
            named.add(blob_id(data))
    for blob, size in list(blobs.list()):
        try:
            if blob in named or now_s - blobs.path(blob).stat().st_mtime < YOUNG_S:
                continue
            if _is_ours(blobs.read(blob, 0, min(size, _HEAD_BYTES))):
                yield blob
        except (FileNotFoundError, StorageError):
            if blobs.has(blob):
                raise
            # removed meanwhile by somebody else


def _initial(blobs: BlobStore, spec: BlobId) -> tuple[BlobId, ...]:
    try:
        return msgspec.msgpack.decode(blobs.read(spec, 0, blobs.size(spec)), type=_Initial).initial
    except (StorageError, msgspec.MsgspecError, RecursionError):
        return ()


def _is_ours(head: bytes) -> bool:
    return head[8:].startswith(_PART) or head.startswith(_REPORTS) or _behind_map(head).startswith(_PARCELS)


def _behind_map(head: bytes) -> bytes:
    """What follows the head of a MessagePack map, its first key; empty for anything else."""
    if head[:1] == b"\xde":
        return head[3:]
    return head[1:] if head and head[0] & 0xF0 == 0x80 else b""
