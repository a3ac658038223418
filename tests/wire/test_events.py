"""Hostile bytes: whatever arrives, a link yields events, ends with a reason, and takes no memory that the peer chose."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from p2pnn.wire.codec import MESSAGES, encode
from p2pnn.wire.connection import Connection
from p2pnn.wire.events import Closed, Event
from p2pnn.wire.frame import encode_frame
from p2pnn.wire.limits import HEADER_BYTES_MAX, Limits
from p2pnn.wire.messages import Close, CloseReason, LinkKind, Retired

from .links import dialling, events, listening, messages, nowhere, pair, tensor, wire
from .make_vectors import VECTORS, prefix

REJECTS: list[dict[str, Any]] = json.loads((VECTORS / "rejects.json").read_text())
PHASES: dict[str, Callable[[], Connection]] = {
    "listening": lambda: listening(None),
    "dialling": lambda: _silent(dialling()),
    "control": lambda: listening(LinkKind.CONTROL),
    "data": lambda: listening(LinkKind.DATA),
}
BLAMED = {reason for reason in CloseReason if 10 <= reason < 30} | {CloseReason.VERSION, CloseReason.NO_SESSION}


def _silent(connection: Connection) -> Connection:
    wire(connection)
    return connection


def ended(connection: Connection, happened: list[Event]) -> None:
    """If the link ended, it ended once, at last, with a reason and a sentence, and the peer is told the same."""
    ends = [event for event in happened if isinstance(event, Closed)]
    if not ends:
        assert not connection.is_closed
        return
    assert ends == [happened[-1]]
    assert ends[0].text or ends[0].by_peer
    if not ends[0].by_peer:
        assert ends[0].reason in BLAMED
        assert wire(connection).endswith(encode_frame(encode(Close(ends[0].reason, ends[0].text))))
    assert wire(connection) == b""


@pytest.mark.parametrize("chunk", [1, 7, 10**9])
@pytest.mark.parametrize("case", REJECTS, ids=lambda case: case["why"])
def test_golden_rejects(case: dict[str, Any], chunk: int) -> None:
    connection = PHASES[case["phase"]]()
    data = bytes.fromhex(case["hex"])
    happened: list[Event] = []
    for at in range(0, len(data), chunk):
        happened += connection.receive(data[at : at + chunk], 0.0)
    assert [type(event) for event in happened] == [Closed], f"{happened}"
    assert isinstance(happened[0], Closed)
    assert CloseReason(happened[0].reason).name == case["reason"]
    assert happened[0].text
    ended(connection, happened)


def test_no_reject_contains_what_is_right() -> None:
    """The same phases accept correct bytes: the rejects are refused for what they say, not because nothing passes."""
    assert not any(isinstance(e, Closed) for e in listening(None).receive(wire(dialling()), 0.0))
    retired = prefix(encode(Retired("j", 1, 0, 8)))
    body = prefix(encode(tensor()), 1, 2, 9, 8) + b"ab" + prefix(b"", 2, 6, 9, 8) + b"cdefgh"
    assert len(listening(LinkKind.CONTROL).receive(retired, 0.0)) == 1
    assert len(listening(LinkKind.DATA).receive(body + retired, 0.0)) == 2


@pytest.mark.parametrize("phase", PHASES)
@given(data=st.binary(max_size=400))
@example(data=b"p2nn" + bytes(60))
@settings(max_examples=40)
def test_random_bytes_end_with_a_reason(phase: str, data: bytes) -> None:
    connection = PHASES[phase]()
    happened = connection.receive(data, 0.0)
    ended(connection, happened)
    if data and not b"p2nn".startswith(data[:4]):
        assert connection.is_closed, "wrong from the first bytes"


@pytest.mark.parametrize("phase", PHASES)
@given(
    header=st.binary(max_size=100),
    numbers=st.tuples(*[st.integers(0, 2**32 - 1) | st.integers(0, 9)] * 3),
    total=st.integers(0, 2**64 - 1) | st.integers(0, 9),
    flags=st.integers(0, 4),
    data=st.binary(max_size=50),
)
@settings(max_examples=40)  # fmt: skip
def test_any_prefix_with_a_right_checksum_ends_or_passes(
    phase: str, header: bytes, numbers: tuple[int, int, int], total: int, flags: int, data: bytes
) -> None:
    """Past magic and checksum, so that the later checks are reached."""
    length = numbers[0] if numbers[0] % 3 == 0 else None
    frame = prefix(header, flags, numbers[1], numbers[2], total, header_length=length)
    connection = PHASES[phase]() if total < 10**6 else listening(LinkKind.DATA, nowhere)
    ended(connection, connection.receive(frame + data, 0.0))


@pytest.mark.parametrize("phase", PHASES)
@given(data=st.data())
@settings(max_examples=40)
def test_any_message_at_any_time_with_or_without_a_body(phase: str, data: st.DataObject) -> None:
    connection = PHASES[phase]()
    happened: list[Event] = []
    for kind in data.draw(st.lists(st.sampled_from(MESSAGES), max_size=6)):
        size = data.draw(st.none() | st.integers(0, 9))
        header = encode(data.draw(messages(kind)))
        frame = encode_frame(header, 0, size or 0, 0 if size is None else 1, size or 0) + bytes(size or 0)
        happened += connection.receive(frame, 0.0)
    ended(connection, happened)


@given(data=st.data())
@settings(max_examples=100)
def test_mutated_and_truncated_streams_end_with_a_reason(data: st.DataObject) -> None:
    """A real conversation with bytes changed, cut out, doubled or cut off."""
    sender, receiver = pair(LinkKind.DATA, limits=Limits(piece_bytes=50))
    for number in range(4):
        sender.send(tensor(number), memoryview(bytes(range(number * 40))), priority=number % 2)
        sender.send(Retired("j", 1, 0, number))
    stream = bytearray(wire(sender))
    for _ in range(data.draw(st.integers(1, 4))):
        at, count = data.draw(st.integers(0, len(stream))), data.draw(st.integers(0, 40))
        stream[at : at + count] = data.draw(
            st.sampled_from([b"", bytes(stream[at : at + count]) * 2]) | st.binary(min_size=count, max_size=count)
        )
    happened = receiver.receive(stream, 0.0)
    if not receiver.is_closed:
        receiver.eof_received(1.0)
        happened += events(receiver)
        assert receiver.is_closed
    ended(receiver, happened)


@pytest.mark.parametrize(
    "header",
    [b"\x91" * HEADER_BYTES_MAX, b"\x93\x04\x01" + b"\x91" * (HEADER_BYTES_MAX - 3), b"\x92\x0a\xdd\xff\xff\xff\xff"],
    ids=["nested", "nested in a skipped field", "claims 4 G items"],
)
def test_a_bomb_ends_the_link_within_little_memory(header: bytes) -> None:
    connection = listening(LinkKind.CONTROL)
    frame = encode_frame(header)
    tracemalloc.start()
    try:
        happened = connection.receive(frame, 0.0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(happened[0], Closed)
    assert happened[0].reason == CloseReason.MALFORMED
    assert peak < 500_000, f"{peak} bytes"


def test_announcing_much_takes_nothing() -> None:
    """Bodies of 1 GiB that are refused, in all streams, cost a few hundred bytes each."""
    connection = listening(LinkKind.DATA, nowhere)
    tracemalloc.start()
    try:
        for stream in range(1, 65):
            assert connection.receive(prefix(encode(tensor()), 1, 1, stream, 2**30) + b"a", 0.0) == []
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert not connection.is_closed
    assert held < 200_000


def test_a_flood_of_messages_is_held_once_only() -> None:
    """Frames are read as events are taken: what was received and not taken is bytes in one buffer."""
    connection = listening(LinkKind.CONTROL)
    frame = encode_frame(encode(Retired("j", 1, 0, 8)))
    tracemalloc.start()
    try:
        view = connection.get_buffer()
        count = len(view) // len(frame)
        view[: count * len(frame)] = frame * count
        connection.buffer_updated(count * len(frame), 0.0)
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert held < 10_000
    assert len(events(connection)) == count
