"""What leaves next: the link's own messages, then messages without bodies, then one piece of a body.

Nothing that matters for being alive, or for deciding, ever waits behind more than one piece. Messages without bodies keep
their order. Bodies are cut into pieces; the lowest priority number goes first, and up to ROUND_STREAMS bodies of one
priority take turns, so that a small one is not kept behind a large one. With PRIORITIES of them, no more bodies can be
under way than the peer admits, and none of a higher priority ever waits for one of a lower to end.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from p2pnn.errors import QueueFullError
from p2pnn.wire.codec import encode
from p2pnn.wire.events import Outgoing
from p2pnn.wire.frame import FLAG_FOLLOWING, FLAG_MORE, encode_frame
from p2pnn.wire.limits import COALESCE_BYTES_MAX, PRIORITIES, ROUND_STREAMS, Limits
from p2pnn.wire.messages import Message

_STREAMS: int = 2**32 - 1  # stream numbers run from 1 to this, and again from 1


@dataclass(slots=True, eq=False)
class _Body:
    """A body on its way out. frame: prefix and header of its first piece, until that leaves. body: its bytes from `base` on."""

    ticket: int
    stream: int
    frame: bytes
    body: memoryview
    total: int
    sent: int = 0
    base: int = 0


@dataclass(slots=True)
class _Lane:
    """The bodies of one priority: those that take turns, and those that have not begun."""

    turns: deque[_Body] = field(default_factory=deque)
    waiting: deque[_Body] = field(default_factory=deque)


class Outbound:
    """The sending half of a link: bounded in messages and in bytes of headers."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._link: deque[bytes] = deque()  # greeting, Ping: at most a few
        self._pong: bytes | None = None  # only the newest Ping is answered, so that a flood of them takes no memory
        self._messages: deque[bytes] = deque()
        self._lanes = tuple(_Lane() for _ in range(PRIORITIES))
        self._close: bytes | None = None
        self._queued = 0
        self._queued_bytes = 0
        self._tickets = 0

    @property
    def queued(self) -> int:
        """Messages, with bodies and without, that have not left whole."""
        return self._queued

    @property
    def is_busy(self) -> bool:
        """Whether anything waits to be handed out."""
        return bool(self._queued or self._link or self._pong or self._close)

    def only_piece(self, header: bytes, size: int) -> bytes:
        """The frame before a body that leaves whole and at once, so that it is never queued."""
        self._tickets += 1
        return encode_frame(header, 0, size, (self._tickets - 1) % _STREAMS + 1, size)

    def put_link(self, message: Message) -> None:
        """Queue a message of the link itself (Hello, Welcome, Ping) before all others."""
        self._link.append(encode_frame(encode(message)))

    def put_pong(self, message: Message) -> None:
        """Queue the answer to the peer's newest Ping."""
        self._pong = encode_frame(encode(message))

    def put_message(self, header: bytes) -> int:
        """Queue a message without a body. Raises QueueFullError."""
        frame = encode_frame(header)
        self._count(frame)
        self._messages.append(frame)
        return self._tickets

    def put_body(self, header: bytes, body: memoryview, priority: int) -> int:
        """Queue a message with its body (bytes, contiguous). Raises QueueFullError."""
        piece = min(len(body), self._limits.piece_bytes)
        stream = self._tickets % _STREAMS + 1
        frame = encode_frame(header, FLAG_MORE if piece < len(body) else 0, piece, stream, len(body))
        self._count(frame)
        lane = self._lanes[max(0, min(priority, PRIORITIES - 1))]
        lane.waiting.append(_Body(self._tickets, stream, frame, body, len(body)))
        return self._tickets

    def cancel(self, ticket: int) -> bool:
        """Withdraw a body that has not begun; False when there is none."""
        for lane in self._lanes:
            for bodies in (lane.waiting, lane.turns):
                for body in bodies:
                    if body.ticket == ticket and body.frame:
                        bodies.remove(body)
                        self._left(body.frame)
                        return True
        return False

    def copy(self, ticket: int) -> None:
        """Let go of the memory of a body that has begun: what has not left of it leaves from a copy. A stream cannot be cut."""
        for lane in self._lanes:
            for body in lane.turns:
                if body.ticket == ticket:
                    body.body, body.base = memoryview(bytes(body.body[body.sent - body.base :])), body.sent

    def close(self, message: Message, flush: bool) -> None:
        """Drop all bodies, and without `flush` all messages; what is left and then this Close are all that leaves."""
        link, messages = tuple(self._link), self._messages
        self.drop()
        self._link.extend(link)
        if flush:
            self._messages = messages
            self._queued = len(messages)
            self._queued_bytes = sum(map(len, messages))
        self._close = encode_frame(encode(message))

    def drop(self) -> None:
        """Forget everything, and let go of the memory of bodies: nobody is there to read it."""
        self._link.clear()
        self._pong = None
        self._messages = deque()
        self._lanes = tuple(_Lane() for _ in range(PRIORITIES))
        self._queued = self._queued_bytes = 0

    def next(self) -> Outgoing | None:
        """The next thing to write, or None."""
        return self._next_messages() or self._next_piece()

    # --- inside

    def _count(self, frame: bytes) -> None:
        limits = self._limits
        if self._queued >= limits.queue_messages_max or self._queued_bytes + len(frame) > limits.queue_bytes_max:
            raise QueueFullError(
                f"{self._queued} messages ({self._queued_bytes} bytes of headers) wait for a peer that does not read; "
                f"the limits are {limits.queue_messages_max} and {limits.queue_bytes_max} bytes"
            )
        self._queued += 1
        self._queued_bytes += len(frame)
        self._tickets += 1

    def _left(self, frame: bytes) -> None:
        self._queued -= 1
        self._queued_bytes -= len(frame)

    def _next_messages(self) -> Outgoing | None:
        """Frames without bodies, joined into one write: they are small, and a system call costs more than the copy."""
        frames: list[bytes] = list(self._link)
        self._link.clear()
        if self._pong is not None:
            frames.append(self._pong)
            self._pong = None
        size = 0
        while self._messages and (size == 0 or size + len(self._messages[0]) <= COALESCE_BYTES_MAX):
            frame = self._messages.popleft()
            self._left(frame)
            size += len(frame)
            frames.append(frame)
        if self._close is not None and not self._messages:
            frames.append(self._close)
            self._close = None
        return Outgoing(b"".join(frames), None, None) if frames else None

    def _next_piece(self) -> Outgoing | None:
        for lane in self._lanes:
            while lane.waiting and len(lane.turns) < ROUND_STREAMS:
                lane.turns.append(lane.waiting.popleft())
            if lane.turns:
                return self._piece(lane)
        return None

    def _piece(self, lane: _Lane) -> Outgoing:
        body = lane.turns.popleft()
        total = body.total
        end = min(body.sent + self._limits.piece_bytes, total)
        piece = body.body[body.sent - body.base : end - body.base]
        if body.sent == 0:
            header, body.frame = body.frame, b""
            self._queued_bytes -= len(header)
        else:
            flags = FLAG_FOLLOWING | (FLAG_MORE if end < total else 0)
            header = encode_frame(b"", flags, len(piece), body.stream, total)
        body.sent = end
        if end < total:
            lane.turns.append(body)
            return Outgoing(header, piece, None)
        self._queued -= 1
        return Outgoing(header, piece if total else None, body.ticket)
