from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from p2pnn import nn
from p2pnn.errors import ModelError
from p2pnn.model.verify import verify

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_model.py"


def x(*shape: int, name: str = "x") -> nn.Value:
    return nn.Input(name, shape)


def test_names_are_numbered_within_their_scope_and_start_anew_per_model() -> None:
    def net() -> nn.Model:
        h = x(3)
        for scope in ("a", "b"):
            with nn.scope(scope):
                h = nn.Linear(3)(nn.relu(nn.Linear(3)(h)))
        return nn.Model({"y": nn.relu(h)})

    first, second = net().graph, net().graph
    assert first == second
    assert [op.name for op in first.ops] == [
        "a/linear_1", "a/relu_1", "a/linear_2", "b/linear_1", "b/relu_1", "b/linear_2", "relu_1",
    ]  # fmt: skip
    assert first.parameters[0].name == "a/linear_1/weight"


def test_a_number_gives_way_to_a_given_name() -> None:
    h = nn.Linear(3)(nn.Linear(3, name="linear_1")(x(3)))
    assert [op.name for op in nn.Model({"y": h}).graph.ops] == ["linear_1", "linear_2"]


def test_a_name_given_twice_is_refused() -> None:
    h = nn.Linear(3, name="d")(nn.Linear(3, name="d")(x(3)))
    with pytest.raises(ModelError, match="two layers are called 'd'"):
        nn.Model({"y": h})
    with pytest.raises(ModelError, match="'x' is used twice"):
        nn.Model({"y": nn.relu(x(3), name="x")})
    with pytest.raises(ModelError, match="'x' is used twice"):
        nn.Model({"y": x(3) + x(3)})


def test_only_what_is_needed_is_kept_in_the_order_written() -> None:
    image = x(3)
    left = nn.relu(image, name="left")
    nn.Linear(100, name="unused")(left)
    right = nn.tanh(image, name="right")
    graph = nn.Model({"y": right + left}).graph
    assert [op.name for op in graph.ops] == ["left", "right", "add_1"]
    assert graph.parameters == ()


def test_several_losses() -> None:
    a, b = nn.Input("a", (2,)), nn.Input("b", (2,))
    h = nn.Linear(2)(x(3))
    graph = nn.Model({}, [nn.mean_squared_error(h, a), nn.mean_squared_error(h, b)]).graph
    assert graph.losses == ("mean_squared_error_1", "mean_squared_error_2")


def test_wrong_parts_are_refused() -> None:
    image, target = x(3), x(2, name="t")
    h = nn.Linear(2, name="d")(image)
    with pytest.raises(ModelError, match="no loss"):
        nn.Model({"y": h}, h)
    with pytest.raises(ModelError, match="the loss is a float"):
        nn.Model({"y": h}, [0.5])  # type: ignore[list-item]
    with pytest.raises(ModelError, match=r"nn\.accuracy"):
        nn.Model({"y": h}, metrics={"m": h})  # type: ignore[dict-item]
    with pytest.raises(ModelError, match="output y is a str"):
        nn.Model({"y": "d"})  # type: ignore[dict-item]
    with pytest.raises(ModelError, match="must be what an op makes"):
        nn.Model({"x": image, "y": h})
    with pytest.raises(ModelError, match="depends on trained parameters"):
        nn.Model({}, nn.mean_squared_error(target, h))


def test_parameters_and_summary() -> None:
    model = nn.Model({"y": nn.Linear(2, name="d")(x(3))}, name="tiny", classes=("no", "yes"))
    assert model.parameters() == {"d/weight": (2, 3), "d/bias": (2,)}
    assert model.summary(batch=4).endswith("tiny: 8 parameters (0.0 MB), 56 FLOPs forward for 4 rows")
    assert model.graph.classes == ("no", "yes")


def test_a_deep_model_does_not_exhaust_the_stack() -> None:
    h = x(3)
    for _ in range(5000):
        h = nn.relu(h)
    assert len(nn.Model({"y": h}).graph.ops) == 5000


def test_the_example_is_the_network_of_the_documentation() -> None:
    graph = runpy.run_path(str(EXAMPLE))["net"](classes=7, width=8).graph
    verify(graph)
    assert {"block0/conv1/weight", "block1/skip/weight", "block2/bn2/running_var", "head/bias"} <= {
        p.name for p in (*graph.parameters, *graph.state)
    }
    ran = subprocess.run([sys.executable, str(EXAMPLE)], capture_output=True, text=True, check=True, timeout=60)
    assert "75,242 parameters" in ran.stdout
