from __future__ import annotations

import pytest

from p2pnn import zoo
from p2pnn.errors import ModelError, UsageError
from p2pnn.model.verify import verify
from p2pnn.zoo import mlp, resnet8

IMAGES = [name for name in zoo.names() if name != "char-gpt"]


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize(("shape", "classes"), [((1, 28, 28), 10), ((3, 32, 32), 100), ((1, 12, 17), 2)])
def test_every_network_takes_images(name: str, shape: tuple[int, ...], classes: int) -> None:
    graph = zoo.build(name, shape, classes).graph
    verify(graph)
    assert [(v.name, v.shape[1:], v.dtype) for v in graph.inputs] == [
        ("image", shape, "float32"),
        ("label", (), "int64"),
    ]
    assert graph.name == name
    assert list(graph.outputs) == ["probability"]
    assert [m.name for m in graph.metrics] == ["accuracy"]
    assert {p.name: p.shape for p in graph.parameters}["head/bias"] == (classes,)


@pytest.mark.parametrize("shape", [(4,), (64,), (2, 3, 4, 5), ()])
def test_mlp_takes_rows_of_any_shape(shape: tuple[int, ...]) -> None:
    verify(zoo.build("mlp", shape, 3).graph)


def test_arguments() -> None:
    graph = mlp.build((8,), 3, hidden=(5,), dropout=0).graph
    assert [op.kind for op in graph.ops] == ["Gemm", "Relu", "Gemm", "Softmax", "SoftmaxCrossEntropyLoss", "Accuracy"]
    assert {p.name: p.shape for p in resnet8.build((1, 8, 8), 3, width=4).graph.parameters}["head/weight"] == (3, 16)


def test_resnet8_has_a_shortcut_of_its_own_only_where_the_shape_changes() -> None:
    names = {op.name for op in zoo.build("resnet8", (3, 32, 32), 10).graph.ops}
    assert "block0/skip" not in names
    assert {"block1/skip", "block2/skip"} <= names


@pytest.mark.parametrize("name", ["lenet5", "resnet8", "char-gpt"])
@pytest.mark.parametrize("shape", [(64, 2), (1, 7, 28), (1, 1, 28, 28)])
def test_shapes_that_do_not_fit_are_named(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError) as caught:
        zoo.build(name, shape, 10)
    assert name in str(caught.value)
    assert str(shape) in str(caught.value)


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'lenet5'"):
        zoo.build("lenet", (1, 28, 28), 10)
    with pytest.raises(UsageError, match="known are char-gpt, lenet5, mlp, resnet8"):
        zoo.build("zzzz", (1, 28, 28), 10)


def test_every_network_has_its_file() -> None:
    assert sorted(zoo.MODELS) == zoo.names()
    assert all(build.__module__ == f"p2pnn.zoo.{name.replace('-', '_')}" for name, build in zoo.MODELS.items())
