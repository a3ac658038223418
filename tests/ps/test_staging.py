"""The pool of places."""

from __future__ import annotations

from p2pnn.ps.messages import Push
from p2pnn.ps.staging import Staging
from tests.ps.network import workers_named

(A,) = workers_named(1)


def test_places_are_bounded_and_come_back_when_nothing_goes_into_them() -> None:
    staging = Staging([8, 4], 1)
    staged = staging.open(Push(A, 0, 1, 0, 8, 0))
    assert (staging.free, staged.missing, staged.whole) == (0, {0, 1}, False)
    assert [staging.part(staged, i).nbytes for i in (0, 1)] == [8, 4]
    staging.part(staged, 1)[:] = 7
    assert staged.place.tolist()[8:] == [7] * 4
    staged.receiving.add(0)
    assert not staging.close(staged)
    assert staging.free == 0
    staged.receiving.discard(0)
    assert staging.settle(staged)
    assert staging.free == 1
    staging.grow(3)
    assert (staging.free, staging.places) == (3, 3)
