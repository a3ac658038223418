"""The log's numbers, what is cut off at either end, and the sequences in it."""

from __future__ import annotations

import pytest

from p2pnn.errors import RemoteProtocolError
from p2pnn.replication.log import Entry, Log, Sessions
from p2pnn.replication.staging import Update


def entry(number: int, worker: int = 1, size: int = 1, *, whole: bool = True) -> Entry:
    update = Update((worker, number), size, 0.0)
    if whole:
        update.add(0, bytes(size), 0.0, 9)
    return Entry(number, 5, worker, number, update, 0.0)


def log_of(count: int, floor: int = 0) -> Log:
    log = Log(floor)
    for number in range(floor + 1, floor + count + 1):
        log.append(entry(number, worker=number % 2))
    return log


def test_numbers_follow_each_other() -> None:
    log = log_of(3, floor=10)
    assert (log.floor, log.last) == (10, 13)
    assert log.get(10) is None
    assert [one.number for one in log.after(11)] == [12, 13]
    assert [one.number for one in log.between(10, 12)] == [11, 12]
    with pytest.raises(AssertionError):
        log.append(entry(15))


def test_truncation_forgets_sequences_that_are_gone() -> None:
    log = log_of(4)
    assert (log.latest(0), log.latest(1)) == (4, 3)
    assert [one.number for one in log.truncate(2)] == [3, 4]
    assert (log.last, log.latest(0), log.latest(1)) == (2, 2, 1)
    assert log.truncate(5) == []


def test_trimming_keeps_what_is_retained_and_what_is_not_stable() -> None:
    log = log_of(10)
    log.trim(6, 2, 99)
    assert (log.floor, log.last) == (4, 10)
    log.trim(6, 99, 1)
    assert log.floor == 5
    log.trim(99, 0, 0)
    assert (log.floor, log.last, log.latest(1)) == (10, 10, 0)


def test_complete_ends_where_bytes_are_missing() -> None:
    log = log_of(2)
    log.append(entry(3, whole=False))
    log.append(entry(4))
    assert log.complete(0) == 2
    assert log.complete(1) == 2
    assert log.open_bytes(2) == 2


def test_bytes_are_counted_whatever_is_gone() -> None:
    log = Log()
    for number in range(1, 7):
        log.append(entry(number, size=number))
    log.trim(2, 0, 0)
    assert log.open_bytes(2) == 3 + 4 + 5 + 6
    log.truncate(4)
    log.append(entry(5, size=10))
    assert log.open_bytes(2) == 3 + 4 + 10
    log.trim(5, 99, 12)
    assert (log.floor, log.open_bytes(5)) == (4, 0)
    log.reset(9)
    log.append(entry(10, size=7))
    assert log.open_bytes(9) == 7


def test_sessions_travel() -> None:
    sessions = Sessions()
    sessions.committed(2**62, 7)
    again = Sessions.decode(sessions.encode())
    assert again.last(2**62) == 7
    assert 2**62 in again
    assert len(again) == 1
    assert again.last(3) == 0
    for wrong in (b"", b"\x00", b"\x92\x02\x80", b"\x92\x01\x81\xff\x00"):
        with pytest.raises(RemoteProtocolError, match="cannot be read"):
            Sessions.decode(wrong)


def test_bytes_that_were_applied_go_or_are_kept_as_copies() -> None:
    log, memory = Log(), bytearray(b"0123456789")
    for number, start in ((1, 0), (2, 4), (3, 8)):
        update = Update((9, number), 2, 0.0)
        update.add(0, memoryview(memory)[start : start + 2], 0.0, 9)
        log.append(Entry(number, 1, 9, number, update, 0.0))
    log.let_go(0, 1, keep_copies=False)
    log.let_go(1, 2, keep_copies=True)
    memory[:] = b"x" * 10
    first, second, third = (entry.update for entry in log.after(0))
    assert first is not None
    assert second is not None
    assert third is not None
    assert (first.pieces, first.is_gone, first.is_complete) == ({}, True, True)
    assert (second.pieces, second.is_gone) == ({0: b"45"}, False)
    assert bytes(third.pieces[0]) == b"xx"
    assert log.complete(0) == 3
