from __future__ import annotations

import pytest

from p2pnn import nn
from p2pnn.errors import ModelError

B = nn.BATCH


def x(*shape: int) -> nn.Value:
    return nn.Input("x", shape)


def test_shapes() -> None:
    assert nn.relu(x(3)).shape == nn.sigmoid(x(3)).shape == nn.tanh(x(3)).shape == nn.softmax(x(3)).shape == (B, 3)
    assert nn.flatten(x(2, 3, 4)).shape == (B, 24)
    assert nn.reshape(x(2, 6), (nn.BATCH, 4, -1)).shape == (B, 4, 3)
    assert nn.reshape(x(2, 6), (0, 12)).shape == (B, 12)
    assert nn.transpose(x(2, 3), (0, 2, 1)).shape == (B, 3, 2)
    assert nn.concat([x(2, 3), x(4, 3)]).shape == (B, 6, 3)
    assert nn.global_average_pool(x(5, 3, 3)).shape == (B, 5)
    assert nn.reduce_mean(x(5, 3, 3), (2, 3)).shape == (B, 5)
    assert nn.reduce_mean(x(5, 3), (-1,), keepdims=True).shape == (B, 5, 1)
    assert nn.matmul(x(2, 3), x(3, 4)).shape == (B, 2, 4)
    assert nn.argmax(x(7)).shape == (B,)
    assert nn.argmax(x(7)).dtype == "int64"


def test_global_average_pool_is_one_layer_of_two_ops() -> None:
    graph = nn.Model({"y": nn.global_average_pool(x(5, 3, 3), name="gap")}).graph
    assert [(op.kind, op.name) for op in graph.ops] == [("GlobalAveragePool", "gap"), ("Flatten", "gap#flatten")]


def test_split_into_equal_parts_or_given_ones() -> None:
    assert [part.shape for part in nn.split(x(6, 4), 3)] == [(B, 2, 4)] * 3
    assert [part.shape for part in nn.split(x(6, 4), (1, 3), axis=-1)] == [(B, 6, 1), (B, 6, 3)]
    for parts, axis in ((4, 1), (3, -1), (0, 1)):
        with pytest.raises(ModelError, match=rf"split: \d at axis {axis} do not divide into {parts} equal parts"):
            nn.split(x(6, 4), parts, axis)


def test_layer_norm_and_attention_of_given_values() -> None:
    weight = nn.parameter("w", (4,))
    assert nn.layer_norm(x(6, 4), weight).shape == nn.layer_norm(x(6, 4), weight, weight).shape == (B, 6, 4)
    keys = nn.Input("k", (5, 2))
    shared = nn.attention(x(6, 4), keys, keys, heads=2, key_heads=1, causal=True)
    assert shared.shape == (B, 6, 4)
    assert shared.origin.attributes == {"q_num_heads": 2, "kv_num_heads": 1, "is_causal": 1, "scale": pytest.approx(2**-0.5)}  # type: ignore[union-attr]
    assert nn.attention(x(6, 4), x(6, 4), x(6, 4), heads=2, scale=0.3).origin.attributes["scale"] == 0.3  # type: ignore[union-attr]


def test_what_is_no_value() -> None:
    with pytest.raises(ModelError, match="was given a int"):
        nn.relu(3)  # type: ignore[arg-type]
