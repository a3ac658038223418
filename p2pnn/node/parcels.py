"""Records of any size in messages of bounded size: a large one goes as the name of a blob that holds it.

A message's header has at most 64 KiB, and must never wait behind a large one. The record of a long job, or the manifest
of a model with many tensors, has more. Such a record is put into the blob store, and only its name travels; the receiver
fetches it on the data link, like any blob, and checks its hash. The name follows from the bytes, so whoever has the record can
forget its blob.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

import msgspec

from p2pnn.data.blobs import BlobStore, blob_id
from p2pnn.errors import StorageError
from p2pnn.node.blobs import BlobExchange
from p2pnn.types import BlobId, NodeId

INLINE_BYTES_MAX: Final = 24 * 1024
"""Larger records travel as blobs. Prepare carries two, and a list of nodes; its header must stay below 64 KiB."""

RECORD_BYTES_MAX: Final = 32 << 20
"""A record that a peer names is not read beyond this."""

_NAME_HEAD: Final = b"\xd9\x40"
"""MessagePack of a text of 64 bytes begins so. All records are maps or arrays, which begin otherwise."""


def pack(data: bytes, blobs: BlobStore) -> bytes:
    """The record itself, or MessagePack of the name of the blob that now holds it. Raises StorageError."""
    return data if len(data) <= INLINE_BYTES_MAX else msgspec.msgpack.encode(blobs.put(data))


def is_name(data: bytes) -> bool:
    """Whether a packed record is the name of a blob."""
    return len(data) == len(_NAME_HEAD) + 64 and data.startswith(_NAME_HEAD)


async def unpack(
    data: bytes, exchange: BlobExchange, sources: Iterable[NodeId], size_max: int = RECORD_BYTES_MAX
) -> bytes:
    """The record, fetched where it is named. Raises StorageError where nobody has it or it is larger than `size_max`."""
    if not is_name(data):
        return data
    blob = BlobId(data[len(_NAME_HEAD) :].decode("ascii", "replace"))
    await exchange.fetch(blob, sources, size_max=size_max)
    size = await asyncio.to_thread(exchange.blobs.size, blob)
    if size > size_max:
        raise StorageError(f"record {blob[:12]}… has {size:,} bytes; at most {size_max:,} are read")
    return await asyncio.to_thread(exchange.blobs.read, blob, 0, size)


def forget(data: bytes, blobs: BlobStore) -> None:
    """Remove the blob that `pack` made of this record, if it made one."""
    if len(data) > INLINE_BYTES_MAX:
        blobs.remove(blob_id(data))
