from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

from p2pnn import nn
from p2pnn.errors import ModelError

B = nn.BATCH


def x(*shape: int) -> nn.Value:
    return nn.Input("x", shape)


def test_an_input_has_the_batch_in_front() -> None:
    assert nn.Input("image", (1, 28, 28)).shape == (nn.BATCH, 1, 28, 28)
    assert nn.Input("label", (), dtype="int64").shape == (nn.BATCH,)
    assert repr(x(3)) == "<nn.Value x float32(batch, 3)>"


@pytest.mark.parametrize("shape", [(0,), (-1, 3), (2.0,), 5, "ab", (True,)])
def test_an_input_with_a_wrong_shape(shape: object) -> None:
    with pytest.raises(ModelError, match="positive integers, without the batch"):
        nn.Input("x", shape)  # type: ignore[arg-type]


def test_an_input_with_a_wrong_dtype_or_name() -> None:
    with pytest.raises(ModelError, match="'uint8'"):
        nn.Input("x", (3,), dtype="uint8")
    with pytest.raises(ModelError, match="not a name"):
        nn.Input("x y", (3,))


@pytest.mark.parametrize(
    "use",
    [
        lambda v: bool(v),
        lambda v: np.asarray(v),
        lambda v: float(v),
        lambda v: int(v),
        lambda v: list(v),
        lambda v: 1 if v else 2,
    ],
)
def test_a_value_holds_no_numbers(use: object) -> None:
    with pytest.raises(ModelError, match=r"^x is a value of a model and holds no numbers"):
        use(x(3))  # type: ignore[operator]


@pytest.mark.parametrize(
    "use",
    [lambda v: v + "1", lambda v: True * v, lambda v: v - np.ones(3), lambda v: np.ones(3) - v, lambda v: v @ [1],
     lambda v: v @ 2.0, lambda v: v / float("nan"), lambda v: None ** v],
)  # fmt: skip
def test_what_is_no_number_beside_a_value_is_refused(use: object) -> None:
    with pytest.raises(ModelError, match=r"joins two values of a model.*, but one side is a .*nn.parameter"):
        use(x(3))  # type: ignore[operator]


def test_operators() -> None:
    a, b = nn.Input("a", (3,)), nn.Input("b", (3,))
    w = nn.parameter("w", (3, 2), scale=0.1)
    graph = nn.Model({"y": (a + b) / -(a - b) * a**b @ w}).graph
    assert [op.kind for op in graph.ops] == ["Add", "Sub", "Neg", "Div", "Pow", "Mul", "MatMul"]
    assert graph.parameters[0].name == "w"
    assert graph.parameters[0].initializer.scale == 0.1


def test_a_number_is_saved_with_the_model_and_not_trained() -> None:
    graph = nn.Model({"y": 1 - 2.5 * x(3) ** 2 / 4}).graph
    assert [(op.kind, op.inputs) for op in graph.ops] == [
        ("Pow", ("x", "pow_1/number")),
        ("Mul", ("mul_1/number", "pow_1")),
        ("Div", ("mul_1", "div_1/number")),
        ("Sub", ("sub_1/number", "div_1")),
    ]
    assert not graph.parameters
    assert {p.name: (p.shape, p.initializer.value) for p in graph.state} == {
        "pow_1/number": ((1,), 2.0),
        "mul_1/number": ((1,), 2.5),
        "div_1/number": ((1,), 4.0),
        "sub_1/number": ((1,), 1.0),
    }


@pytest.mark.parametrize(
    ("use", "shape"),
    [
        (lambda v: v[:, 1:3], (B, 2, 4, 3)),
        (lambda v: v[:, ::2, 1], (B, 3, 3)),
        (lambda v: v[..., -1], (B, 6, 4)),
        (lambda v: v[:, -1, ..., :-1], (B, 4, 2)),
        (lambda v: v[:], (B, 6, 4, 3)),
        (lambda v: v[:, 0, 0, 0], (B,)),
    ],
)
def test_indexing(use: Callable[[nn.Value], nn.Value], shape: tuple[int, ...]) -> None:
    assert use(x(6, 4, 3)).shape == shape


@pytest.mark.parametrize(
    ("index", "part"),
    [(0, "begin with ':'"), (slice(1, None), "begin with ':'"), ((slice(None), None), "whole numbers"),
     ((slice(None), 6), "no 6 at axis 1"), ((slice(None), -7), "no -7 at axis 1"), ((slice(None), slice(4, 2)), "nothing"),
     ((slice(None),) * 3, "(batch, 6)"), ((slice(None), slice(None, None, -1)), "at least 1"), ("a", "'a'")],
)  # fmt: skip
def test_what_cannot_be_indexed(index: object, part: str) -> None:
    with pytest.raises(ModelError) as caught:
        x(6)[index]
    assert part in str(caught.value)


def test_wrong_shapes_are_refused_where_they_are_written() -> None:
    with pytest.raises(ModelError, match=r"add \(Add\): shapes \(batch, 3\) and \(batch, 4\)"):
        x(3) + nn.Input("y", (4,))


def test_scopes_nest_and_end() -> None:
    with nn.scope("a"), nn.scope("b/c"):
        h = nn.relu(x(3), name="r")
    h = nn.relu(h, name="r")
    assert [op.name for op in nn.Model({"y": h}).graph.ops] == ["a/b/c/r", "r"]
    with pytest.raises(ModelError, match="not a name"), nn.scope("a//b"):
        pass


def test_importing_nn_imports_no_server_and_no_engine() -> None:
    code = "import sys, p2pnn.nn, p2pnn.zoo; print([m for m in ('aiohttp','asyncio','typer','p2pnn.engine') if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.strip() == "[]"
