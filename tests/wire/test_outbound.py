"""Sending: what goes first, in which pieces, and how much may wait."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnn.errors import QueueFullError
from p2pnn.wire.codec import decode, encode
from p2pnn.wire.frame import decode_prefix
from p2pnn.wire.limits import COALESCE_BYTES_MAX, HEADER_BYTES_MAX, PRIORITIES, ROUND_STREAMS, STREAMS_MAX, Limits
from p2pnn.wire.messages import Close, Message, Ping, Pong, Record, Retired
from p2pnn.wire.outbound import Outbound

from .links import tensor


def retired(count: int) -> Retired:
    return Retired("j", 1, 0, count)


def make(**limits: int) -> Outbound:
    return Outbound(Limits(**limits))


def body(outbound: Outbound, number: int, size: int, priority: int = 0) -> int:
    return outbound.put_body(encode(tensor(number)), memoryview(bytes([number]) * size), priority)


def leaves(outbound: Outbound) -> list[int]:
    """The body whose piece leaves, piece by piece; its bytes are its number."""
    return [item.body[0] for item in iter(outbound.next, None) if item.body is not None]


def frames(data: bytes) -> list[Message]:
    """The messages of joined frames without bodies."""
    found = []
    while data:
        length = decode_prefix(memoryview(data)).header_length
        found.append(decode(data[32 : 32 + length]))
        data = data[32 + length + -length % 8 :]
    return found


def test_a_body_is_cut_and_only_its_last_piece_finishes_its_ticket() -> None:
    outbound = make(piece_bytes=4)
    data = memoryview(b"abcdefghij")
    ticket = outbound.put_body(encode(tensor()), data, 0)
    items = list(iter(outbound.next, None))
    assert [bytes(item.body or b"") for item in items] == [b"abcd", b"efgh", b"ij"]
    assert [item.finished for item in items] == [None, None, ticket]
    prefixes = [decode_prefix(memoryview(item.header)) for item in items]
    assert [(p.more, p.following, p.total) for p in prefixes] == [
        (True, False, 10),
        (True, True, 10),
        (False, True, 10),
    ]
    assert len({p.stream for p in prefixes}) == 1
    assert all(item.body is not None and item.body.obj is data.obj for item in items), "a piece is a view, not a copy"
    assert outbound.queued == 0


def test_a_body_of_nothing_finishes_too() -> None:
    outbound = make()
    ticket = outbound.put_body(encode(tensor()), memoryview(b""), 0)
    item = outbound.next()
    assert item is not None
    assert (item.body, item.finished) == (None, ticket)
    assert outbound.next() is None


def test_lower_numbers_go_first_even_between_pieces() -> None:
    outbound = make(piece_bytes=1)
    body(outbound, 5, 3, priority=5)
    first = outbound.next()
    body(outbound, 2, 2, priority=2)
    assert first is not None
    assert leaves(outbound) == [2, 2, 5, 5]


def test_equals_take_turns_and_no_more_than_a_few_at_once() -> None:
    outbound = make(piece_bytes=1)
    for number in range(ROUND_STREAMS + 1):
        body(outbound, number, 2)
    assert leaves(outbound) == [0, 1, 2, 3, 0, 1, 2, 3, 4, 4]


def test_messages_go_before_pieces_and_keep_their_order() -> None:
    outbound = make(piece_bytes=1)
    body(outbound, 1, 2)
    outbound.put_message(encode(retired(1)))
    outbound.put_message(encode(retired(2)))
    item = outbound.next()
    assert item is not None
    assert frames(item.header) == [retired(1), retired(2)]
    outbound.next()
    outbound.put_message(encode(retired(3)))
    item = outbound.next()
    assert item is not None
    assert frames(item.header) == [retired(3)], "between two pieces of a body"
    assert leaves(outbound) == [1]


def test_the_links_own_messages_go_before_all_and_only_the_newest_ping_is_answered() -> None:
    outbound = make()
    outbound.put_message(encode(retired(1)))
    outbound.put_link(Ping(1))
    outbound.put_pong(Pong(8))
    outbound.put_pong(Pong(9))
    item = outbound.next()
    assert item is not None
    assert frames(item.header) == [Ping(1), Pong(9), retired(1)]


def test_small_messages_share_a_write_of_bounded_size() -> None:
    outbound = make()
    for _ in range(40):
        outbound.put_message(encode(Record("j", 1, 1, bytes(5000))))
    sizes = [len(item.header) for item in iter(outbound.next, None)]
    assert 3 <= len(sizes) <= 5
    assert max(sizes) <= COALESCE_BYTES_MAX
    outbound.put_message(bytes(HEADER_BYTES_MAX))
    assert len(list(iter(outbound.next, None))) == 1, "the largest leaves alone"


def test_the_queue_is_bounded_in_messages() -> None:
    outbound = make(queue_messages_max=3)
    outbound.put_message(encode(retired(1)))
    body(outbound, 1, 5)
    body(outbound, 2, 5)
    with pytest.raises(QueueFullError, match="3 messages"):
        outbound.put_message(encode(retired(2)))
    with pytest.raises(QueueFullError):
        body(outbound, 3, 5)
    leaves(outbound)
    assert outbound.put_message(encode(retired(2))) == 4, "a refused message takes no ticket"


def test_the_queue_is_bounded_in_bytes() -> None:
    outbound = make(queue_bytes_max=HEADER_BYTES_MAX + 32)
    outbound.put_message(bytes(60_000))
    with pytest.raises(QueueFullError, match="60032 bytes"):
        outbound.put_message(bytes(6_000))
    assert len(list(iter(outbound.next, None))) == 1
    outbound.put_message(bytes(6_000))


def test_a_body_that_has_not_begun_can_be_cancelled() -> None:
    outbound = make(piece_bytes=1)
    begun, waiting = body(outbound, 1, 3), body(outbound, 2, 3)
    outbound.next()
    assert not outbound.cancel(begun)
    assert outbound.cancel(waiting)
    assert not outbound.cancel(waiting)
    assert outbound.queued == 1
    assert leaves(outbound) == [1, 1]


def test_what_is_left_of_a_body_leaves_from_a_copy() -> None:
    outbound = make(piece_bytes=4)
    memory = bytearray(b"abcdefghijkl")
    ticket = outbound.put_body(encode(tensor()), memoryview(memory), 0)
    items = [outbound.next()]
    for left in (b"efghijkl", b"ijkl"):
        outbound.copy(ticket)
        memory[:] = b"x" * 12
        items.append(outbound.next())
        assert items[-1] is not None
        assert items[-1].body == left[:4]
    assert [item.finished for item in items if item is not None] == [None, None, ticket]
    assert (outbound.next(), outbound.queued) == (None, 0)
    outbound.copy(ticket)  # it has left: nothing to copy


def test_close_goes_last_after_messages_or_at_once() -> None:
    for flush, expected in ((True, [retired(1), Close(2, "")]), (False, [Close(2, "")])):
        outbound = make(piece_bytes=1)
        body(outbound, 1, 3)
        outbound.next()
        outbound.put_message(encode(retired(1)))
        outbound.close(Close(2), flush)
        item = outbound.next()
        assert item is not None
        assert frames(item.header) == expected
        assert outbound.next() is None
        assert outbound.queued == 0


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(-2, PRIORITIES + 2)), max_size=150))
def test_never_more_streams_than_the_peer_admits(bodies: list[tuple[int, int]]) -> None:
    outbound = make(piece_bytes=2)
    tickets = {outbound.put_body(encode(tensor()), memoryview(bytes(size)), priority) for size, priority in bodies}
    streams, most, sent = set(), 0, 0
    for item in iter(outbound.next, None):
        stream = decode_prefix(memoryview(item.header)).stream
        streams.add(stream)
        most = max(most, len(streams))
        sent += len(item.body or b"")
        if item.finished is not None:
            tickets.remove(item.finished)
            streams.remove(stream)
    assert not tickets
    assert most <= STREAMS_MAX
    assert sent == sum(size for size, _ in bodies)
