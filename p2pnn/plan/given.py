"""A cut that a job brings along: which op goes where is decided, and only which node is which is left to choose.

A run with mini-batches in flight writes its cut into its job file, because its bits depend on it. The file repeats it on any
mesh with enough nodes: numbers, not names, say what lies together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice, permutations
from typing import Final

from p2pnn.errors import PlanError
from p2pnn.plan import pins
from p2pnn.plan.cost import Links, Workload, limits, memory_bytes
from p2pnn.plan.predict import predict
from p2pnn.plan.profile import Profile
from p2pnn.plan.search import Choice

ORDERS_MAX: Final = 24
"""So many orders of nodes are compared by playing them: all of up to four nodes."""

_OTHERWISE: Final = "leave cut out of the job file's [mesh] to have it cut anew"


def nodes_of(cut: Sequence[int]) -> int:
    """How many nodes a cut is over."""
    return len(set(cut))


def choose(
    work: Workload,
    cut: Sequence[int],
    candidates: Sequence[Profile],
    links: Links,
    frames: Sequence[int],
    pinned: Mapping[int, int],
    cap: int,
) -> Choice:
    """The order of nodes that is the fastest with this cut, with the first number of frames for which there is room.

    pinned: op → index into candidates. Raises PlanError with one sentence for a cut that is not one of this model, too few
    nodes, or no room.
    """
    _check(work, cut, candidates)
    fitting: list[Choice] = []
    for count in frames:
        for order in islice(permutations(range(len(candidates)), nodes_of(cut)), ORDERS_MAX):
            nodes = tuple(candidates[n] for n in order)
            room = limits(nodes, cap)
            if all(order[cut[op]] == node for op, node in pinned.items()) and all(
                memory_bytes(work, cut, n, count) <= r for n, r in enumerate(room)
            ):
                fitting.append(Choice(nodes, tuple(cut), count, predict(work, cut, nodes, links, count)))
        if fitting:
            return max(fitting, key=lambda choice: choice.prediction.samples_per_s)
    raise PlanError(f"no nodes have room for the parts of the job's cut, with the pins that are given; {_OTHERWISE}")


def _check(work: Workload, cut: Sequence[int], candidates: Sequence[Profile]) -> None:
    numbers = sorted(set(cut))
    if len(cut) != work.count or numbers != list(range(len(numbers))):
        raise PlanError(
            f"the job's cut has {len(cut)} numbers from {numbers[0]} to {numbers[-1]}, but this model has {work.count} ops, "
            f"and nodes count 0, 1, …; {_OTHERWISE}"
        )
    for group in pins.groups(work.graph):
        if len({cut[op] for op in group}) > 1:
            raise PlanError(f"the job's cut parts the ops of {pins.layer(work.graph, group[0])}; {_OTHERWISE}")
    if len(numbers) > len(candidates):
        raise PlanError(
            f"the job's cut is over {len(numbers)} nodes, but there are {len(candidates)}; start more, or {_OTHERWISE}"
        )
