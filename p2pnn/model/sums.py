"""In which order the gradients of a step's micro-batches are summed: in pairs, ((g₀ + g₁) + (g₂ + g₃)) + …

Sums of a power of two of them are kept, each of fewer than the one before; a micro-batch is a new one, and as long as the last
two are of equally many they are added. What is left at the step's end is added from the newest back. So whoever sums 2^k of them
that begin at a multiple of 2^k has a number that is part of the whole sum: the workers of a data-parallel step make, each of its
own share, what one process makes of all.
"""

from __future__ import annotations


def place(index: int) -> tuple[int, int]:
    """Of micro-batch number `index`: how many sums there are before it, and how many of these are added up once it is there.

    In the second case (0: none) the micro-batch is added to the last of them first.
    """
    return index.bit_count(), ((index + 1) & ~index).bit_length() - 1


def left(count: int) -> int:
    """How many sums are left after `count` micro-batches."""
    return count.bit_count()


def most(count: int) -> int:
    """How many sums there are at most on the way to `count` micro-batches, if an added one is never a sum of its own."""
    return max((index.bit_count() + 1 for index in range(0, count, 2)), default=1)
