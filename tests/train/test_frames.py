"""Layouts of random plans: places are aligned, apart, and the same on both ends."""

from __future__ import annotations

import random
from itertools import combinations

import pytest

from p2pnn.errors import LocalProtocolError
from p2pnn.job.segment import transfers
from p2pnn.model.graph import BATCH, Value
from p2pnn.train.frames import ALIGNMENT_BYTES, layout, nbytes
from tests.train.graphs import plan_for, random_graph


@pytest.mark.parametrize("seed", range(30))
def test_places_are_aligned_and_apart(seed: int) -> None:
    dice = random.Random(seed)
    graph = random_graph(dice, 12)
    nodes, frames, rows = dice.randint(2, 4), dice.randint(1, 3), dice.choice((1, 7, 32))
    plan = plan_for([dice.randrange(nodes) for _ in graph.ops], nodes, frames)
    crossing = transfers(graph, plan.assignment)
    for node in range(nodes):
        places = layout(graph, plan, node, rows)
        mine = [t for t in crossing if node in (t.source, t.target)]
        spans: dict[tuple[str, int, int], tuple[int, int]] = {}
        for t in mine:
            for m in range(frames):
                offset, size = places.place(t.index, m)
                assert offset % ALIGNMENT_BYTES == 0
                assert size == rows * 3 * 4
                assert offset + size <= places.arena_bytes
                assert places.place(t.index, m + frames) == (offset, size)
                assert spans.setdefault((t.value, t.consumer, m), (offset, size)) == (offset, size)
        for (a, a_size), (b, b_size) in combinations(spans.values(), 2):
            assert a + a_size <= b or b + b_size <= a
        assert bool(mine) == bool(places.arena_bytes)


def test_a_value_for_two_nodes_has_one_place() -> None:
    dice = random.Random(0)
    found = 0
    for _ in range(50):
        graph = random_graph(dice, 8)
        plan = plan_for([dice.randrange(3) for _ in graph.ops], 3, 2)
        crossing = transfers(graph, plan.assignment)
        for a, b in combinations(crossing, 2):
            if a.value == b.value and a.consumer == b.consumer == -1:
                places = layout(graph, plan, a.source, 4)
                assert places.place(a.index, 1) == places.place(b.index, 1)
                found += 1
    assert found > 10


def test_what_passes_by_has_no_place_here() -> None:
    graph = random_graph(random.Random(1), 8)
    plan = plan_for([i % 2 for i in range(len(graph.ops))], 3, 2)
    with pytest.raises(LocalProtocolError, match="neither starts nor ends"):
        layout(graph, plan, 2, 4).place(0, 0)


def test_bytes_of_a_value() -> None:
    assert nbytes(Value("a", "int64", (BATCH, 3, 5)), 4) == 4 * 15 * 8
    assert nbytes(Value("loss", "float32", ()), 4) == 4
