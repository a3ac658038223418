"""Frames byte by byte: golden vectors both ways, against struct and zlib alone."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnn.errors import RemoteProtocolError
from p2pnn.wire.frame import check_header, check_magic, decode_prefix, encode_frame, padding
from p2pnn.wire.limits import ALIGN_BYTES, PREFIX_BYTES
from p2pnn.wire.messages import CloseReason

from .make_vectors import VECTORS, prefix

FRAMES: list[dict[str, Any]] = json.loads((VECTORS / "frames.json").read_text())


@pytest.mark.parametrize("case", FRAMES, ids=lambda case: case["hex"][32:64])
def test_golden_frames_both_ways(case: dict[str, Any]) -> None:
    data, header, piece = (bytes.fromhex(case[name]) for name in ("hex", "header", "piece"))
    written = encode_frame(header, case["flags"], len(piece), case["stream"], case["total"])
    assert written + piece == data
    assert prefix(header, case["flags"], len(piece), case["stream"], case["total"]) == written
    read = decode_prefix(memoryview(data))
    assert (read.flags, read.stream, read.total) == (case["flags"], case["stream"], case["total"])
    assert (read.header_length, read.piece_length) == (len(header), len(piece))
    assert (read.more, read.following) == (bool(case["flags"] & 1), bool(case["flags"] & 2))
    pad_at = PREFIX_BYTES + len(header)
    piece_at = pad_at + padding(len(header))
    assert data[piece_at:] == piece
    view = memoryview(data)
    check_header(view, 0, view[PREFIX_BYTES:pad_at], read.checksum)


@given(st.integers(0, 10**6))
def test_a_piece_is_aligned(length: int) -> None:
    assert (PREFIX_BYTES + length + padding(length)) % ALIGN_BYTES == 0
    assert 0 <= padding(length) < ALIGN_BYTES


def read_frame(view: memoryview, length: int) -> None:
    """All checks of a frame without its piece, with a header of this length."""
    read = decode_prefix(view)
    end = PREFIX_BYTES + length
    check_header(view, 0, view[PREFIX_BYTES:end], read.checksum)


@given(st.binary(min_size=1, max_size=100), st.data())
def test_a_changed_bit_is_noticed(header: bytes, data: st.DataObject) -> None:
    frame = bytearray(encode_frame(header, 0, 5, 1, 5))
    bit = data.draw(st.integers(0, len(frame) * 8 - 1))
    frame[bit // 8] ^= 1 << bit % 8
    with pytest.raises(RemoteProtocolError):
        read_frame(memoryview(frame), len(header))


@pytest.mark.parametrize("start", [b"q", b"pq", b"p2nN", b"GET / HTTP/1.0", b"\x16\x03\x01"])
def test_a_stranger_is_known_by_its_first_wrong_byte(start: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="is this a p2pnn node") as caught:
        check_magic(memoryview(start))
    assert caught.value.reason == CloseReason.MALFORMED


@pytest.mark.parametrize("start", [b"", b"p", b"p2nn", b"p2nn\xff\xff"])
def test_a_good_beginning_passes(start: bytes) -> None:
    check_magic(memoryview(start))
