"""What is kept of one part: the newest few, and whose memory is used again."""

from __future__ import annotations

from p2pnn.job.plan import Plan
from p2pnn.node.holdings import Holding, Spare
from p2pnn.types import BlobId


def test_the_newest_few_are_kept_and_the_others_given_up() -> None:
    released: list[tuple[int, bytes]] = []
    holding = Holding(
        Plan((), (), 1, 1.0, 1.0),
        BlobId("5" * 64),
        2,
        release=lambda step, data: released.append((step, bytes(data))),
    )
    for step in (4, 8, 12):
        holding.add(step, memoryview(bytes([step])))
    assert sorted(holding.cuts) == [8, 12]
    assert released == [(4, b"\x04")]


def test_the_memory_of_a_cut_that_is_dropped_takes_the_next_unless_one_is_being_read() -> None:
    spare, old = Spare(), memoryview(bytearray(8))
    spare.release(4, old)
    assert spare.take(8) is old
    with spare.pinned():
        spare.release(8, old)
    assert spare.take(8) is not old
    spare.release(12, old)
    assert len(spare.take(9)) == 9
