"""Spans: who did what from when to when, in a ring of fixed size that costs next to nothing to write.

A node keeps two rings per job: its executor's (what it computed, and what it waited for), in memory that executor and
daemon share, so that it outlives an executor that was killed; and the daemon's (tensors that left and came). A ring holds
the newest spans and counts all, so a reader knows how many are gone. Nothing is ever allocated for a span: it is five
numbers packed into its place. A node that serves shards of the parameters has a third: its server's.

    offset  bytes
         0      8   int64    spans ever written
         8      8   float64  since when the writer waits, on its clock; 0 while it does not
        64     40   each     float64 start and end, int64 micro-batch and step, int32 kind and what

`what` is a segment's or a transfer's number (`job.segment`), or a node's; see `Kind`. Times are seconds of the machine's
monotonic clock, which its processes share; `job.trace` maps those of several machines onto one.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, NamedTuple

SPANS_MAX: Final = 16_384
"""Per ring: the last minutes of a small network, the last hour of a large one."""

RECORD: Final = struct.Struct("<ddqqii")
HEAD_BYTES: Final = 64
RING_BYTES: Final = HEAD_BYTES + SPANS_MAX * RECORD.size

_COUNT: Final = struct.Struct("<q")
_SINCE: Final = struct.Struct("<d")
_SINCE_AT: Final = 8


class Kind(IntEnum):
    """What a span was. Append-only: finished jobs keep theirs. Behind each: what `what` is."""

    FORWARD = 1  # segment; in training
    BACKWARD = 2  # segment
    UPDATE = 3  # −
    SQUARES = 4  # −; sums for global-norm clipping
    EVALUATE = 5  # segment; a forward pass
    PREDICT = 6  # segment; a forward pass
    CHECKPOINT = 7  # −
    RESTORE = 8  # −
    ANSWER = 9  # −; telling the coordinator a command's outcome
    FOR_TENSOR = 16  # transfer that came and let work go on
    FOR_SENT = 17  # transfer that left and freed a frame
    FOR_SQUARES = 18  # node whose sums came
    FOR_ORDER = 19  # −; the coordinator's next command
    FOR_VALUES = 20  # shard that answered
    FOR_PUSHED = 21  # −; a part of a push left
    SEND = 32  # transfer; from the executor's word until its memory is free again
    RECEIVE = 33  # transfer; from its first frame until the whole body lies in its place
    SEND_PUSH = 34  # `of_push`; these four as the two above, their micro-batch is the push's number
    RECEIVE_PUSH = 35  # `of_push`
    SEND_VALUES = 36  # `of_push`
    RECEIVE_VALUES = 37  # `of_push`
    JUDGE = 48  # `of_push`; of a server: decode a push and look at what it holds
    LOG = 49  # `of_push`; number it
    APPLY = 50  # `of_push`; update the parameters; step: their version before that


WAITS: Final = frozenset(
    {Kind.FOR_TENSOR, Kind.FOR_SENT, Kind.FOR_SQUARES, Kind.FOR_ORDER, Kind.FOR_VALUES, Kind.FOR_PUSHED}
)
SENDS: Final = frozenset({Kind.SEND, Kind.SEND_PUSH, Kind.SEND_VALUES})
PUSHES: Final = frozenset({Kind.SEND_PUSH, Kind.RECEIVE_PUSH, Kind.SEND_VALUES, Kind.RECEIVE_VALUES})
"""Between a worker and a shard."""

ALL_WORKERS: Final = 0xFFFF
"""In place of a worker, where a round of all of them is meant."""


def of_push(shard: int, worker: int) -> int:
    """`what` of a span about both. Raises ValueError where there are too many of them for it."""
    if not 0 <= shard < 0x8000 or not 0 <= worker <= ALL_WORKERS:
        raise ValueError(f"shard {shard} and worker {worker} have no place in a span")
    return shard << 16 | worker


def shard_and_worker(what: int) -> tuple[int, int]:
    """The inverse of `of_push`, of any number."""
    return what >> 16, what & 0xFFFF


class Span(NamedTuple):
    """start, end: seconds. micro_batch, step: −1 where there is none. kind: a Kind, or a number of a newer program."""

    start: float
    end: float
    micro_batch: int
    step: int
    kind: int
    what: int


class Reading(NamedTuple):
    """A ring's content. spans: records, oldest first. lost: how many older ones are gone. since: 0.0, or its open wait."""

    spans: bytes
    lost: int
    since: float


class Ring:
    """The writing end; one writer. memory: RING_BYTES, or fewer, all zero."""

    def __init__(self, memory: memoryview | bytearray) -> None:
        self._memory = memory
        self._places = (len(memory) - HEAD_BYTES) // RECORD.size
        self._count = 0

    def add(self, start: float, end: float, micro_batch: int, step: int, kind: int, what: int) -> None:
        """Write one span over the oldest."""
        at = self._count
        RECORD.pack_into(
            self._memory, HEAD_BYTES + at % self._places * RECORD.size, start, end, micro_batch, step, kind, what
        )
        self._count = at + 1
        _COUNT.pack_into(self._memory, 0, at + 1)  # behind the span: a reader never sees one that is half there

    def waits(self, since: float) -> None:
        """Say that a wait has begun, so that one that never ends can be seen; 0.0 when it is over."""
        _SINCE.pack_into(self._memory, _SINCE_AT, since)


def read(memory: memoryview | bytearray) -> Reading:
    """Copy a ring, also while another process writes it: what may have been overwritten meanwhile is left out."""
    places = (len(memory) - HEAD_BYTES) // RECORD.size
    (count,) = _COUNT.unpack_from(memory, 0)
    (since,) = _SINCE.unpack_from(memory, _SINCE_AT)
    body = bytes(memory[HEAD_BYTES : HEAD_BYTES + places * RECORD.size])
    (after,) = _COUNT.unpack_from(memory, 0)
    first = 0 if after < places else min(count, after + 1 - places)  # the one now being written is as good as gone
    if count - first == 0:
        return Reading(b"", first, since)
    begin, end = first % places * RECORD.size, count % places * RECORD.size
    spans = body[begin:end] if begin < end else body[begin:] + body[:end]
    return Reading(spans, first, since)


def unpack(spans: bytes) -> list[Span]:
    """Records as tuples. Their number of bytes is a multiple of RECORD.size."""
    return [Span(*record) for record in RECORD.iter_unpack(spans)]
