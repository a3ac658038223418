"""Frames in any pieces; bytes that are none of ours."""

from __future__ import annotations

import itertools
import socket
import struct
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnn.errors import LocalProtocolError
from p2pnn.executor import commands
from p2pnn.executor.channel import FRAME_BYTES_MAX, READ_BYTES, Channel, Codec, encode
from p2pnn.job import script

MESSAGES: list[commands.ToExecutor] = [
    commands.Prepare("/spec", b"plan" * 30_000, 1, "/blobs"),
    script.Train(1, 10),
    commands.Arrived(3, 4),
    commands.Sent(3, 4),
    commands.PeerRetired(1, 2),
    commands.PeerSquares(1, 2, [0.5, 1.5]),
    script.Evaluate(2, "validation"),
    script.Restore(3, ("a", "b")),
    script.Finish(),
]
STREAM = b"".join(encode(message) for message in MESSAGES)


@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_pieces_of_any_size_give_the_same_messages(cuts: list[int]) -> None:
    codec = Codec[commands.ToExecutor](commands.ToExecutor)
    edges = [0, *sorted(cuts), len(STREAM)]
    found = [message for a, b in itertools.pairwise(edges) for message in codec.feed(STREAM[a:b])]
    assert found == MESSAGES


def test_a_broken_length_takes_no_memory() -> None:
    codec = Codec[commands.ToExecutor](commands.ToExecutor)
    with pytest.raises(LocalProtocolError, match="at most"):
        codec.feed(struct.pack("<I", FRAME_BYTES_MAX + 1))


@pytest.mark.parametrize("body", [b"", b"\xc1", b"\x91\x63", b"\x92\x01\x02", b"\x91" * 5000])
def test_other_bytes_are_refused(body: bytes) -> None:
    codec = Codec[commands.ToExecutor](commands.ToExecutor)
    with pytest.raises(LocalProtocolError, match="cannot be read"):
        codec.feed(struct.pack("<I", len(body)) + body)


def test_a_message_over_the_limit_is_not_sent() -> None:
    with pytest.raises(LocalProtocolError, match="Prepare has"):
        encode(commands.Prepare("", bytes(FRAME_BYTES_MAX), 0, ""))


def test_who_leaves_waits_until_all_is_read_and_takes_what_is_still_written() -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(theirs)
    channel.send(commands.Failed("the loss became NaN"))
    leaving = threading.Thread(target=channel.leave)
    leaving.start()
    for _ in range(100):
        ours.sendall(encode(commands.Arrived(3, 4)))  # what a daemon writes that has not read yet
    assert Codec[commands.FromExecutor](commands.FromExecutor).feed(ours.recv(READ_BYTES)) == [
        commands.Failed("the loss became NaN")
    ]
    assert ours.recv(READ_BYTES) == b""
    assert leaving.is_alive()
    ours.close()
    leaving.join(10)
    assert not leaving.is_alive()
    theirs.close()


def test_who_leaves_does_not_wait_for_a_daemon_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pnn.executor.channel.LEAVE_S", 0.01)
    ours, theirs = socket.socketpair()
    Channel(theirs).leave()
    assert ours.recv(READ_BYTES) == b""
    ours.close()
    theirs.close()


def test_the_executor_s_end_looks_waits_and_notices_the_end() -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(theirs)
    assert channel.receive(0) == []
    ours.setblocking(False)
    sent, found = 0, []
    while sent < len(STREAM) or len(found) < len(MESSAGES):  # more than one read at a time
        if sent < len(STREAM):
            sent += ours.send(STREAM[sent : sent + 3 * READ_BYTES])
        found += channel.receive(0)
    assert found == MESSAGES
    channel.send(commands.Retired(1), commands.Send(1, 2))
    assert Codec[commands.FromExecutor](commands.FromExecutor).feed(ours.recv(1000)) == [
        commands.Retired(1),
        commands.Send(1, 2),
    ]
    ours.close()
    with pytest.raises(EOFError):
        channel.receive()
    with pytest.raises(EOFError):
        channel.send(commands.Retired(1))
    theirs.close()
