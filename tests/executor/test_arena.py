"""Two mappings of one arena see the same bytes; it goes when it is closed."""

from __future__ import annotations

import os

import numpy as np
import pytest

from p2pnn.errors import StorageError
from p2pnn.executor.arena import Arena


@pytest.fixture(params=["memfd", "file"])
def made(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Arena:
    if request.param == "file":
        monkeypatch.delattr(os, "memfd_create", raising=False)
    return Arena.create(4096)


def test_both_ends_see_the_same_bytes(made: Arena) -> None:
    other = Arena.inherit(os.dup(made.descriptor))
    assert other.size == 4096
    array = other.array(64, (2, 3), "float32")
    array[:] = np.arange(6).reshape(2, 3)
    assert array.flags.c_contiguous
    assert bytes(made.view[64:88]) == np.arange(6, dtype="<f4").tobytes()
    made.view[64:68] = b"\0\0\x80\x3f"
    assert array[0, 0] == 1.0
    del array
    other.close()
    made.close()


def test_views_outlive_a_close(made: Arena) -> None:
    array = made.array(0, (4,), "int64")
    made.close()
    made.close()
    array[:] = 7
    assert array.sum() == 28


def test_an_empty_arena_is_fine() -> None:
    empty = Arena.create(0)
    assert empty.size == 0
    empty.close()


def test_too_much_is_one_sentence() -> None:
    descriptors = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    with pytest.raises(StorageError, match="no shared memory of"):
        Arena.create(1 << 62)
    if descriptors:
        assert len(os.listdir("/proc/self/fd")) == descriptors
