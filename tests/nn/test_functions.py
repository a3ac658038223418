from __future__ import annotations

import pytest

from p2pnn import nn
from p2pnn.errors import ModelError

B = nn.BATCH


def x(*shape: int) -> nn.Value:
    return nn.Input("x", shape)


def test_shapes() -> None:
    assert nn.relu(x(3)).shape == nn.sigmoid(x(3)).shape == nn.tanh(x(3)).shape == nn.softmax(x(3)).shape == (B, 3)
    for function in (nn.exp, nn.log, nn.sqrt, nn.erf, nn.gelu, nn.identity, nn.clip):
        assert function(x(3)).shape == (B, 3)
    assert nn.squeeze(x(2, 1, 3), (2,)).shape == (B, 2, 3)
    assert nn.unsqueeze(x(2, 3), (-1,)).shape == (B, 2, 3, 1)
    assert nn.reduce_sum(x(5, 3), (1,)).shape == (B, 3)
    assert nn.reduce_max(x(5, 3), (1,), keepdims=True).shape == (B, 1, 3)
    assert nn.where(nn.Input("c", (1,), dtype="bool"), x(3), x(3)).shape == (B, 3)
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


def test_clip_bounds_one_side_or_both() -> None:
    bounds = [nn.clip(x(3), least, most).origin.attributes for least, most in ((0, 6), (None, 1.5), (-1, None))]  # type: ignore[union-attr]
    most = 3.4028234663852886e38
    assert bounds == [{"min": 0.0, "max": 6.0}, {"min": -most, "max": 1.5}, {"min": -1.0, "max": most}]


def test_layer_norm_and_attention_of_given_values() -> None:
    weight = nn.parameter("w", (4,))
    assert nn.layer_norm(x(6, 4), weight).shape == nn.layer_norm(x(6, 4), weight, weight).shape == (B, 6, 4)
    keys = nn.Input("k", (5, 2))
    shared = nn.attention(x(6, 4), keys, keys, heads=2, key_heads=1, causal=True)
    assert shared.shape == (B, 6, 4)
    assert shared.origin.attributes == {
        "q_num_heads": 2,
        "kv_num_heads": 1,
        "is_causal": 1,
        "scale": pytest.approx(2**-0.5),
    }  # type: ignore[union-attr]
    assert nn.attention(x(6, 4), x(6, 4), x(6, 4), heads=2, scale=0.3).origin.attributes["scale"] == 0.3  # type: ignore[union-attr]


def test_nothing_is_not_taken_for_what_was_left_away() -> None:
    with pytest.raises(ModelError, match="scale = 0 would make all scores equal"):
        nn.attention(x(6, 4), x(6, 4), x(6, 4), heads=2, scale=0.0)
    with pytest.raises(ModelError, match="key_heads = 0: give at least 1"):
        nn.attention(x(6, 4), x(6, 4), x(6, 4), heads=2, key_heads=0)


def test_what_is_no_value() -> None:
    with pytest.raises(ModelError, match="was given a int"):
        nn.relu(3)  # type: ignore[arg-type]
