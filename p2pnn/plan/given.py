"""A cut that a job brings along: which op goes where is decided, and only which node is which is left to choose.

A run with mini-batches in flight writes its cut into its job file, because its bits depend on it. The file repeats it on any
mesh with enough nodes: numbers, not names, say what lies together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Final

from p2pnn.errors import PlanError
from p2pnn.plan import pins
from p2pnn.plan.cost import Links, Workload, limits, memory_bytes
from p2pnn.plan.predict import predict
from p2pnn.plan.profile import Profile
from p2pnn.plan.search import Choice

ORDERS_MAX: Final = 24
"""So many orders of nodes for which there is room are compared by playing them: all of up to four nodes."""

LOOKS_MAX: Final = 10_000
"""Looks at a node for a part, before what was found until then has to do: a quarter of a second."""

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
    for count in frames:
        needs = [memory_bytes(work, cut, part, count) for part in range(nodes_of(cut))]
        orders = islice(_orders(needs, _allowed(work, cut, candidates, pinned), candidates, cap), ORDERS_MAX)
        fitting = []
        for order in orders:
            nodes = tuple(candidates[n] for n in order)
            fitting.append(Choice(nodes, tuple(cut), count, predict(work, cut, nodes, links, count)))
        if fitting:
            return max(fitting, key=lambda choice: choice.prediction.samples_per_s)
    raise PlanError(f"no nodes have room for the parts of the job's cut, with the pins that are given; {_OTHERWISE}")


def _allowed(
    work: Workload, cut: Sequence[int], candidates: Sequence[Profile], pinned: Mapping[int, int]
) -> dict[int, list[int]]:
    """Part → the candidates that pins leave it: pinned parts first, then those with the most work; fast candidates first."""
    homes: dict[int, set[int]] = {}
    for op, node in pinned.items():
        homes.setdefault(cut[op], set()).add(node)
    taken = set(pinned.values())
    fast = sorted(range(len(candidates)), key=lambda n: -candidates[n].gemm_gflops)
    flops = [0.0] * nodes_of(cut)
    for op, part in enumerate(cut):
        flops[part] += work.forward_flops[op] + work.backward_flops[op]
    return {
        part: [n for n in fast if (homes[part] == {n} if part in homes else n not in taken)]
        for part in sorted(range(len(flops)), key=lambda part: (part not in homes, -flops[part]))
    }


def _orders(
    needs: Sequence[int], allowed: Mapping[int, Sequence[int]], candidates: Sequence[Profile], cap: int
) -> Iterator[tuple[int, ...]]:
    """For each part a candidate of its own, such that all have room. needs: bytes by part."""
    parts, looks = list(allowed), iter(range(LOOKS_MAX))

    def extend(chosen: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        if len(chosen) == len(parts):
            yield tuple(chosen[parts.index(part)] for part in range(len(parts)))
            return
        for node in allowed[parts[len(chosen)]]:
            if node in chosen or next(looks, None) is None:
                continue
            more = (*chosen, node)
            room = limits([candidates[n] for n in more], cap)  # nodes of one machine share it: less, the more there are
            if all(needs[part] <= r for part, r in zip(parts, room, strict=False)):
                yield from extend(more)

    return extend(())


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
