"""A shard's whole state as bytes, for a learner of its replicas: everything that entries of the log have made of it (`state`).

A head (who has pushed what, marks, strikes), then the arrays, then the pushes that lie in the open round. All of it is copied
when it is taken, since it leaves over seconds while updates go on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Final

import msgspec
import numpy as np
from msgspec import Meta

from p2pnn.errors import RemoteProtocolError
from p2pnn.ps.compression import Bytes
from p2pnn.ps.histogram import Histogram
from p2pnn.ps.messages import Refusal, Worker
from p2pnn.ps.roster import Member
from p2pnn.ps.state import State
from p2pnn.replication import leases
from p2pnn.types import NodeId
from p2pnn.wire.fields import Count, NodeText
from p2pnn.wire.messages import CloseReason

FORMAT: Final = 1
LENGTH_BYTES: Final = 4
HEAD_BYTES_MAX: Final = 16 * 1024 * 1024

Body = bytes | bytearray | memoryview


class _Worker(msgspec.Struct, array_like=True):
    """drawn, passed: −1 for a worker whose marks do not count."""

    number: Count
    node: NodeText
    incarnation: int
    sequence: Count
    refusal: str
    log_number: Count
    clock: Count
    taken: Count
    drawn: int
    passed: int
    in_a_row: Count
    is_aside: bool
    in_round: Count
    is_out: bool
    rested: int
    is_gone: bool
    returned: Count = 0
    lately: Count = 0


class _Head(msgspec.Struct, array_like=True):
    format: Annotated[int, Meta(ge=1, le=FORMAT)]
    version: Count
    log_number: Count
    written: Count
    came: Count
    workers: list[_Worker]
    left: dict[str, int]
    marks: tuple[Count, Count, Count]
    refused: list[tuple[NodeText, int, str, Count]]
    staleness: tuple[dict[int, int], int, int, int]
    leases: leases.Table | None


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(_Head)


def pack(state: State) -> list[Body]:
    """Copies of everything, in pieces of any size."""
    head = _encoder.encode(_head(state))
    in_round = [worker for worker in state.roster.workers if worker in state.round]
    bodies = [state.staging.place(worker, state.round[worker]) for worker in in_round]
    copies = [*(array.tobytes() for array in state.arrays.values()), *(body.tobytes() for body in bodies)]
    return [len(head).to_bytes(LENGTH_BYTES), head, *copies]


def unpack(state: State, pieces: Iterable[Body]) -> None:
    """Become what was packed. Raises RemoteProtocolError for what is none, or not of this shard, and changes nothing then."""
    stream = _Stream(pieces)
    length = int.from_bytes(stream.take(LENGTH_BYTES))
    if length > min(HEAD_BYTES_MAX, stream.left):
        raise _wrong(f"its head has {length:,} bytes")
    try:
        head = _decoder.decode(stream.take(length))
        refusals = [Refusal[one.refusal] if one.refusal else None for one in head.workers]
        refused = {(Worker(NodeId(node), life), Refusal[why]): often for node, life, why, often in head.refused}
    except (msgspec.MsgspecError, UnicodeError, RecursionError, KeyError) as error:
        raise _wrong(f"its head cannot be read: {error}") from None
    places = state.arrays
    in_round = [one for one in head.workers if one.in_round]
    wanted = sum(array.nbytes for array in places.values()) + len(in_round) * state.staging.nbytes
    if stream.left != wanted:
        raise _wrong(f"{stream.left:,} bytes follow its head, instead of {wanted:,}")
    workers = [(Worker(NodeId(one.node), one.incarnation), one.number) for one in head.workers]
    if workers != [(worker, state.roster.number(worker)) for worker in state.roster.workers]:
        raise _wrong("it is of other workers")
    if (head.leases is None) != (state.leases is None):
        raise _wrong("it has leases of the data, or none, unlike this shard")
    if head.leases is not None and state.leases is not None:
        state.leases.load(head.leases)
    parameters = state.versions.spare
    stream.read(parameters.view(np.uint8))
    for array in state.optimizer.state.values():
        stream.read(array.view(np.uint8))
    state.versions.load(parameters, head.version)
    _load_workers(state, head, refusals)
    aside = [state.roster.workers[n] for n, one in enumerate(head.workers) if one.is_aside]
    in_a_row = {state.roster.workers[n]: one.in_a_row for n, one in enumerate(head.workers) if one.in_a_row}
    state.guard.load(refused, in_a_row, aside)
    state.round.clear()
    for one in in_round:
        worker = Worker(NodeId(one.node), one.incarnation)
        state.round[worker] = one.in_round
        stream.read(state.staging.place(worker, one.in_round))
    state.forget_scratch()
    counts, total, summed, most = head.staleness
    state.staleness = Histogram(dict(counts), total, summed, most)
    state.written = head.written


def _head(state: State) -> _Head:
    roster, guard = state.roster, state.guard
    drawn, passed = state.marks.positions()
    in_a_row = guard.in_a_row
    workers = [
        _Worker(
            roster.number(one.worker),
            one.worker.node,
            one.worker.incarnation,
            one.sequence,
            one.refusal.name if one.refusal else "",
            one.log_number,
            one.clock,
            one.taken,
            drawn.get(one.worker, -1),
            passed.get(one.worker, -1),
            in_a_row.get(one.worker, 0),
            one.worker in guard.set_aside,
            state.round.get(one.worker, 0),
            one.worker in state.out,
            one.rested,
            one.worker in state.gone,
            one.returned,
            one.lately,
        )
        for one in roster.members
    ]
    refused = [(str(who.node), who.incarnation, why.name, often) for (who, why), often in guard.refused.items()]
    seen = state.staleness
    return _Head(
        FORMAT,
        state.versions.number,
        roster.log_number,
        state.written,
        roster.came,
        workers,
        roster.left,
        (state.marks.marked, state.marks.open, state.marks.server),
        refused,
        (dict(seen.counts), seen.total, seen.sum, seen.max),
        state.leases.table if state.leases is not None else None,
    )


def _load_workers(state: State, head: _Head, refusals: Sequence[Refusal | None]) -> None:
    workers = [Worker(NodeId(one.node), one.incarnation) for one in head.workers]
    members = [
        Member(
            worker,
            one.sequence,
            why,
            one.log_number,
            one.clock,
            one.taken,
            rested=one.rested,
            returned=one.returned,
            lately=one.lately,
        )
        for worker, one, why in zip(workers, head.workers, refusals, strict=True)
    ]
    numbers = [one.number for one in head.workers]
    state.roster.load(members, head.log_number, head.left, numbers, head.came)
    drawn = {worker: one.drawn for worker, one in zip(workers, head.workers, strict=True) if one.drawn >= 0}
    passed = {worker: one.passed for worker, one in zip(workers, head.workers, strict=True) if one.passed >= 0}
    marked, open_, server = head.marks
    state.marks.load(drawn, passed, server=server, marked=marked, open=open_)
    state.out = {worker for worker, one in zip(workers, head.workers, strict=True) if one.is_out}
    state.gone.clear()
    state.gone.update(worker for worker, one in zip(workers, head.workers, strict=True) if one.is_gone)


def _wrong(what: str) -> RemoteProtocolError:
    return RemoteProtocolError(CloseReason.MALFORMED, f"this is no state of the shard: {what}")


class _Stream:
    """Bytes of pieces, one after the other."""

    def __init__(self, pieces: Iterable[Body]) -> None:
        self._pieces = [memoryview(piece).cast("B") for piece in pieces if len(piece)]
        self._pieces.reverse()
        self.left = sum(len(piece) for piece in self._pieces)

    def take(self, count: int) -> bytes:
        """Fewer where there are no more."""
        return b"".join(self._next(count))

    def read(self, place: Bytes) -> None:
        """Fill it; the caller knows that there is enough."""
        at = 0
        for piece in self._next(place.nbytes):
            place[at : at + len(piece)] = np.frombuffer(piece, np.uint8)
            at += len(piece)

    def _next(self, count: int) -> Iterable[memoryview]:
        while count and self._pieces:
            piece = self._pieces.pop()
            if len(piece) > count:
                self._pieces.append(piece[count:])
                piece = piece[:count]
            count -= len(piece)
            self.left -= len(piece)
            yield piece
