from __future__ import annotations

import pytest

from p2pnn import nn, zoo
from p2pnn.model.summary import count, summary


def test_a_table_with_a_line_per_op_and_the_totals() -> None:
    graph = zoo.build("mlp", (784,), 10).graph
    lines = summary(graph, 64).splitlines()
    assert lines[0].split() == ["op", "kind", "output", "parameters", "FLOPs"]
    assert lines[-1].startswith("mlp: 118,282 parameters (0.5 MB)")
    assert lines[-1].endswith("forward for 64 rows")
    hidden = next(line for line in lines if line.startswith("hidden1"))
    assert hidden.split()[:2] == ["hidden1", "Gemm"]
    assert "100,480" in hidden
    assert "12.9 M" in hidden  # 2 · 64 · 784 · 128 and the bias
    assert len(lines) == len(graph.ops) + len(graph.inputs) + 4


def test_an_op_of_several_outputs_shows_the_first_of_them() -> None:
    text = summary(nn.Model({"y": nn.split(nn.Input("x", (6,)), 3)[2]}).graph)
    assert "(batch, 2) …" in next(line for line in text.splitlines() if line.startswith("split_1"))


def test_one_row() -> None:
    assert summary(zoo.build("mlp", (4,), 3).graph).endswith("1 row")


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 "), (999, "999 "), (1500, "1.5 k"), (2e6, "2 M"), (3e18, "3e+03 P")]
)
def test_count(number: float, text: str) -> None:
    assert count(number) == text
