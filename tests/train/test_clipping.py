"""The global norm does not depend on the partition, to the last bit."""

from __future__ import annotations

import math

import numpy as np
import pytest

from p2pnn.model.graph import Graph, Initializer, Parameter
from p2pnn.train.clipping import BLOCK, norm, scale, squares


def graph_of(names: list[str]) -> Graph:
    parameters = tuple(Parameter(name, (5,), Initializer("constant")) for name in names)
    return Graph((), parameters, (), (), (), {})


@pytest.mark.parametrize("size", [0, 1, 1000, BLOCK, 2 * BLOCK + 5])
def test_squares_are_those_of_float64(size: int) -> None:
    gradient = np.random.default_rng(size).standard_normal(size, dtype=np.float32) * 1e3
    assert squares(gradient) == pytest.approx(float(np.sum(gradient.astype(np.float64) ** 2)), rel=1e-13)


def test_the_norm_is_summed_in_graph_order_whoever_owns_what() -> None:
    names = [f"p{i}" for i in range(40)]
    dice = np.random.default_rng(1)
    values = {name: float(dice.random() * 10.0 ** dice.integers(-8, 8)) for name in names}
    graph = graph_of(names)
    single = norm(graph, [names], {0: [values[n] for n in names]})
    for _ in range(20):
        owner = dice.integers(0, 3, len(names))
        owned = [[n for n, o in zip(names, owner, strict=True) if o == node] for node in range(3)]
        assert norm(graph, owned, {node: [values[n] for n in owned[node]] for node in range(3)}) == single
    assert single == pytest.approx(math.sqrt(sum(values.values())))


def test_gradients_within_the_norm_are_left_alone() -> None:
    assert scale(1.0, 2.0) == 1.0
    assert scale(4.0, 2.0) == pytest.approx(0.5, rel=1e-6)
    assert scale(4.0, 2.0) * 4.0 <= 2.0


def test_a_gradient_that_is_no_number_shows() -> None:
    assert math.isnan(norm(graph_of(["a"]), [["a"]], {0: [math.nan]}))
