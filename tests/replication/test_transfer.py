"""A state in pieces: in order, within a window, again where something is lost, never more than one."""

from __future__ import annotations

from p2pnn.replication.limits import Limits
from p2pnn.replication.transfer import Assembly, Outgoing
from p2pnn.wire.codec import decode, encode
from p2pnn.wire.limits import BODY_BYTES_MAX
from p2pnn.wire.messages import StateHeld, StatePiece

from .mesh import SHARD, A, B

LIMITS = Limits(piece_bytes=4, state_window=2)


def test_a_state_arrives_whole_though_pieces_are_lost() -> None:
    outgoing = Outgoing(5, b"head!", [b"state of", b"", b"the shard"], LIMITS, 0.0)
    assembly = Assembly(1000)
    sent = 0
    for _ in range(40):
        pieces = outgoing.next_pieces(SHARD, 1)
        assert len(pieces) <= 2
        for message, body in pieces:
            sent += 1
            if sent % 3:
                outgoing.heard(assembly.add(A.id, message, body), 0.0)
        if not pieces:
            outgoing.again(0.0)
        if outgoing.is_over:
            break
    head, state = assembly.take()
    assert (head, b"".join(state)) == (b"head!", b"state ofthe shard")


def test_another_state_takes_its_place_only_from_its_beginning() -> None:
    assembly = Assembly(20)
    first = StatePiece(*SHARD, 1, 5, 0, 2, 8)
    assert assembly.add(A.id, first, b"hh") == 2
    assert assembly.add(B.id, StatePiece(*SHARD, 1, 6, 4, 2, 8), b"late") == 0
    assert assembly.add(A.id, StatePiece(*SHARD, 1, 5, 2, 2, 8), b"ab") == 4
    assert assembly.add(A.id, StatePiece(*SHARD, 1, 5, 6, 2, 8), b"ef") == 4, "a piece is missing"
    assert assembly.add(A.id, StatePiece(*SHARD, 1, 5, 4, 2, 8), b"cdefg") == 4, "beyond its end"
    assert assembly.add(B.id, StatePiece(*SHARD, 1, 6, 0, 4, 8), b"hhhhs") == 0, "bytes of head and state in one"
    assert assembly.add(B.id, StatePiece(*SHARD, 1, 6, 0, 4, 21), b"hhhh") == 0, "larger than allowed"


def test_a_state_is_cut_and_not_copied_and_may_be_larger_than_a_body() -> None:
    state = bytearray(b"state of the shard")
    outgoing = Outgoing(5, b"", [memoryview(state)], LIMITS, 0.0)
    [(_, first), (_, second)] = outgoing.next_pieces(SHARD, 1)
    assert all(isinstance(body, memoryview) and body.obj is state for body in (first, second))
    size = 5 * BODY_BYTES_MAX
    assembly = Assembly(size)
    for start in (0, 4):
        piece = StatePiece(*SHARD, 1, 5, start, 0, size)
        assert decode(encode(piece)) == piece
        assert assembly.add(A.id, piece, b"1234") == start + 4
    for said in (StatePiece(*SHARD, 1, 5, size - 4, 0, size), StateHeld(*SHARD, 1, 5, size)):
        assert decode(encode(said)) == said
