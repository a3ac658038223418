"""The order of sums: as it is written down, and such that shares of it are parts of it."""

from __future__ import annotations

import pytest

from p2pnn.model import sums

Sum = tuple[object, ...] | int


def summed(items: list[Sum]) -> Sum:
    """What is added to what, as nested pairs, kept on no more places than `most` says."""
    levels: list[Sum] = [()] * sums.most(len(items))
    for index, item in enumerate(items):
        before, added = sums.place(index)
        if not added:
            levels[before] = item
            continue
        levels[before - 1] = (levels[before - 1], item)
        for level in range(before - 2, before - 1 - added, -1):
            levels[level] = (levels[level], levels[level + 1])
    for level in range(sums.left(len(items)) - 1, 0, -1):
        levels[level - 1] = (levels[level - 1], levels[level])
    return levels[0]


def test_micro_batches_are_summed_in_pairs() -> None:
    numbers: list[Sum] = list(range(8))
    assert [summed(numbers[:n]) for n in range(1, 5)] == [0, (0, 1), ((0, 1), 2), ((0, 1), (2, 3))]
    assert summed(numbers[:7]) == (((0, 1), (2, 3)), ((4, 5), 6))
    assert summed(numbers) == (((0, 1), (2, 3)), ((4, 5), (6, 7)))
    assert [sums.most(n) for n in (1, 2, 3, 4, 5, 8, 9, 16)] == [1, 1, 2, 2, 2, 3, 3, 4]


@pytest.mark.parametrize("share", [1, 2, 4, 8])
@pytest.mark.parametrize("workers", [1, 2, 3, 4, 5, 7, 8])
def test_shares_of_a_power_of_two_are_parts_of_the_whole_sum(share: int, workers: int) -> None:
    numbers: list[Sum] = list(range(share * workers))
    shares = [summed(numbers[worker * share : (worker + 1) * share]) for worker in range(workers)]
    assert summed(shares) == summed(numbers)


def test_other_shares_are_not() -> None:
    numbers: list[Sum] = list(range(6))
    assert summed([summed(numbers[:3]), summed(numbers[3:])]) != summed(numbers)
