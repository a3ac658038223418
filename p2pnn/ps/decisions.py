"""What a shard decides, one entry of its log each: a shard's state follows from them alone.

The primary decides what depends on more than the state: that a push has come whole, what its gradient holds (the guard's sums
depend on the machine), when a round is closed, which marks it has heard of. What follows from the state (how old a push is by
now, an update) every replica finds for itself when it applies the entry. The bytes and the number of a push are the log's own.
"""

from __future__ import annotations

from typing import Final

import msgspec

from p2pnn.errors import RemoteProtocolError
from p2pnn.ps.messages import Refusal
from p2pnn.replication.leases import Wish
from p2pnn.wire.fields import Count, Name
from p2pnn.wire.messages import CloseReason


class Take(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """A push is whole. based_on, based_clock: of its header. refusal: the name of why not to take its gradient, or empty."""

    based_on: int
    based_clock: int
    refusal: Name = ""


class Close(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The round is made from the pushes that are in it."""


class Draw(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """A worker has drawn a mark; passed: and has what it wants of that moment. worker: its number in the roster, as below."""

    worker: Count
    mark: Count
    passed: bool


class Serve(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """The server has done what it has to do at a mark."""

    mark: Count


class Strike(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """A push was refused before it was whole, for a reason that speaks against its worker."""

    worker: Count
    refusal: Name


class Grant(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """A worker's wish for batches, or the same once more since some are free now (`replication.leases`)."""

    worker: Count
    wish: Wish


class Rest(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """A worker has nothing to train after so many pushes: nobody waits for it until it returns."""

    worker: Count
    pushes: Count


class Leave(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """A worker is gone for good."""

    worker: Count


class Return(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """A worker that rested has something to train again, before its push of this number."""

    worker: Count
    sequence: Count


Repeated = Draw | Serve | Rest | Leave | Return
"""Of those with one key the one that counts most says all that the others do (`rank_of`)."""

Own = Strike | Repeated
"""What can be ordered at any time and does no harm twice."""

Decision = Take | Close | Grant | Own

Key = tuple[str, int, bool]

_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Decision)


def rank_of(decision: Repeated) -> tuple[Key, int]:
    """What it is about, and how much it counts among those."""
    match decision:
        case Serve(mark):
            return ("Serve", 0, True), mark
        case Draw(worker, mark, passed):
            return ("Draw", worker, passed), mark
        case Rest(worker, pushes):
            return ("Rest", worker, True), pushes + 1
        case Return(worker, sequence):
            return ("Return", worker, True), sequence
        case Leave(worker):
            return ("Leave", worker, True), 1


def encode(decision: Decision) -> bytes:
    """For `replication.Replica.write` and its like: some ten bytes."""
    return _encoder.encode(decision)


def decode(head: bytes) -> Decision:
    """Raises RemoteProtocolError for bytes that are no decision."""
    try:
        decision = _decoder.decode(head)
        if isinstance(decision, Take | Strike) and decision.refusal:
            Refusal[decision.refusal]
        return decision
    except KeyError:
        raise RemoteProtocolError(
            CloseReason.MALFORMED, "an entry of a shard's log refuses a push for no reason"
        ) from None
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise RemoteProtocolError(CloseReason.MALFORMED, f"an entry of a shard's log cannot be read: {error}") from None
