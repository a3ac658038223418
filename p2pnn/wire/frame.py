"""A frame: 32 fixed bytes, a MessagePack header, and one piece of a body.

    offset  size  field           meaning
    0       4     magic           "p2nn"
    4       1     layout          1: this layout
    5       1     flags           bit 0: more pieces of this body follow; bit 1: this is such a following piece
    6       2     reserved        0
    8       4     header length   bytes of MessagePack, 0 in following pieces, else 1 … HEADER_BYTES_MAX
    12      4     piece length    bytes of the body in this frame, at most PIECE_BYTES_MAX
    16      4     stream          0: a message without a body; else the body's number, free again after its last piece
    20      8     body total      bytes of the whole body, the same in each of its frames
    28      4     checksum        CRC-32 (zlib's) of bytes 0 … 27 and the header

All numbers are little-endian. Zero bytes follow the header up to a multiple of ALIGN_BYTES, whether or not a piece
follows; header length does not count them, the checksum does not cover them. The body has no checksum: TCP has one, and
what must be exact is named by its SHA-256. It lies outside MessagePack so that it can be received where it belongs.
"""

from __future__ import annotations

import zlib
from struct import Struct
from typing import Final

import msgspec

from p2pnn.errors import RemoteProtocolError
from p2pnn.wire.limits import ALIGN_BYTES, BODY_BYTES_MAX, HEADER_BYTES_MAX, PIECE_BYTES_MAX, PREFIX_BYTES
from p2pnn.wire.messages import CloseReason

MAGIC: Final = b"p2nn"
LAYOUT: Final = 1
FLAG_MORE: Final = 1
FLAG_FOLLOWING: Final = 2

_FIELDS: Final = Struct("<4sBBHIIIQI")
_CHECKED: Final = Struct("<4sBBHIIIQ")  # all fields before the checksum
_CHECKED_BYTES: Final = _CHECKED.size
_CHECKSUM: Final = Struct("<I")
_STARTED: Final = Struct("<QIIIQI")  # the same as _FIELDS, with all up to `reserved` as one number
_ALONE: Final = int.from_bytes(MAGIC + bytes([LAYOUT, 0, 0, 0]), "little")
"""How a frame starts that holds all of its message: no flags."""
_PADDING: Final = tuple(bytes(n) for n in range(ALIGN_BYTES))

assert _FIELDS.size == PREFIX_BYTES
assert _CHECKED.size == PREFIX_BYTES - _CHECKSUM.size


class Prefix(msgspec.Struct, frozen=True):
    """A frame's fixed part, its fields found consistent with each other; the checksum not yet compared."""

    flags: int
    header_length: int
    piece_length: int
    stream: int
    total: int
    checksum: int

    @property
    def more(self) -> bool:
        return bool(self.flags & FLAG_MORE)

    @property
    def following(self) -> bool:
        return bool(self.flags & FLAG_FOLLOWING)


def padding(header_length: int) -> int:
    """Zero bytes between a header of this length and the body."""
    return -header_length % ALIGN_BYTES


def encode_frame(header: bytes, flags: int = 0, piece_length: int = 0, stream: int = 0, total: int = 0) -> bytes:
    """Prefix, header and padding: everything of a frame but its piece. The caller has checked the limits."""
    length = len(header)
    checked = _CHECKED.pack(MAGIC, LAYOUT, flags, 0, length, piece_length, stream, total)
    checksum = zlib.crc32(header, zlib.crc32(checked))
    return b"%b%b%b%b" % (checked, _CHECKSUM.pack(checksum), header, _PADDING[-length % ALIGN_BYTES])


def check_magic(start: memoryview) -> None:
    """Refuse at the first wrong byte, so that a stranger's protocol is answered at once; `start` may be short."""
    for at, (seen, expected) in enumerate(zip(start, MAGIC, strict=False)):
        if seen != expected:  # told up to here only, the same however the bytes were cut
            raise RemoteProtocolError(
                CloseReason.MALFORMED,
                f"a frame begins with {bytes(start[: at + 1])!r} instead of {MAGIC!r}; is this a p2pnn node?",
            )


def decode_prefix(data: memoryview, at: int = 0) -> Prefix:
    """Read the 32 bytes at `at` and check all that they tell alone, before memory is taken for what they announce.

    Raises RemoteProtocolError: VERSION for another layout, TOO_LARGE for a length over its limit, MALFORMED for fields that
    contradict each other.
    """
    start, header_length, piece_length, stream, total, checksum = _STARTED.unpack_from(data, at)
    if (
        start == _ALONE
        and 0 < header_length <= HEADER_BYTES_MAX
        and piece_length == total <= PIECE_BYTES_MAX
        and (stream or not total)
    ):
        return Prefix(0, header_length, piece_length, stream, total, checksum)  # nothing below could be wrong with it
    magic, layout, flags, reserved, *_ = _FIELDS.unpack_from(data, at)
    if magic != MAGIC:
        check_magic(data[at:])
    if layout != LAYOUT:
        raise RemoteProtocolError(CloseReason.VERSION, f"a frame has layout {layout}; this node reads layout {LAYOUT}")
    for name, value, limit in (
        ("header", header_length, HEADER_BYTES_MAX),
        ("piece", piece_length, PIECE_BYTES_MAX),
        ("body", total, BODY_BYTES_MAX),
    ):
        if value > limit:
            raise RemoteProtocolError(CloseReason.TOO_LARGE, f"a {name} of {value} bytes is over the limit of {limit}")
    contradiction = _contradiction(flags, reserved, header_length, piece_length, stream, total)
    if contradiction:
        raise RemoteProtocolError(CloseReason.MALFORMED, f"a frame {contradiction}")
    return Prefix(flags, header_length, piece_length, stream, total, checksum)


def check_header(data: memoryview, at: int, header: memoryview, checksum: int) -> None:
    """Compare the checksum of the frame at `at` and see that its padding is zero; raises RemoteProtocolError (MALFORMED)."""
    if zlib.crc32(header, zlib.crc32(data[at : at + _CHECKED_BYTES])) != checksum:
        raise RemoteProtocolError(CloseReason.MALFORMED, "a frame's checksum does not fit its prefix and header")
    length = len(header)
    if length % ALIGN_BYTES:
        pad_at = at + PREFIX_BYTES + length
        if any(data[pad_at : pad_at + padding(length)]):
            raise RemoteProtocolError(CloseReason.MALFORMED, "a frame's padding is not zero")


def _contradiction(flags: int, reserved: int, header_length: int, piece_length: int, stream: int, total: int) -> str:
    """What is wrong with these fields taken together, as the end of a sentence; empty when nothing is."""
    more, following = bool(flags & FLAG_MORE), bool(flags & FLAG_FOLLOWING)
    if flags & ~(FLAG_MORE | FLAG_FOLLOWING):
        return f"has unknown flags {flags:#04x}"
    if reserved:
        return f"has {reserved} in its reserved field"
    if following != (header_length == 0):
        return "that follows has a header" if following else "that follows none has no header"
    if stream == 0 and (following or more or piece_length or total):
        return "has a body but no stream"
    if piece_length > total:
        return f"has a piece of {piece_length} bytes of a body of {total}"
    if piece_length == 0 and (total or following):
        return "has an empty piece"
    if not following and more != (piece_length < total):
        return "does not agree with itself on whether more pieces follow"
    return ""
