"""Shards: they hold every element once, in all three ways to cut; parts; who speaks to whom; bad input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnn.errors import PlanError
from p2pnn.ps.sharding import PART_ELEMENTS_MAX, PART_ELEMENTS_MIN, POLICIES, Sharding, cut, cut_segments
from p2pnn.ps.space import Entry, Space
from tests.ps.models import mlp


def space_of(sizes: list[int]) -> Space:
    entries, at = [], 0
    for i, size in enumerate(sizes):
        entries.append(Entry(f"p{i}", (size,), at, at + size, i % 2 == 0, i))
        at += size
    return Space(entries)


@given(
    st.lists(st.one_of(st.integers(1, 50), st.integers(1, 3 * PART_ELEMENTS_MIN)), min_size=1, max_size=12),
    st.integers(1, 12),
    st.sampled_from(POLICIES),
)
def test_every_element_lies_in_one_shard_and_one_part(sizes: list[int], count: int, policy: str) -> None:
    space = space_of(sizes)
    sharding = cut(space, min(count, len(sizes)), policy)
    flat = np.arange(space.size, dtype=np.float32)
    buffers = sharding.split(flat)
    assert np.array_equal(sharding.join(buffers, np.full(space.size, np.nan, np.float32)), flat)
    assert np.array_equal(np.sort(np.concatenate(buffers)), flat)
    for shard in sharding.shards:
        assert [p.start for p in shard.parts] == [0, *(p.stop for p in shard.parts)][: len(shard.parts)]
        assert shard.parts[-1].stop == shard.size
        assert shard.size > 0
        for part in shard.parts:
            inside = {p.entry for p in shard.pieces if p.at < part.stop and part.start < p.at + p.size}
            assert set(part.entries) == inside
            assert part.needed == min(space.entries[e].needed for e in inside)
            assert part.size <= PART_ELEMENTS_MAX
        assert [r[0] for r in shard.decay] == [0, *(r[1] for r in shard.decay)][: len(shard.decay)]
        for start, stop, decays in shard.decay:
            for piece in shard.pieces:
                if start <= piece.at < stop:
                    assert space.entries[piece.entry].decay == decays
                    assert piece.at + piece.size <= stop


@given(
    st.lists(st.one_of(st.integers(1, 50), st.integers(1, 3 * PART_ELEMENTS_MIN)), min_size=1, max_size=12),
    st.integers(1, 4),
    st.integers(0, 12),
    st.sampled_from(POLICIES),
)
def test_segments_have_shards_of_their_own_which_are_those_of_the_whole(
    sizes: list[int], segments: int, more: int, policy: str
) -> None:
    space, segments = space_of(sizes), min(segments, len(sizes))
    count = min(segments + more, len(sizes))
    names = [[entry.name for n, entry in enumerate(space.entries) if n % segments == s] for s in range(segments)]
    whole, own = cut_segments(space, names, count, policy)
    assert [shard.index for shard in whole.shards] == list(range(count))
    assert [shard.index for part in own for shard in part.shards] == list(range(count))
    flat = np.arange(space.size, dtype=np.float32)
    assert np.array_equal(whole.join(whole.split(flat), np.full(space.size, np.nan, np.float32)), flat)
    views = space.views(flat)
    for segment, (part, mine) in enumerate(zip(own, names, strict=True)):
        assert [entry.name for entry in part.space.entries] == mine
        held = part.space.join(views)
        for shard in part.shards:
            there = whole.shards[shard.index]
            assert whole.segments[shard.index] == segment
            assert [(p.index, p.start, p.stop, p.needed) for p in shard.parts] == [
                (p.index, p.start, p.stop, p.needed) for p in there.parts
            ]
            assert shard.decay == there.decay
            buffer = part.take(shard.index, held, np.empty(shard.size, np.float32))
            assert np.array_equal(buffer, whole.take(shard.index, flat, np.empty(there.size, np.float32)))
            assert {space.entries[entry].name for p in there.parts for entry in p.entries} <= set(mine)


def test_shards_go_to_the_segments_whose_shards_would_be_largest() -> None:
    space = space_of([100, 100, 100, 10, 10])
    names = [["p0", "p1", "p2"], ["p3", "p4"]]
    assert cut_segments(space, names, 2)[0].segments == (0, 1)
    assert cut_segments(space, names, 4)[0].segments == (0, 0, 0, 1)
    assert cut_segments(space, names, 5)[0].segments == (0, 0, 0, 1, 1)
    with pytest.raises(PlanError, match="shards = 6, but the model has only 5 parameter tensors"):
        cut_segments(space, names, 6)
    with pytest.raises(PlanError, match="shards = 1, but a model replica has 2 segments"):
        cut_segments(space, names, 1)


def test_equal_cuts_are_equal_and_go_through_parameters() -> None:
    sharding = cut(space_of([10, 1, 9, 3]), 4)
    assert [shard.size for shard in sharding.shards] == [5, 6, 6, 6]
    assert sharding.shards_of(["p0"]) == (0, 1)
    assert [(p.entry, p.start, p.stop, p.at) for p in sharding.shards[1].pieces] == [(0, 5, 10, 0), (1, 10, 11, 5)]


def test_greedy_balances_and_round_robin_deals() -> None:
    space = space_of([100, 1, 60, 2, 40, 3])
    greedy, dealt = cut(space, 2, "greedy"), cut(space, 2, "round-robin")
    assert sorted(shard.size for shard in greedy.shards) == [103, 103]
    assert [shard.size for shard in dealt.shards] == [200, 6]
    assert all(len(sharding.shards_of([e.name])) == 1 for sharding in (greedy, dealt) for e in space.entries)


def test_segments_speak_only_to_the_shards_of_their_layers() -> None:
    sharding: Sharding = cut(Space.of(mlp(6, 7)), 2, "round-robin")
    layers = {name: (f"{name}/weight", f"{name}/bias") for name in ("fc0", "fc1", "head")}
    assert sharding.who_talks(layers) == {0: ("fc0", "fc1", "head"), 1: ("fc0", "fc1", "head")}
    equal = cut(Space.of(mlp(6, 7)), 3)
    assert equal.who_talks(layers) == {0: ("fc0",), 1: ("fc0", "fc1"), 2: ("fc1", "head")}
    assert equal.shards_of(layers["fc0"]) == (0, 1)


def test_large_parameters_are_sent_in_parts() -> None:
    (shard,) = cut(space_of([2 * PART_ELEMENTS_MAX + 5, 7]), 1).shards
    assert [part.entries for part in shard.parts] == [(0,), (0,), (0,), (1,)]


@pytest.mark.parametrize(
    ("count", "policy", "words"),
    [
        (0, "equal", "shards = 0: at least one"),
        (-1, "greedy", "shards = -1: at least one"),
        (3, "equal", "shards = 3, but the model has only 2 parameter tensors of 6 elements; take at most 2"),
        (3, "round-robin", "take at most 2"),
        (1, "even", "no way 'even'"),
    ],
)
def test_bad_input_is_one_sentence(count: int, policy: str, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        cut(space_of([4, 2]), count, policy)
