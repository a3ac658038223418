from __future__ import annotations

import math
from typing import Any

import pytest

from p2pnn import nn
from p2pnn.errors import ModelError
from p2pnn.model.graph import Graph

B = nn.BATCH


def image() -> nn.Value:
    return nn.Input("x", (4, 9, 8))


def built(y: nn.Value) -> Graph:
    return nn.Model({"y": y}).graph


def test_linear() -> None:
    graph = built(nn.Linear(7, name="d")(nn.Input("x", (5,))))
    weight, bias = graph.parameters
    assert (weight.name, weight.shape, weight.decay) == ("d/weight", (7, 5), True)
    assert (bias.name, bias.shape, bias.decay) == ("d/bias", (7,), False)
    assert weight.initializer == bias.initializer
    assert weight.initializer.scale == pytest.approx(1 / math.sqrt(5))
    assert graph.ops[0].kind == "Gemm"
    assert graph.values[0].shape == (B, 7)


@pytest.mark.parametrize(
    ("settings", "weight", "output"),
    [
        ({"kernel": 3}, (6, 4, 3, 3), (B, 6, 7, 6)),
        ({"kernel": (3, 1), "stride": 2, "padding": 1}, (6, 4, 3, 1), (B, 6, 5, 5)),
        ({"kernel": 3, "padding": (1, 0, 2, 1), "groups": 2}, (6, 2, 3, 3), (B, 6, 10, 7)),
        ({"kernel": 3, "dilation": (2, 1), "stride": (1, 2), "bias": False}, (6, 4, 3, 3), (B, 6, 5, 3)),
    ],
)
def test_conv2d(settings: dict[str, Any], weight: tuple[int, ...], output: tuple[int, ...]) -> None:
    graph = built(nn.Conv2d(6, name="c", **settings)(image()))
    assert graph.parameters[0].shape == weight
    assert graph.parameters[0].initializer.scale == pytest.approx(1 / math.sqrt(math.prod(weight[1:])))
    assert graph.values[0].shape == output
    assert len(graph.parameters) == (2 if settings.get("bias", True) else 1)


def test_batch_norm() -> None:
    graph = built(nn.BatchNorm(name="bn", momentum=0.95)(image()))
    assert [(p.name, p.shape, p.decay, p.initializer.value) for p in graph.parameters] == [
        ("bn/weight", (4,), False, 1.0),
        ("bn/bias", (4,), False, 0.0),
    ]
    assert [(p.name, p.initializer.value) for p in graph.state] == [("bn/running_mean", 0.0), ("bn/running_var", 1.0)]
    assert graph.ops[0].attributes == {"epsilon": 1e-5, "momentum": 0.95}


def test_pools_and_dropout() -> None:
    h = nn.MaxPool2d(2)(image())
    assert h.shape == (B, 4, 4, 4)
    h = nn.AveragePool2d(3, stride=1, padding=1, include_padding=True)(h)
    assert h.shape == (B, 4, 4, 4)
    graph = built(nn.Dropout(0.25)(h))
    assert [op.name for op in graph.ops] == ["max_pool2d_1", "average_pool2d_1", "dropout_1"]
    assert graph.ops[1].integer("count_include_pad") == 1
    assert graph.ops[2].number("ratio") == 0.25


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda: nn.Linear(3)(image()), "linear: the input x has shape (batch, 4, 9, 8)"),
        (lambda: nn.Linear(3)(image()), "nn.flatten"),
        (lambda: nn.Conv2d(3, 3, name="c")(nn.Input("x", (5,))), "c: the input x has shape (batch, 5)"),
        (
            lambda: nn.Conv2d(3, 10, name="c")(image()),
            "window of 10 does not fit into the input of shape (batch, 4, 9, 8)",
        ),
        (lambda: nn.Conv2d(3, 3, groups=2)(image()), "4 input and 3 output channels"),
        (lambda: nn.Conv2d(0, 3), "channels is 0"),
        (lambda: nn.Conv2d(3, (1, 2, 3)), "kernel is (1, 2, 3)"),
        (lambda: nn.Conv2d(3, 0), "kernel is 0"),
        (lambda: nn.Conv2d(3, 3, padding=(1, 2, 3)), "padding is (1, 2, 3)"),
        (lambda: nn.Conv2d(3, 3, stride=0)(image()), "'strides' holds 0"),
        (lambda: nn.Linear(2.0), "features is 2.0"),  # type: ignore[arg-type]
        (lambda: nn.MaxPool2d(2)(nn.Input("x", (5,))), "(batch, 5)"),
        (lambda: nn.BatchNorm()(nn.Input("x", ())), "channels"),
        (lambda: nn.Dropout(1.0)(image()), "'ratio' is 1.0"),
        (lambda: nn.Linear(2)([1, 2]), "called with a list"),  # type: ignore[arg-type]
        (lambda: nn.Linear(2, name="a/b"), "'a/b' is not a name"),
    ],
)
def test_refusals(make: Any, part: str) -> None:
    with pytest.raises(ModelError) as caught:
        make()
    assert part in str(caught.value)


def test_a_layer_called_twice_shares_its_parameters() -> None:
    layer = nn.Linear(5, name="shared")
    h = layer(nn.relu(layer(nn.Input("x", (5,)))))
    graph = built(h)
    assert [op.name for op in graph.ops] == ["shared", "relu_1", "shared#2"]
    assert graph.ops[0].inputs[1:] == graph.ops[2].inputs[1:] == ("shared/weight", "shared/bias")
    assert len(graph.parameters) == 2


def test_a_layer_called_again_with_another_shape_names_both() -> None:
    layer = nn.Linear(5, name="shared")
    layer(nn.Input("x", (4,)))
    with pytest.raises(ModelError, match=r"shared .*\(5, 4\).*\(batch, 3\)"):
        layer(nn.Input("y", (3,)))
