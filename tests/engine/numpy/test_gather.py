from __future__ import annotations

import numpy as np
import pytest

from p2pnn.engine.base import Context
from p2pnn.engine.numpy import gather
from p2pnn.errors import DataError
from tests.engine.numpy.build import Build, Run
from tests.engine.numpy.cases import cases_of
from tests.engine.numpy.checks import check_forward, check_gradient, forward


@pytest.mark.parametrize("name", cases_of(gather))
def test_gradients(name: str) -> None:
    check_gradient(name)


@pytest.mark.parametrize("name", cases_of(gather, forward=True))
def test_forward(name: str) -> None:
    check_forward(name)


@pytest.mark.parametrize("wrong", [-1, 10, 2**40])
def test_an_index_that_the_table_does_not_have_is_one_sentence(wrong: int) -> None:
    b = Build()
    graph = b.graph({"y": b.embed(3)})
    data = {"input0": np.array([[0, 9, 3], [1, wrong, 2]])}
    with pytest.raises(
        DataError, match=rf"^gather0 was given the index {wrong} in input0, .* parameter0 has rows 0 to 9;"
    ):
        forward(graph, "predict", data, 2)


@pytest.mark.parametrize("rows", [gather.ONE_HOT_ROWS_MAX, gather.ONE_HOT_ROWS_MAX + 1])
def test_both_ways_to_sum_agree(rows: int) -> None:
    """Small tables sum by products, large ones by sorting: with many repeated indices, in several blocks."""
    b = Build()
    y = b.embed(400, rows=rows, width=(3,))
    graph = b.graph({}, [b.op("MeanSquaredError", y, b.input(400, 3))])
    run = Run(graph, [0, 0], rows=2)
    rng = np.random.default_rng(0)
    data = {"input0": rng.integers(0, 7, (2, 400)) * 70, "input1": rng.standard_normal((2, 400, 3)).astype(np.float32)}
    run.load(0, data)
    run.programs[0].forward(0, Context(0, 0, 0, 2), run.values[0])
    run.programs[0].backward(0, Context(0, 0, 0, 2), {}, index=0)
    table = run.tensors[0].parameters["parameter0"]
    expected = np.zeros((rows, 3))
    np.add.at(expected, data["input0"], 2 * (table[data["input0"]] - data["input1"]) / data["input1"].size)
    np.testing.assert_allclose(run.end_step(1)["parameter0"], expected, rtol=1e-4, atol=1e-7)


def test_blocks_of_indices_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "BLOCK_BYTES", 5 * 10 * 4)
    check_gradient("Gather")
