"""Which steps all shards have decided, and which of them none has taken."""

from __future__ import annotations

import pytest

from p2pnn.ps.decided import HELD_BAD, OLD, TAKEN, Decided, fate_of, with_fate
from p2pnn.ps.messages import Refusal


class FakeShard:
    def __init__(self, unacknowledged: int = 0, **fates: int) -> None:
        self.unacknowledged = unacknowledged
        self._fates = {int(push[1:]): found for push, found in fates.items()}

    def fate(self, push: int) -> int:
        return self._fates.get(push, TAKEN)


def test_what_became_of_the_last_two_pushes_fits_into_four_bits() -> None:
    lately = 0
    for why in (Refusal.RUNAWAY, None, Refusal.TOO_STALE):
        lately = with_fate(lately, why)
    assert [fate_of(lately, before) for before in range(3)] == [OLD, TAKEN, TAKEN]
    lately = with_fate(lately, Refusal.NOT_FINITE)
    assert [fate_of(lately, before) for before in range(3)] == [HELD_BAD, OLD, TAKEN]
    assert lately < 16
    assert fate_of(0xF, 0) == HELD_BAD, "whatever comes over a link"


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        (OLD, OLD, [(3, 5, False)]),
        (HELD_BAD, HELD_BAD, [(3, 5, True)]),
        (HELD_BAD, OLD, [(3, 5, False)]),
        (OLD, TAKEN, []),
        (TAKEN, HELD_BAD, []),
    ],
)
def test_steps_that_no_shard_has_taken_are_told_once_all_have_decided(
    first: int, second: int, told: list[tuple[int, int, bool]]
) -> None:
    decided, found = Decided(2), list[tuple[int, int, bool]]()
    decided.on_refused = lambda *about: found.append(about)
    for steps in (3, 5, 6):
        decided.begins(steps)
    decided.heard([FakeShard(1, n2=first), FakeShard(2)])
    assert (decided.steps, decided.pushes, found) == (3, 1, [])
    decided.heard([FakeShard(1, n2=first), FakeShard(1, n2=second)])
    assert (decided.steps, decided.pushes, decided.begun, found) == (5, 2, 3, told)
