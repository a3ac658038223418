"""Updates that arrive in pieces: whole in any order, bounded, and never half."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p2pnn.replication.limits import Limits
from p2pnn.replication.staging import Staging, Update


@given(data=st.binary(min_size=1, max_size=40), cuts=st.sets(st.integers(1, 39)), order=st.randoms())
def test_pieces_in_any_order_make_the_update(data: bytes, cuts: set[int], order: st.DataObject) -> None:
    starts = sorted({0, *(cut for cut in cuts if cut < len(data))})
    pieces = [(start, data[start:stop]) for start, stop in zip(starts, [*starts[1:], len(data)], strict=True)]
    pieces += pieces[:2]
    order.shuffle(pieces)  # type: ignore[attr-defined]
    update = Update((9, 1), len(data), 0.0)
    for start, piece in pieces:
        update.add(start, piece, 0.0, 100)
    assert update.is_complete
    assert b"".join(update.body()) == data


def test_pieces_that_overlap_are_all_dropped() -> None:
    update = Update((9, 1), 4, 0.0)
    assert update.add(0, b"abc", 0.0, 100)
    assert not update.add(1, b"bc", 0.0, 100)
    assert update.held_bytes == 0
    assert not update.add(2, b"cde", 0.0, 100), "it would go beyond the end"
    assert not update.add(2, b"", 0.0, 100)
    assert update.add(0, b"abcd", 0.0, 100)
    assert update.is_complete
    many = Update((9, 1), 4, 0.0)
    assert [many.add(at, b"a", 0.0, 2) for at in range(3)] == [True, True, False], "too many pieces"


def test_no_more_than_its_bounds_and_only_the_idle_give_way() -> None:
    staging = Staging(Limits(staged_max=2, window=2, staged_bytes_max=10, staged_idle_s=1.0))
    first, second = staging.open((1, 1), 4, 0.0), staging.open((2, 1), 4, 0.8)
    assert first is not None
    assert second is not None
    assert staging.open((3, 1), 1, 0.9) is None, "both are fresh"
    assert staging.dropped == 1
    assert staging.open((3, 1), 1, 1.0) is not None, "the first has been idle"
    assert staging.get((1, 1)) is None
    assert staging.open((4, 1), 11, 9.0) is None, "larger than all of it"
    second.accepted = True
    assert staging.waiting() == [(2, 1)]
    assert staging.open((4, 1), 10, 9.0) is not None, "what was accepted, too: its worker's earlier one may never come"
    assert staging.waiting() == []


def test_what_has_a_number_stays_until_it_is_whole() -> None:
    staging = Staging(Limits(staged_max=1, window=1))
    claimed = staging.claim((1, 1), 4, 0.0)
    assert staging.open((2, 1), 4, 99.0) is None
    assert staging.open((1, 1), 4, 99.0) is claimed
    assert staging.open((1, 1), 5, 99.0) is None, "another size"
    assert staging.claim((2, 1), 4, 0.0) is not None, "whatever room there is"
    staging.remove((2, 1))
    staging.remove((1, 1))
    whole = staging.open((3, 1), 1, 0.0)
    assert whole is not None
    whole.add(0, b"a", 0.0, 9)
    assert staging.claim((3, 1), 1, 0.0) is whole
    assert staging.get((3, 1)) is None, "the log has it"
