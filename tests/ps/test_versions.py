"""Buffers: a version that is read does not change, and a live one does."""

from __future__ import annotations

import numpy as np

from p2pnn.ps.versions import Versions


def test_one_buffer_is_live() -> None:
    versions = Versions(np.zeros(3, np.float32), 1)
    pin = versions.pin()
    assert versions.live
    assert versions.next() == 0
    versions.publish(0)
    versions.unpin(pin)
    assert versions.number == 1


def test_a_version_that_is_read_is_not_written() -> None:
    start = np.arange(3, dtype=np.float32)
    versions = Versions(start, 2)
    start[:] = 9
    first = versions.pin()
    target = versions.next()
    assert target is not None
    versions.buffer(target)[:] = 1
    versions.publish(target)
    assert versions.next() is None  # the only other buffer is read
    second = versions.pin()
    versions.unpin(first)
    assert np.array_equal(versions.buffer(first), [0, 1, 2])
    assert versions.next() == first
    versions.unpin(second)
    versions.skip()
    assert versions.number == 2
    assert np.array_equal(versions.newest, [1, 1, 1])
    versions.load(np.full(3, 5, np.float32), 7)
    assert (versions.number, versions.newest[0]) == (7, 5)
    versions.spare[:] = 6  # a state is large: it is received where it will lie
    versions.load(versions.spare, 8)
    assert (versions.number, versions.newest[0]) == (8, 6)


def test_what_is_loaded_leaves_what_is_read_alone() -> None:
    versions = Versions(np.zeros(3, np.float32), 2)
    read = versions.newest
    versions.pin()
    versions.load(np.ones(3, np.float32), 4)
    assert not read.any()
    assert versions.newest.all()
