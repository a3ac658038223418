"""The flat space: offsets, views, and what does not fit."""

from __future__ import annotations

import numpy as np
import pytest

from p2pnn.errors import ModelError
from p2pnn.ps.space import Space, read_by
from tests.ps.models import mlp


def test_parameters_lie_end_to_end_in_graph_order() -> None:
    graph = mlp(6, 7)
    space = Space.of(graph)
    assert [entry.name for entry in space.entries] == [p.name for p in graph.parameters]
    at = 0
    for entry, parameter in zip(space.entries, graph.parameters, strict=True):
        assert (entry.start, entry.stop, entry.shape) == (at, at + parameter.size, parameter.shape)
        assert entry.decay == parameter.decay
        at = entry.stop
    assert (space.size, space.byte_count) == (at, 4 * at)
    assert [space.entry(f"fc{i}/weight").needed for i in (0, 1)] == sorted(
        i for i, op in enumerate(graph.ops) if op.kind == "Gemm"
    )[:2]


def test_views_and_join_are_inverse() -> None:
    space = Space.of(mlp(6))
    arrays = {
        e.name: np.random.default_rng(i).standard_normal(e.shape, np.float32) for i, e in enumerate(space.entries)
    }
    flat = space.join(arrays)
    for name, view in space.views(flat).items():
        assert np.array_equal(view, arrays[name])
        assert np.shares_memory(view, flat)


def test_what_a_segment_reads() -> None:
    graph = mlp(6, 7)
    gemms = [i for i, op in enumerate(graph.ops) if op.kind == "Gemm"]
    assert read_by(graph, gemms[1:2]) == ("fc1/weight", "fc1/bias")
    assert read_by(graph, range(len(graph.ops))) == tuple(p.name for p in graph.parameters)


def test_what_does_not_fit_is_named() -> None:
    space = Space.of(mlp(6))
    with pytest.raises(ModelError, match="'fc9/weight' is no parameter"):
        space.entry("fc9/weight")
    with pytest.raises(ModelError, match="float64"):
        space.views(np.zeros(space.size))
    with pytest.raises(ModelError, match="'fc0/weight' is missing"):
        space.join({})
    with pytest.raises(ModelError, match=r"'fc0/weight' has the shape \(1,\)"):
        space.join({"fc0/weight": np.zeros(1, np.float32)})


def test_a_segment_has_a_space_of_its_own() -> None:
    space = Space.of(mlp(6, 7))
    part = space.only(["head/weight", "fc1/bias"])
    assert [(e.name, e.start) for e in part.entries] == [("fc1/bias", 0), ("head/weight", 7)]
    assert part.size == 7 + 35
    assert part.decay == ((0, 7, False), (7, 42, True))
    assert part.entry("head/weight").needed == space.entry("head/weight").needed
