from __future__ import annotations

import numpy as np
import pytest

from p2pnn.engine.numpy import attention
from tests.engine.numpy.build import Build
from tests.engine.numpy.cases import cases_of
from tests.engine.numpy.checks import check_forward, check_gradient, forward


@pytest.mark.parametrize("name", cases_of(attention))
def test_gradients(name: str) -> None:
    check_gradient(name)


@pytest.mark.parametrize("name", cases_of(attention, forward=True))
def test_forward(name: str) -> None:
    check_forward(name)


@pytest.mark.parametrize("name", ["Attention", "Attention groups", "Attention causal", "Attention causal many keys"])
@pytest.mark.parametrize(("nbytes", "queries"), [(1, 2), (700, 128), (1500, 3)])
def test_blocks_do_not_show(name: str, nbytes: int, queries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One head at a time, some heads of a row, two rows of three; and few queries."""
    monkeypatch.setattr(attention, "BLOCK_BYTES", nbytes)
    monkeypatch.setattr(attention, "QUERIES", queries)
    check_gradient(name)
    check_forward(name)


def test_large_scores_do_not_overflow() -> None:
    b = Build()
    x = b.input(4, 3)
    graph = b.graph({"y": b.op("Attention", x, x, x, q_num_heads=1, kv_num_heads=1, is_causal=1, scale=1.0)})
    data = np.full((2, 4, 3), 300.0, np.float32)
    made, _ = forward(graph, "predict", {x: data}, 2)
    np.testing.assert_array_equal(made["attention0"], data)
