"""Patterns, groups, and one sentence for whatever cannot be."""

from __future__ import annotations

import pytest

from p2pnn import nn
from p2pnn.errors import PlanError
from p2pnn.job.spec import Pin
from p2pnn.plan.pins import groups, names, resolve

from .builder import Net, branched, mlp

NODES = {"attic": 0, "desk": 1}


def matched(pattern: str) -> set[str]:
    graph = branched()
    return {graph.ops[i].name for i in resolve(graph, [Pin(pattern, "desk")], NODES, NODES)}


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("stem", {"stem"}),
        ("block1/*", {"block1/left", "block1/relu", "block1/right", "block1/add"}),
        ("block1", {"block1/left", "block1/relu", "block1/right", "block1/add"}),
        ("block?/left", {"block0/left", "block1/left"}),
        ("*/add", {"block0/add", "block1/add"}),
        ("[hs]*d", {"head"}),
    ],
)
def test_patterns(pattern: str, expected: set[str]) -> None:
    assert matched(pattern) == expected


def test_a_pattern_matches_the_layer_of_an_op_whose_own_name_differs() -> None:
    net = Net()
    w = net.weight("block/fc/weight", 10, 16)
    graph = net.graph(net.op("Gemm", "gemm_7", "x", w))
    assert "block/fc" in names(graph, 0)
    assert set(resolve(graph, [Pin("block/*", "desk")], NODES, NODES)) == {0}


def test_a_layer_of_several_ops_is_pinned_whole() -> None:
    x = nn.Input("x", (4, 6))
    with nn.scope("block"):
        h = nn.MultiHeadAttention(2, name="attention")(x)
    graph = nn.Model({"y": nn.relu(h)}).graph
    for pattern in ("block/attention", "block/attent*"):
        assert set(resolve(graph, [Pin(pattern, "desk")], NODES, NODES)) == {0, 1, 2, 3}


def test_a_pin_takes_everything_that_shares_the_parameter_along() -> None:
    net = Net()
    h = net.dense("first", "x", 16)
    h = net.dense("middle", h, 16)
    graph = net.graph(net.dense("again", h, 16, weight="first/weight"))
    assert groups(graph)[0] == (0, 2)
    assert resolve(graph, [Pin("again", "attic")], NODES, NODES) == {0: 0, 2: 0}


def refusal(*pins: Pin, nodes: dict[str, int] = NODES, known: dict[str, int] | None = None) -> str:
    with pytest.raises(PlanError) as caught:
        resolve(mlp(20, 20), pins, nodes, known or NODES)
    return str(caught.value)


def test_a_pin_that_matches_nothing_names_the_nearest() -> None:
    assert refusal(Pin("haed", "desk")) == "the pin haed=desk matches no layer of the model; nearest are head"
    assert "there are fc0, relu0" in refusal(Pin("zzz", "desk"))


def test_a_pin_to_a_node_that_is_not_there() -> None:
    assert refusal(Pin("fc0", "cellar")) == "the pin fc0=cellar names no node of this mesh; there are attic, desk"
    known = {**NODES, "cellar": 2, "0" * 32: 2}
    assert "does not use; it uses attic, desk" in refusal(Pin("fc0", "cellar"), known=known)


def test_pins_that_contradict_each_other() -> None:
    text = refusal(Pin("fc*", "desk"), Pin("fc1", "attic"))
    assert "fc*=desk and fc1=attic both decide fc1" in text
    assert set(resolve(mlp(20, 20), [Pin("fc*", "desk"), Pin("fc1", "desk")], NODES, NODES)) == {0, 2}
