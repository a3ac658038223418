"""Receiving: straight into place, never beyond, and with memory that a peer cannot choose."""

from __future__ import annotations

import tracemalloc

import pytest

from p2pnn.errors import LocalProtocolError, RemoteProtocolError
from p2pnn.wire.codec import encode
from p2pnn.wire.frame import FLAG_FOLLOWING, FLAG_MORE, encode_frame
from p2pnn.wire.inbound import Inbound
from p2pnn.wire.limits import DATA_WINDOW_BYTES, DEFAULTS, PIECE_BYTES_MAX, RECEIVE_BUFFER_BYTES, STREAMS_MAX, Limits
from p2pnn.wire.messages import CloseReason, Message, Retired

from .links import tensor

HEADER = encode(tensor())


class Places:
    """Gives out memory for bodies, and remembers it."""

    def __init__(self, wanted: bool = True) -> None:
        self.wanted = wanted
        self.given: list[memoryview] = []

    def __call__(self, message: Message, total: int | None) -> memoryview | None:
        if total is None or not self.wanted:
            return None
        self.given.append(memoryview(bytearray(total)))
        return self.given[-1]


def feed(inbound: Inbound, data: bytes) -> list[tuple[Message, memoryview | None]]:
    arrived = []
    while data:
        view = inbound.get_buffer()
        count = min(len(view), len(data))
        view[:count] = data[:count]
        data = data[count:]
        inbound.buffer_updated(count)
        arrived += list(iter(inbound.next, None))
    return arrived


def test_a_piece_is_received_into_its_place_and_not_beyond() -> None:
    places = Places()
    inbound = Inbound(DEFAULTS, places)
    body = bytes(range(256)) * 4096  # one piece of 1 MiB
    assert feed(inbound, encode_frame(HEADER, 0, len(body), 1, len(body)) + body[:100]) == []
    view = inbound.get_buffer()
    assert len(view) == len(body) - 100
    view[:] = body[100:]
    assert places.given[0] == body, "the view is the place itself"
    inbound.buffer_updated(len(view))
    assert inbound.next() == (tensor(), memoryview(body))
    assert len(inbound.get_buffer()) == RECEIVE_BUFFER_BYTES


def test_what_came_with_the_prefix_is_copied_and_the_next_frame_is_kept() -> None:
    retired = Retired("j", 1, 0, 5)
    frame = encode_frame(HEADER, 0, 3, 1, 3) + b"abc" + encode_frame(encode(retired))
    assert feed(Inbound(DEFAULTS, Places()), frame) == [(tensor(), memoryview(b"abc")), (retired, None)]


def test_many_small_frames_take_one_read() -> None:
    frame = encode_frame(encode(Retired("j", 1, 0, 5)))
    inbound = Inbound(DEFAULTS, Places())
    view = inbound.get_buffer()
    count = len(view) // len(frame)
    view[: count * len(frame)] = frame * count
    inbound.buffer_updated(count * len(frame))
    assert len(list(iter(inbound.next, None))) == count > 800
    assert inbound.frames == count


def test_a_data_link_reads_little_ahead() -> None:
    inbound = Inbound(DEFAULTS, Places())
    inbound.use_data_window()
    assert len(inbound.get_buffer()) == DATA_WINDOW_BYTES


def test_interleaved_bodies_come_out_in_the_order_of_their_ends() -> None:
    stream = (
        encode_frame(encode(tensor(1)), FLAG_MORE, 2, 1, 6) + b"ab"
        + encode_frame(encode(tensor(2)), FLAG_MORE, 1, 2, 2) + b"x"
        + encode_frame(b"", FLAG_FOLLOWING | FLAG_MORE, 2, 1, 6) + b"cd"
        + encode_frame(encode(Retired("j", 1, 0, 5)))
        + encode_frame(b"", FLAG_FOLLOWING, 1, 2, 2) + b"y"
        + encode_frame(encode(tensor(3)), 0, 0, 2, 0)
        + encode_frame(b"", FLAG_FOLLOWING, 2, 1, 6) + b"ef"
    )  # fmt: skip
    inbound = Inbound(DEFAULTS, Places())
    arrived = feed(inbound, stream)
    assert [(m, None if b is None else bytes(b)) for m, b in arrived] == [
        (Retired("j", 1, 0, 5), None),
        (tensor(2), b"xy"),
        (tensor(3), b""),
        (tensor(1), b"abcdef"),
    ]
    assert not inbound.in_body
    assert not inbound.in_frame


def test_a_body_that_nobody_wants_takes_no_memory() -> None:
    piece = bytes(PIECE_BYTES_MAX)
    total = 8 * len(piece)
    frames = [encode_frame(HEADER, FLAG_MORE, len(piece), 1, total)]
    frames += [encode_frame(b"", FLAG_FOLLOWING | FLAG_MORE, len(piece), 1, total)] * 6
    frames += [encode_frame(b"", FLAG_FOLLOWING, len(piece), 1, total)]
    inbound = Inbound(DEFAULTS, Places(wanted=False))
    tracemalloc.start()
    try:
        for frame in frames:
            assert feed(inbound, frame) == []
            left = len(piece)
            while left:  # as a socket writes, without a copy of the piece here
                view = inbound.get_buffer()
                assert 0 < len(view) <= left
                left -= len(view)
                inbound.buffer_updated(len(view))
                assert inbound.next() is None
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100_000
    assert feed(inbound, encode_frame(encode(Retired("j", 1, 0, 5)))) == [(Retired("j", 1, 0, 5), None)]


def test_announced_bodies_are_bounded_before_their_memory_is_asked_for() -> None:
    places = Places()
    inbound = Inbound(Limits(body_bytes_max=1000), places)
    with pytest.raises(RemoteProtocolError, match="limit of 1000") as caught:
        feed(inbound, encode_frame(HEADER, FLAG_MORE, 1, 1, 1001)[:32])
    assert caught.value.reason == CloseReason.TOO_LARGE
    assert places.given == []


def test_open_streams_are_bounded() -> None:
    places = Places()
    inbound = Inbound(DEFAULTS, places)
    for stream in range(1, STREAMS_MAX + 1):
        feed(inbound, encode_frame(HEADER, FLAG_MORE, 1, stream, 2) + b"a")
    with pytest.raises(RemoteProtocolError, match="more than 64 bodies"):
        feed(inbound, encode_frame(HEADER, FLAG_MORE, 1, STREAMS_MAX + 1, 2))
    assert len(places.given) == STREAMS_MAX


def test_the_largest_header_fits() -> None:
    inbound = Inbound(DEFAULTS, Places())
    junk = encode_frame(b"\xc1" * 65536)
    with pytest.raises(RemoteProtocolError, match="65536 bytes is no message"):
        feed(inbound, encode_frame(encode(Retired("j", 1, 0, 5))) * 3 + junk)


def test_bytes_are_not_received_over_frames_that_wait() -> None:
    inbound = Inbound(DEFAULTS, Places())
    view = inbound.get_buffer()
    start = encode_frame(HEADER, 0, 100, 1, 100) + bytes(100) + encode_frame(HEADER, 0, 100, 1, 100) + b"a"
    view[: len(start)] = start
    inbound.buffer_updated(len(view))
    with pytest.raises(LocalProtocolError, match="take all events"):
        inbound.get_buffer()
