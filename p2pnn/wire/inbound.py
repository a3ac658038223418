"""Bytes into messages and bodies, with one copy at most and memory that the peer cannot choose.

Two places receive. The link's own buffer takes prefixes, headers and whatever small frames come with them in one read.
When a piece of a body is due, the part of it that came along is copied to the body's place, and from there on the socket
writes into that place directly, up to the piece's last byte and never beyond. A body that nobody wants goes the same way
into the link's buffer, which is empty then, and is forgotten.

The owner decides, by `admit`, whether a message is welcome now and where its body goes; frames are read one by one, only
when the owner asks for the next, so that it decides knowing all that came before.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from p2pnn.errors import LocalProtocolError, RemoteProtocolError
from p2pnn.wire.codec import decode
from p2pnn.wire.frame import FLAG_FOLLOWING, Prefix, check_header, check_magic, decode_prefix
from p2pnn.wire.limits import (
    ALIGN_BYTES,
    DATA_WINDOW_BYTES,
    PREFIX_BYTES,
    READ_AHEAD_BYTES,
    RECEIVE_BUFFER_BYTES,
    STREAMS_MAX,
    Limits,
)
from p2pnn.wire.messages import CloseReason, Message

Admit = Callable[[Message, "int | None"], "memoryview | None"]
"""Called once per message, with its body's size or None; returns the body's place, or None. Raises RemoteProtocolError."""


class _Body(msgspec.Struct):
    """A body on its way in. place: None when it is dropped."""

    message: Message
    place: memoryview | None
    total: int
    received: int = 0


class Inbound:
    """The receiving half of a link; `frames` counts complete frames."""

    def __init__(self, limits: Limits, admit: Admit) -> None:
        self.window_bytes = RECEIVE_BUFFER_BYTES
        self.frames = 0
        self._limits = limits
        self._admit = admit
        self._buffer = memoryview(bytearray(RECEIVE_BUFFER_BYTES))
        self._ahead = self._buffer[:READ_AHEAD_BYTES]
        self._start = 0  # of what was received and not read
        self._end = 0
        self._prefix: Prefix | None = None  # of the frame at _start, when it is known
        self._bodies: dict[int, _Body] = {}
        self._body: _Body | None = None  # whose piece is being received
        self._stream = 0
        self._piece_left = 0

    @property
    def in_frame(self) -> bool:
        """A frame has begun and is not complete."""
        return self._end > self._start or self._body is not None

    @property
    def in_body(self) -> bool:
        """A body has begun and is not complete, whether or not a frame is under way."""
        return bool(self._bodies)

    def use_data_window(self) -> None:
        """Read little ahead: from now on mostly bodies come."""
        self.window_bytes = DATA_WINDOW_BYTES

    def get_buffer(self) -> memoryview:
        """Where the next bytes go. Raises LocalProtocolError unless `next` returned None before."""
        if self._body is not None and self._start == self._end:
            place, received = self._body.place, self._body.received
            if place is None:
                return self._buffer[: min(self._piece_left, len(self._buffer))]
            return place[received : received + self._piece_left]
        if (
            self._body is None and self._start
        ):  # the rest of an incomplete frame goes to the front, where there is room for all of it
            rest = self._end - self._start
            self._buffer[:rest] = self._buffer[self._start : self._end]
            self._start, self._end = 0, rest
        if self._body is not None or self._end == len(self._buffer):
            raise LocalProtocolError("take all events of a link before more bytes are received")
        return self._buffer[self._end : self._end + self.window_bytes]

    def get_buffers(self) -> list[memoryview]:
        """The same for a system call that fills several views: behind the rest of a piece comes the link's own buffer."""
        body = self._body
        if body is None or body.place is None or self._start < self._end:
            return [self.get_buffer()]
        received = body.received
        return [body.place[received : received + self._piece_left], self._ahead]

    def buffer_updated(self, count: int) -> bool:
        """`count` bytes are in the views that get_buffer or get_buffers gave; False where `next` would only say None."""
        body = self._body
        if body is None:
            self._end += count
            return True
        left = self._piece_left - count
        if left > 0:
            body.received += count
            self._piece_left = left
            return False
        body.received += self._piece_left
        self._piece_left = 0
        self._start, self._end = 0, -left
        return True

    def next(self) -> tuple[Message, memoryview | None] | None:
        """The next message without a body, or message with its whole body; None when more bytes are needed.

        Raises RemoteProtocolError, after which this object must not be used.
        """
        while True:
            body = self._body
            if body is not None:
                if self._piece_left:
                    if self._start == self._end:
                        return None
                    self._copy_piece(body)
                    continue
                self._body = None
                self.frames += 1
                if body.received == body.total:
                    if self._bodies:
                        self._bodies.pop(self._stream, None)
                    if body.place is not None:
                        return body.message, body.place
                continue
            message = self._read_frame()
            if message is not None:
                self.frames += 1
                return message, None
            if self._body is None:
                return None

    # --- frames

    def _read_frame(self) -> Message | None:
        """Take prefix, header and padding. Returns a message without a body, or sets _body; neither when bytes are missing."""
        start = self._start
        prefix = self._prefix
        if prefix is None:
            if self._end - start < PREFIX_BYTES:
                check_magic(self._buffer[start : self._end])
                return None
            prefix = decode_prefix(self._buffer, start)
            self._check_streams(prefix)
        header_at = start + PREFIX_BYTES
        pad_at = header_at + prefix.header_length
        piece_at = pad_at + -prefix.header_length % ALIGN_BYTES
        if self._end < piece_at:
            self._prefix = prefix
            return None
        header = self._buffer[header_at:pad_at]
        check_header(self._buffer, start, header, prefix.checksum)
        if prefix.flags & FLAG_FOLLOWING:
            self._body = self._bodies[prefix.stream]
        else:
            message = decode(header)
            if not prefix.stream:
                self._admit(message, None)
                self._prefix = None
                self._start = piece_at
                return message
            self._body = body = _Body(message, self._admit(message, prefix.total), prefix.total)
            if prefix.flags:
                self._bodies[prefix.stream] = body
        self._prefix = None
        self._start = piece_at
        self._stream, self._piece_left = prefix.stream, prefix.piece_length
        return None

    def _check_streams(self, prefix: Prefix) -> None:
        """Does this frame fit the bodies that have begun and not ended?"""
        if prefix.total > self._limits.body_bytes_max:
            raise RemoteProtocolError(
                CloseReason.TOO_LARGE,
                f"a body of {prefix.total} bytes is over this node's limit of {self._limits.body_bytes_max}",
            )
        if prefix.flags & FLAG_FOLLOWING:
            self._check_following(prefix)
        elif prefix.stream in self._bodies:
            raise RemoteProtocolError(
                CloseReason.UNEXPECTED, f"stream {prefix.stream} begins again before its body ended"
            )
        elif prefix.stream and len(self._bodies) >= STREAMS_MAX:
            raise RemoteProtocolError(
                CloseReason.UNEXPECTED, f"more than {STREAMS_MAX} bodies have begun and not ended"
            )

    def _check_following(self, prefix: Prefix) -> None:
        body = self._bodies.get(prefix.stream)
        if body is None:
            raise RemoteProtocolError(
                CloseReason.UNEXPECTED, f"a piece follows on stream {prefix.stream}, which has no body"
            )
        received = body.received + prefix.piece_length
        if prefix.total != body.total or received > body.total or prefix.more != (received < body.total):
            raise RemoteProtocolError(
                CloseReason.MALFORMED,
                f"a piece of {prefix.piece_length} bytes on stream {prefix.stream} does not fit its body of {body.total}",
            )

    # --- pieces

    def _copy_piece(self, body: _Body) -> None:
        """Move what came along with the prefix to the body's place."""
        start = self._start
        count = min(self._piece_left, self._end - start)
        if body.place is not None:
            body.place[body.received : body.received + count] = self._buffer[start : start + count]
        self._start = start + count
        body.received += count
        self._piece_left -= count
