"""Entries of a shard's log, as bytes."""

from __future__ import annotations

import pytest

from p2pnn.errors import RemoteProtocolError
from p2pnn.ps.decisions import Close, Decision, Draw, Grant, Leave, Rest, Serve, Strike, Take, decode, encode
from p2pnn.replication.leases import Wish


@pytest.mark.parametrize(
    "decision",
    [
        Take(2**40, 3),
        Take(-1, 0, "NOT_FINITE"),
        Close(),
        Draw(7, 2**40, True),
        Serve(3),
        Strike(1, "SHAPE"),
        Rest(2, 9),
        Leave(3),
    ],
)
def test_they_travel_in_a_few_bytes(decision: Decision) -> None:
    head = encode(decision)
    assert decode(head) == decision
    assert len(head) < 32


@pytest.mark.parametrize("head", [b"", b"\x91", b"\x91\x09", b"\x92\x01\x02", b"\x94\x03\x01\xff\xc3", b"\x90"])
def test_what_is_none_is_refused(head: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="entry of a shard's log cannot be read"):
        decode(head)


def test_a_wish_travels_with_what_it_says_was_trained() -> None:
    grant = Grant(3, Wish(9, ((2**40, 2**40 + 7), (3, 4)), 12, 5, 100, 90, 8, True))
    assert decode(encode(grant)) == grant
    with pytest.raises(RemoteProtocolError):
        decode(encode(Grant(3, Wish(9, tuple((n, n + 1) for n in range(17))))))


@pytest.mark.parametrize("decision", [Take(1, 2, "NO_REASON"), Strike(1, "NO_REASON")])
def test_a_refusal_has_a_reason_that_there_is(decision: Decision) -> None:
    with pytest.raises(RemoteProtocolError, match="for no reason"):
        decode(encode(decision))
