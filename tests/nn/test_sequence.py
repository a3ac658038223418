from __future__ import annotations

from typing import Any

import pytest

from p2pnn import nn
from p2pnn.errors import ModelError
from p2pnn.model.graph import Graph

B = nn.BATCH


def sequence() -> nn.Value:
    return nn.Input("x", (7, 12))


def tokens() -> nn.Value:
    return nn.Input("tokens", (7,), dtype="int64")


def built(y: nn.Value) -> Graph:
    return nn.Model({"y": y}).graph


def test_embedding() -> None:
    graph = built(nn.Embedding(65, 16, scale=0.02, name="e")(tokens()))
    (weight,) = graph.parameters
    assert (weight.name, weight.shape, weight.decay) == ("e/weight", (65, 16), True)
    assert (weight.initializer.kind, weight.initializer.scale) == ("normal", 0.02)
    assert (graph.ops[0].kind, graph.ops[0].inputs) == ("Gather", ("e/weight", "tokens"))
    assert graph.values[0].shape == (B, 7, 16)


def test_layer_norm() -> None:
    graph = built(nn.LayerNorm(name="n")(sequence()))
    assert [(p.name, p.shape, p.decay, p.initializer.value) for p in graph.parameters] == [
        ("n/weight", (12,), False, 1.0),
        ("n/bias", (12,), False, 0.0),
    ]
    assert graph.ops[0].attributes == {"axis": 2, "epsilon": 1e-5}
    both = built(nn.LayerNorm(axis=1, bias=False)(sequence()))
    assert [p.shape for p in both.parameters] == [(7, 12)]


def test_attention_is_one_layer_of_four_ops() -> None:
    graph = built(nn.MultiHeadAttention(3, causal=True, name="a")(sequence()))
    assert [(op.kind, op.name) for op in graph.ops] == [
        ("Gemm", "a#qkv"),
        ("Split", "a#split"),
        ("Attention", "a"),
        ("Gemm", "a#projection"),
    ]
    assert graph.ops[1].outputs == graph.ops[2].inputs == ("a#split", "a#split:1", "a#split:2")
    assert graph.ops[2].attributes == {"q_num_heads": 3, "kv_num_heads": 3, "is_causal": 1, "scale": 0.5}
    assert {p.name: p.shape for p in graph.parameters} == {
        "a/qkv/weight": (36, 12),
        "a/qkv/bias": (36,),
        "a/projection/weight": (12, 12),
        "a/projection/bias": (12,),
    }
    assert graph.values[-1].shape == (B, 7, 12)
    bare = built(nn.MultiHeadAttention(3, bias=False)(sequence()))
    assert [p.name for p in bare.parameters] == ["attention_1/qkv/weight", "attention_1/projection/weight"]


def test_linear_at_every_position() -> None:
    graph = built(nn.Linear(5, name="d")(sequence()))
    assert graph.parameters[0].shape == (5, 12)
    assert graph.values[0].shape == (B, 7, 5)


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda: nn.Embedding(9, 4)(sequence()), 'dtype="int64"'),
        (lambda: nn.Embedding(0, 4), "count is 0"),
        (lambda: nn.LayerNorm(axis=3)(sequence()), "(batch, 7, 12), which has no axis 3"),
        (lambda: nn.LayerNorm(axis=-3)(sequence()), "no axis -3"),
        (lambda: nn.MultiHeadAttention(5)(sequence()), "12 features do not divide into 5 heads"),
        (lambda: nn.MultiHeadAttention(5)(nn.Input("x", (4,))), "(batch, positions, features)"),
    ],
)
def test_refusals(make: Any, part: str) -> None:
    with pytest.raises(ModelError) as caught:
        make()
    assert part in str(caught.value)
