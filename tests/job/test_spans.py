"""The ring: it keeps the newest, counts all, and is read whole while somebody writes it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnn.job.spans import (
    ALL_WORKERS,
    HEAD_BYTES,
    RECORD,
    RING_BYTES,
    SPANS_MAX,
    Kind,
    Ring,
    Span,
    of_push,
    read,
    shard_and_worker,
    unpack,
)


def ring_of(places: int) -> tuple[Ring, bytearray]:
    memory = bytearray(HEAD_BYTES + places * RECORD.size)
    return Ring(memory), memory


def number(at: int) -> Span:
    return Span(float(at), at + 0.5, at, -1, Kind.FORWARD, 7)


def fill(ring: Ring, until: int, start: int = 0) -> None:
    for at in range(start, until):
        span = number(at)
        ring.add(span.start, span.end, span.micro_batch, span.step, span.kind, span.what)


@given(places=st.integers(1, 9), count=st.integers(0, 40))
def test_the_newest_are_kept_in_order_and_the_others_counted(places: int, count: int) -> None:
    ring, memory = ring_of(places)
    fill(ring, count)
    found = read(memory)
    spans = unpack(found.spans)
    assert found.lost + len(spans) == count
    assert spans == [number(at) for at in range(found.lost, count)]
    assert len(spans) >= min(count, places - 1)


def test_what_was_overwritten_during_the_copy_is_left_out() -> None:
    """The writer goes on while the reader copies: here between the copy and the second look at the count."""
    places = 5
    for before, meanwhile in itertools.product(range(12), range(9)):
        ring, memory = ring_of(places)
        fill(ring, before)

        class Copied(bytearray):
            """Its slice is the copy; behind it the writer goes on."""

            def __getitem__(self, key: object) -> bytes:  # type: ignore[override]
                copy = bytes(memory)[key]  # type: ignore[index]  # noqa: B023
                fill(ring, before + meanwhile, before)  # noqa: B023
                self[:8] = memory[:8]  # noqa: B023
                return copy  # type: ignore[return-value]

        found = read(Copied(memory))
        spans = unpack(found.spans)
        assert spans == [number(at) for at in range(found.lost, found.lost + len(spans))]
        assert all(span.micro_batch > before + meanwhile - places for span in spans if before + meanwhile >= places)
        assert found.lost + len(spans) == before


def test_an_open_wait_is_seen_until_it_is_over() -> None:
    ring, memory = ring_of(3)
    assert read(memory).since == 0.0
    ring.waits(12.5)
    assert read(memory).since == 12.5
    ring.waits(0.0)
    assert read(memory) == (b"", 0, 0.0)


def test_the_size_of_a_ring_holds_its_spans() -> None:
    memory = bytearray(RING_BYTES)
    fill(Ring(memory), SPANS_MAX)
    assert len(unpack(read(memory).spans)) >= SPANS_MAX - 1


@pytest.mark.parametrize(("shard", "worker"), [(0, 0), (3, 7), (0x7FFF, ALL_WORKERS)])
def test_a_shard_and_a_worker_have_place_in_a_span(shard: int, worker: int) -> None:
    memory = bytearray(RING_BYTES)
    Ring(memory).add(1.0, 2.0, 3, 4, Kind.APPLY, of_push(shard, worker))
    [span] = unpack(read(memory).spans)
    assert shard_and_worker(span.what) == (shard, worker)
    with pytest.raises(ValueError, match="no place in a span"):
        of_push(shard + 0x8000, worker)
