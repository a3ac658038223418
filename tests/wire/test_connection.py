"""A link from end to end: handshake, bodies, pings, ends; each side without a socket."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnn.errors import LocalProtocolError, QueueFullError
from p2pnn.wire.codec import encode
from p2pnn.wire.connection import Connection, Role
from p2pnn.wire.events import BodyReceived, Closed, Event, HelloReceived, Opened, Received
from p2pnn.wire.frame import encode_frame
from p2pnn.wire.limits import PIECE_BYTES_MAX, Limits
from p2pnn.wire.messages import CloseReason, Hello, LinkKind, Message, Ping, Retired, Roster, Tensor, Welcome

from .links import anywhere, dialling, events, hello, listening, nowhere, outgoing, pair, tensor, welcome, wire

DATA, CONTROL = LinkKind.DATA, LinkKind.CONTROL
RETIRED = Retired("job-1", 1, 0, 5)


def closed(happened: list[Event]) -> Closed:
    end = happened[-1]
    assert isinstance(end, Closed)
    return end


# --- handshake


def test_both_sides_open_with_the_others_greeting() -> None:
    dialler, listener = dialling(), listening(None)
    assert listener.receive(wire(dialler), 0.0) == [HelloReceived(hello(), 1)]
    early = listener.is_open
    listener.accept(welcome())
    assert events(listener) == [Opened(hello(), 1)]
    assert dialler.receive(wire(listener), 0.0) == [Opened(welcome(), 1)]
    assert listener.link == dialler.link == CONTROL
    assert (early, listener.is_open, dialler.is_open) == (False, True, True)


@pytest.mark.parametrize(
    ("dialler", "listener", "agreed"),
    [((1, 1), (1, 1), 1), ((1, 3), (2, 9), 3), ((2, 9), (1, 3), 3), ((1, 2), (3, 4), None), ((3, 4), (1, 2), None)],
)
def test_the_highest_common_version_is_spoken(
    dialler: tuple[int, int], listener: tuple[int, int], agreed: int | None
) -> None:
    dials = Connection(Role.DIALER, hello(CONTROL, *dialler), anywhere)
    listens = Connection(Role.LISTENER, None, anywhere, versions=listener)
    happened = listens.receive(wire(dials), 0.0)
    if agreed is None:
        end = closed(dials.receive(wire(listens), 0.0))
        assert (end.reason, end.by_peer) == (CloseReason.VERSION, True)
        assert f"{listener[0]} to {listener[1]}" in end.text
        assert f"{dialler[0]} to {dialler[1]}" in end.text
        return
    assert happened == [HelloReceived(hello(CONTROL, *dialler), agreed)]
    listens.accept(welcome(agreed))
    assert dials.receive(wire(listens), 0.0) == [Opened(welcome(agreed), agreed)]


def test_a_welcome_outside_the_range_closes() -> None:
    dialler, listener = dialling(), Connection(Role.LISTENER, None, anywhere, versions=(1, 5))
    wire(dialler)
    listener.receive(wire(Connection(Role.DIALER, hello(CONTROL, 1, 5), anywhere)), 0.0)
    listener.accept(welcome(5))
    assert closed(dialler.receive(wire(listener), 0.0)).reason == CloseReason.VERSION


def test_a_listener_knows_no_link_before_the_hello() -> None:
    assert listening(None).link is None


def test_a_refusal_reaches_the_dialler_in_words() -> None:
    dialler, listener = dialling(), listening(None)
    listener.receive(wire(dialler), 0.0)
    listener.refuse(CloseReason.WRONG_CLUSTER, "this is cluster home, not office")
    assert closed(events(listener)) == Closed(31, "this is cluster home, not office", False)
    assert dialler.receive(wire(listener), 0.0) == [Closed(31, "this is cluster home, not office", True)]
    assert wire(dialler) == b""


def test_a_dialler_that_does_not_wait_is_refused() -> None:
    listener = listening(None)
    end = closed(listener.receive(wire(dialling()) * 2, 0.0))
    assert (end.reason, end.text) == (CloseReason.UNEXPECTED, "Hello came before the handshake was done")


def test_wrong_calls_are_local_errors() -> None:
    listener, (dialler, _) = listening(None), pair()
    wrong: list[Any] = [
        lambda: Connection(Role.DIALER, None, anywhere),
        lambda: Connection(Role.LISTENER, hello(), anywhere),
        lambda: listener.accept(welcome()),
        lambda: listener.refuse(30, ""),
        lambda: listener.send(RETIRED),
        lambda: dialler.send(hello()),
        lambda: dialler.send(tensor()),
        lambda: dialler.send(RETIRED, memoryview(b"a")),
        lambda: dialler.send(tensor(), memoryview(b"a")),
        lambda: dialler.send(Retired("", 1, 0, 5)),
    ]
    for call in wrong:
        with pytest.raises(LocalProtocolError):
            call()
    listener.receive(wire(dialling()), 0.0)
    with pytest.raises(LocalProtocolError, match="though 1 was agreed on"):
        listener.accept(welcome(2))
    assert dialler.is_open


# --- messages and bodies


def test_messages_and_bodies_arrive() -> None:
    dialler, listener = pair(DATA, limits=Limits(piece_bytes=1000))
    bodies = [bytes([n]) * n * 777 for n in range(5)]
    for n, body in enumerate(bodies):
        dialler.send(tensor(n), memoryview(body), priority=n % 2)
    dialler.send(RETIRED)
    happened = listener.receive(wire(dialler), 0.0)
    assert happened[0] == Received(RETIRED)
    arrived = {e.message.micro_batch: bytes(e.body) for e in happened if isinstance(e, BodyReceived)
               and isinstance(e.message, Tensor)}  # fmt: skip
    assert arrived == dict(enumerate(bodies))


def test_any_contiguous_array_is_a_body_and_no_other() -> None:
    np = pytest.importorskip("numpy")
    dialler, listener = pair(DATA)
    array = np.arange(12.0).reshape(3, 4)
    dialler.send(tensor(), memoryview(array))
    (event,) = listener.receive(wire(dialler), 0.0)
    assert isinstance(event, BodyReceived)
    assert bytes(event.body) == array.tobytes()
    with pytest.raises(LocalProtocolError, match="not contiguous"):
        dialler.send(tensor(), memoryview(array.T))


def test_a_body_nobody_wants_is_dropped_without_an_event() -> None:
    dialler, listener = pair(DATA, body_for=nowhere)
    dialler.send(tensor(), memoryview(bytes(3_000_000)))
    dialler.send(tensor(1), memoryview(b""))
    assert listener.receive(wire(dialler), 0.0) == []
    dialler.send(RETIRED)
    assert listener.receive(wire(dialler), 0.0) == [Received(RETIRED)]


def test_body_for_is_asked_after_all_that_came_before_was_told() -> None:
    order: list[str] = []

    def body_for(message: Message, size: int) -> memoryview:
        order.append("body_for")
        return memoryview(bytearray(size))

    dialler, listener = pair(DATA, body_for)
    data = bytearray()
    for message, body in ((RETIRED, None), (tensor(), memoryview(b"abc"))):
        dialler.send(message, body)
        data += wire(dialler)
    view = listener.get_buffer()
    view[: len(data)] = data
    listener.buffer_updated(len(data), 0.0)
    while (event := listener.next_event()) is not None:
        order.append(type(event).__name__)
    assert order == ["Received", "body_for", "BodyReceived"]


@pytest.mark.parametrize("place", [memoryview(bytearray(2)), memoryview(b"abc"), memoryview(bytearray(6))[::2]])
def test_a_place_that_does_not_fit_is_our_error(place: memoryview) -> None:
    dialler, listener = pair(DATA, lambda message, size: place)
    dialler.send(tensor(), memoryview(b"abc"))
    with pytest.raises(LocalProtocolError):
        listener.receive(wire(dialler), 0.0)


def test_a_full_queue_is_told_from_other_errors() -> None:
    dialler, _ = pair(limits=Limits(queue_messages_max=2))
    dialler.send(RETIRED)
    dialler.send(RETIRED)
    assert dialler.queued_messages == 2
    with pytest.raises(QueueFullError):
        dialler.send(RETIRED)
    dialler.close(CloseReason.OVERFLOW, "the peer does not read")
    assert closed(events(dialler)).reason == CloseReason.OVERFLOW


def test_a_cancelled_body_does_not_leave() -> None:
    dialler, listener = pair(DATA)
    ticket = dialler.send(tensor(1), memoryview(b"abc"))
    dialler.send(tensor(2), memoryview(b"def"))
    assert dialler.cancel(ticket)
    assert [bytes(e.body) for e in listener.receive(wire(dialler), 0.0) if isinstance(e, BodyReceived)] == [b"def"]


@given(st.data())
@settings(max_examples=60)
def test_any_split_of_the_bytes_gives_the_same_events(data: st.DataObject) -> None:
    """Interleaved bodies of any size, cut anywhere; also when a flipped bit ends the link somewhere."""
    sizes = data.draw(st.lists(st.integers(0, 300), min_size=1, max_size=8))
    dialler, whole = pair(DATA, limits=Limits(piece_bytes=data.draw(st.integers(1, 100))))
    for number, size in enumerate(sizes):
        dialler.send(tensor(number), memoryview(bytes([number + 1]) * size), priority=number % 3)
        if number % 2:
            dialler.send(RETIRED)
    dialler.close(CloseReason.DONE, "bye")
    stream = bytearray(wire(dialler)) if data.draw(st.booleans()) else bytearray(wire_before_close(sizes))
    if data.draw(st.booleans()):
        bit = data.draw(st.integers(0, len(stream) * 8 - 1))
        stream[bit // 8] ^= 1 << bit % 8
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    expected = whole.receive(stream, 0.0)
    pieces = listening(DATA)
    happened: list[Event] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        happened += pieces.receive(bytes(stream[start:end]), 0.0)
    assert happened == expected
    assert wire(pieces) == wire(whole)


def wire_before_close(sizes: list[int]) -> bytes:
    dialler, _ = pair(DATA, limits=Limits(piece_bytes=64))
    for number, size in enumerate(sizes):
        dialler.send(tensor(number), memoryview(bytes([number + 1]) * size), priority=number % 3)
    return wire(dialler)


# --- ends


def test_a_goodbye_lets_queued_messages_out_and_drops_bodies() -> None:
    dialler, listener = pair(DATA)
    dialler.send(tensor(), memoryview(b"abc"))
    dialler.send(RETIRED)
    dialler.close(CloseReason.LEAVING, "the daemon stops")
    assert events(dialler) == [Closed(2, "the daemon stops", False)]
    assert listener.receive(wire(dialler), 0.0) == [Received(RETIRED), Closed(2, "the daemon stops", True)]
    assert wire(listener) == b""
    assert dialler.is_closed
    assert listener.is_closed


def test_to_a_peer_that_erred_only_the_reason_is_sent() -> None:
    dialler, listener = pair()
    dialler.send(RETIRED)
    dialler.close(CloseReason.MALFORMED, "wrong")
    assert listener.receive(wire(dialler), 0.0) == [Closed(10, "wrong", True)]


def test_after_the_end_nothing_happens_any_more() -> None:
    dialler, listener = pair()
    dialler.send(Roster(()))
    data = wire(dialler)
    listener.close(CloseReason.DONE)
    assert len(events(listener)) == 1
    assert listener.receive(data * 3000, 1.0) == []
    listener.close(CloseReason.FAILED)
    listener.eof_received(2.0)
    listener.handle_timer(1000.0)
    assert listener.get_timer() is None
    assert events(listener) == []


@pytest.mark.parametrize(("partial", "words"), [(0, "ended without"), (40, "in the middle of a message")])
def test_an_end_of_file_is_an_end(partial: int, words: str) -> None:
    dialler, listener = pair()
    dialler.send(RETIRED)
    listener.receive(wire(dialler)[:partial], 0.0)
    listener.eof_received(1.0)
    end = closed(events(listener))
    assert (end.reason, end.by_peer) == (CloseReason.FAILED, True)
    assert words in end.text


def test_a_peers_words_do_not_reach_a_terminal_raw() -> None:
    dialler, listener = pair()
    dialler.close(CloseReason.FAILED, "bad\x1b[2J\nnews")
    assert closed(listener.receive(wire(dialler), 0.0)).text == "bad?[2J?news"


def test_a_peer_that_errs_is_told_why() -> None:
    dialler, listener = pair()
    here = closed(listener.receive(b"nonsense", 0.0))
    assert (here.reason, here.by_peer) == (CloseReason.MALFORMED, False)
    assert closed(dialler.receive(wire(listener), 0.0)) == Closed(here.reason, here.text, True)


def test_an_end_lets_go_of_the_memory_of_bodies() -> None:
    memory = bytearray(1000)
    dialler, listener = pair(DATA, lambda message, size: memoryview(memory), Limits(piece_bytes=10))
    dialler.send(tensor(), memoryview(bytes(1000)))
    first = next(outgoing(dialler))
    listener.receive(first, 0.0)
    listener.close(CloseReason.DONE)
    memory.clear()  # raises BufferError while a view of it is held


# --- time


def run(connection: Connection, until: float) -> list[Event]:
    """Handle every timer up to a time."""
    happened: list[Event] = []
    while (due := connection.get_timer()) is not None and due <= until:
        connection.handle_timer(due)
        happened += events(connection)
    return happened


@pytest.mark.parametrize("make", [dialling, lambda: listening(None)])
def test_a_handshake_that_does_not_come_is_too_slow(make: Any) -> None:
    connection = make()
    wire(connection)
    end = closed(run(connection, 10.0))
    assert (end.reason, end.by_peer) == (CloseReason.TOO_SLOW, False)


def test_a_slow_decision_is_too_slow_as_well() -> None:
    listener = listening(None)
    listener.receive(wire(dialling()), 0.0)
    assert closed(run(listener, 10.0)).reason == CloseReason.TOO_SLOW


def test_pings_keep_a_control_link_and_measure_it() -> None:
    dialler, listener = pair()
    for second in range(1, 30):
        for one, other in ((dialler, listener), (listener, dialler)):
            assert run(one, second) == []
            assert other.receive(wire(one), second + 0.25) == []
        dialler.receive(wire(listener), second + 0.5)
        listener.receive(wire(dialler), second + 0.5)
    assert dialler.rtt_s == pytest.approx(0.25, abs=0.26)
    assert dialler.rtt_s is not None
    assert listener.rtt_s is not None
    assert dialler.is_open
    assert listener.is_open


def test_silence_ends_a_control_link_but_not_a_data_link() -> None:
    end = closed(run(listening(CONTROL), 60.0))
    assert end.reason == CloseReason.SILENT
    data = listening(DATA)
    assert data.get_timer() is None
    assert run(data, 1e6) == []


@pytest.mark.parametrize("link", [CONTROL, DATA])
def test_a_slow_dribble_is_too_slow(link: LinkKind) -> None:
    """One byte a second is never silent and never stalls, but a frame takes no more than 30 s."""
    listener = listening(link)
    sender, _ = pair(link)
    sender.send(RETIRED)
    happened: list[Event] = []
    second = 0
    for second, byte in enumerate(wire(sender), start=1):
        happened += run(listener, second) + listener.receive(bytes([byte]), second)
        if happened:
            break
    end = closed(happened)
    assert (end.reason, second) == (CloseReason.TOO_SLOW, 31)


def test_a_body_that_stops_between_two_frames_is_too_slow() -> None:
    dialler, listener = pair(DATA, limits=Limits(piece_bytes=10))
    dialler.send(tensor(), memoryview(bytes(25)))
    out = outgoing(dialler)
    listener.receive(next(out) + next(out), 3.0)
    assert listener.get_timer() == 13.0
    listener.receive(next(out) + next(out), 12.0)
    end = closed(run(listener, 60.0))
    assert (end.reason, listener.get_timer()) == (CloseReason.TOO_SLOW, None)


def test_a_flood_of_pings_takes_no_memory() -> None:
    listener = listening()
    for nonce in range(1000):
        assert listener.receive(encode_frame(encode(Ping(nonce))), 0.0) == []
    assert len(wire(listener)) <= 48, "one Pong"


def test_greetings_are_told_apart() -> None:
    """A listener hears Hello, a dialler Welcome; the other way round is unexpected."""
    end = closed(dialling().receive(wire(dialling()), 0.0))
    assert end.text == "Hello came before the handshake was done"
    assert {Hello, Welcome} == {type(hello()), type(welcome())}


def test_scattered_reads_give_the_same_as_single_ones() -> None:
    """Behind the rest of a piece the next frame's header is received by the same call, in whatever cuts."""
    bodies = [bytes([n]) * size for n, size in enumerate((3, 5000, 0, 20_000, 70_000, 1))]
    for cut in (1, 7, 1000, 9000, 10**6):
        places: list[bytearray] = []

        def body_for(message: Message, size: int, places: list[bytearray] = places) -> memoryview:
            places.append(bytearray(size))
            return memoryview(places[-1])

        dialler, listener = pair(DATA, body_for)
        data = bytearray()
        for body in bodies:
            dialler.send(tensor(), memoryview(body))
            data += wire(dialler)
        arrived = 0
        while data:
            views = listener.get_buffers()
            count = left = min(cut, len(data), sum(map(len, views)))
            for view in views:
                part = data[: min(len(view), left)]
                view[: len(part)] = part
                del data[: len(part)]
                left -= len(part)
            listener.buffer_updated(count, 0.0)
            while listener.next_event() is not None:
                arrived += 1
        assert arrived == len(bodies)
        assert places == bodies


def test_a_body_that_leaves_at_once_is_the_frame_that_send_gives() -> None:
    body = memoryview(b"abc")
    dialler, _ = pair(DATA)
    other, _ = pair(DATA)
    head, view = dialler.send_at_once(tensor(), body) or (b"", memoryview(b""))
    other.send(tensor(), body)
    assert head + view == wire(other)
    dialler.send(tensor(), body)
    assert dialler.send_at_once(tensor(), body) is None, "another waits before it"
    assert other.send_at_once(RETIRED, body) is None, "it has no body"
    assert other.send_at_once(tensor(), memoryview(bytes(PIECE_BYTES_MAX + 1))) is None, "it takes several pieces"
