"""Records of any size through messages of bounded size."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from p2pnn.errors import StorageError
from p2pnn.node import parcels
from tests.node.nodes import exchange, post


@pytest.mark.asyncio
@pytest.mark.parametrize("size", [0, 10, parcels.INLINE_BYTES_MAX, parcels.INLINE_BYTES_MAX + 1, 1_000_000])
async def test_a_record_comes_back_and_leaves_nothing(tmp_path: Path, size: int) -> None:
    the_post, _ = post()
    blobs = exchange(tmp_path, the_post)
    data = b"\x80" + bytes(size - 1) if size else b""
    packed = parcels.pack(data, blobs.blobs)
    assert len(packed) <= parcels.INLINE_BYTES_MAX
    assert parcels.is_name(packed) == (size > parcels.INLINE_BYTES_MAX)
    assert await parcels.unpack(packed, blobs, []) == data
    parcels.forget(data, blobs.blobs)
    assert list(blobs.blobs.list()) == []


@pytest.mark.asyncio
async def test_a_name_that_nobody_has_or_too_large_a_record_is_an_error(tmp_path: Path) -> None:
    the_post, _ = post()
    blobs = exchange(tmp_path, the_post)
    with pytest.raises(StorageError, match="no other node can be reached"):
        await parcels.unpack(msgspec.msgpack.encode("0" * 64), blobs, [])
    packed = parcels.pack(bytes(100_000), blobs.blobs)
    with pytest.raises(StorageError, match="at most 99,999 are read"):
        await parcels.unpack(packed, blobs, [], 99_999)
