"""Charters in pieces."""

from __future__ import annotations

from random import Random

from p2pnn.cluster.charter import Version
from p2pnn.cluster.pieces import Assembly, cut
from p2pnn.wire.charter import CHARTER_BYTES_MAX, CHARTER_PIECE_BYTES, CharterPiece

from .charters import A, B

ONE, TWO, DONE = Version(1, 1), Version(1, 2), Version(1, 0)


def parts(data: bytes, version: Version = ONE) -> list[CharterPiece]:
    return list(cut(data, version, DONE, "home"))


def test_small_charters_are_one_message() -> None:
    (piece,) = parts(b"abc")
    assert piece == CharterPiece(1, 1, 1, 0, 0, 3, b"abc", "home")
    assert Assembly().add(A, piece) == b"abc"


def test_large_ones_are_put_together() -> None:
    data = Random(1).randbytes(CHARTER_BYTES_MAX)
    assembly, pieces = Assembly(), parts(data)
    assert max(len(piece.piece) for piece in pieces) == CHARTER_PIECE_BYTES
    assert [assembly.add(A, piece) for piece in pieces] == [None] * (len(pieces) - 1) + [data]
    assert assembly.add(A, pieces[-1]) is None, "it is forgotten when it is whole"


def test_what_does_not_fit_is_dropped_and_a_new_start_is_taken() -> None:
    data = Random(2).randbytes(2 * CHARTER_PIECE_BYTES + 1)
    first, second, third = parts(data)
    assembly = Assembly()
    assert assembly.add(A, second) is None
    assert assembly.add(A, first) is None
    assert assembly.add(A, third) is None, "one is missing"
    assert assembly.add(B, second) is None, "another sender's"
    assert assembly.add(A, parts(data, TWO)[1]) is None, "another version's"
    assert assembly.add(A, second) is None
    assert assembly.add(A, first) is None
    assert assembly.add(A, second) is None
    assert assembly.add(A, third) == data


def test_no_peer_makes_it_hold_more_than_it_said() -> None:
    assembly = Assembly()
    assert assembly.add(A, CharterPiece(1, 1, 1, 0, 0, 10, b"1234")) is None
    assert assembly.add(A, CharterPiece(1, 1, 1, 0, 4, 10, b"1234567")) is None
    assert assembly.add(A, CharterPiece(1, 1, 1, 0, 11, 10, b"")) is None
    assert assembly.add(A, CharterPiece(1, 1, 1, 0, 0, 3, b"1234")) is None
