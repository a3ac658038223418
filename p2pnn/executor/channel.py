"""Messages between the daemon and an executor: frames over a socket pair.

A frame is a 4-byte little-endian length and that many bytes of MessagePack (see `commands`). `Codec` is the sans-IO half
that the daemon's event loop feeds; `Channel` is the executor's end, which blocks when there is nothing to compute and
otherwise only looks whether something has come.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from typing import Any, Final, Generic, TypeVar

import msgspec

from p2pnn.errors import LocalProtocolError
from p2pnn.executor.commands import FromExecutor, ToExecutor

FRAME_BYTES_MAX: Final = 64 << 20
"""A plan of 100,000 ops, or the digests of as many tensors, stays below; a broken length does not take more memory."""
READ_BYTES: Final = 1 << 16

LEAVE_S: Final = 2.0
"""The daemon reads at once; one that hangs is not waited for any longer."""

_LENGTH: Final = struct.Struct("<I")
_encoder = msgspec.msgpack.Encoder()

T = TypeVar("T")


def encode(message: Any) -> bytes:
    """A message as one frame. Raises LocalProtocolError for one over FRAME_BYTES_MAX."""
    body = _encoder.encode(message)
    if len(body) > FRAME_BYTES_MAX:
        raise LocalProtocolError(
            f"{type(message).__name__} has {len(body):,} bytes; at most {FRAME_BYTES_MAX:,} may go"
        )
    return _LENGTH.pack(len(body)) + body


class Codec(Generic[T]):
    """Bytes in any pieces → messages of one union of message types."""

    def __init__(self, types: Any) -> None:
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(types)
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray | memoryview) -> list[T]:
        """The messages that are complete now. Raises LocalProtocolError for bytes that are none of ours."""
        buffer = self._buffer
        buffer += data
        found: list[T] = []
        start = 0
        while len(buffer) - start >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(buffer, start)
            if size > FRAME_BYTES_MAX:
                raise LocalProtocolError(
                    f"a frame of {size:,} bytes between daemon and executor; at most {FRAME_BYTES_MAX:,}"
                )
            end = start + _LENGTH.size + size
            if len(buffer) < end:
                break
            found.append(self._decode(bytes(buffer[start + _LENGTH.size : end])))
            start = end
        del buffer[:start]
        return found

    def _decode(self, body: bytes) -> T:
        try:
            return self._decoder.decode(body)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise LocalProtocolError(f"a message between daemon and executor cannot be read: {error}") from None


class Channel:
    """The executor's end of the socket pair."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(True)
        self._socket = connection
        self._codec: Codec[ToExecutor] = Codec(ToExecutor)
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)

    def receive(self, timeout_s: float | None = None) -> list[ToExecutor]:
        """All messages that have come; waits for the first one (forever, or so many seconds; 0 only looks).

        Raises EOFError when the daemon's end is closed.
        """
        if not self._poll.poll(None if timeout_s is None else timeout_s * 1000):
            return []
        found: list[ToExecutor] = []
        while True:
            try:
                data = self._socket.recv(READ_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return found
            except ConnectionError:
                data = b""
            if not data:
                raise EOFError("the daemon closed the executor's socket")
            found += self._codec.feed(data)
            if len(data) < READ_BYTES and found:
                return found

    def send(self, *messages: FromExecutor) -> None:
        """Send messages in one write. Raises EOFError when the daemon's end is closed."""
        try:
            self._socket.sendall(b"".join(encode(message) for message in messages))
        except (BrokenPipeError, ConnectionError):
            raise EOFError("the daemon closed the executor's socket") from None

    def leave(self) -> None:
        """Say that nothing more comes, and wait until the daemon has read it all and closed its end, for LEAVE_S at most.

        A process that is gone while the daemon still writes to it takes with it what the daemon has not read: the sentence
        that says why, for one.
        """
        with contextlib.suppress(OSError, EOFError):
            self._socket.shutdown(socket.SHUT_WR)
            end = time.monotonic() + LEAVE_S
            while (left := end - time.monotonic()) > 0:
                if self._poll.poll(left * 1000) and not self._socket.recv(READ_BYTES):
                    return
