"""A round's sum: the bits of the written order, whether gradients stay where they are or share one place."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from p2pnn.ps.space import Flat
from p2pnn.ps.summing import Summing


def gradients(count: int) -> list[Flat]:
    dice = np.random.default_rng(count)
    return [(dice.standard_normal(50) * 10.0 ** dice.integers(-3, 4)).astype(np.float32) for _ in range(count)]


def shared(arrays: list[Flat]) -> Iterator[Flat]:
    """As a decoder gives them: each in the memory of the one before."""
    place = np.empty_like(arrays[0])
    for array in arrays:
        np.copyto(place, array)
        yield place


def test_the_order_is_that_of_pairs() -> None:
    a, b, c, d, e = arrays = gradients(5)
    total = Summing(50, 5).sum(arrays, kept=True)
    assert total.tobytes() == (((a + b) + (c + d)) + e).tobytes()
    assert total.tobytes() != ((((a + b) + c) + d) + e).tobytes()


@pytest.mark.parametrize("count", range(1, 10))
def test_what_is_summed_is_only_read_and_may_share_one_place(count: int) -> None:
    arrays = gradients(count)
    before = [array.copy() for array in arrays]
    summing = Summing(50, 1)
    summing.grow(count)
    total = summing.sum(arrays, kept=True).copy()
    assert all(np.array_equal(old, new) for old, new in zip(before, arrays, strict=True))
    assert summing.sum(shared(arrays), kept=False).tobytes() == total.tobytes()
    np.testing.assert_allclose(total, np.sum(before, axis=0), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("workers", "share"), [(2, 2), (4, 2), (3, 4)])
def test_workers_that_sum_their_shares_make_the_whole_sum(workers: int, share: int) -> None:
    arrays = gradients(workers * share)
    whole = Summing(50, len(arrays)).sum(arrays, kept=True).tobytes()
    own = [Summing(50, share).sum(arrays[w * share :][:share], kept=True) for w in range(workers)]
    assert Summing(50, workers).sum(own, kept=True).tobytes() == whole
