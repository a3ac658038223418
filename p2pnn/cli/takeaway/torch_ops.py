"""The functions that a generated load_torch.py may hold, where torch has no single one with ONNX's meaning.

Each is copied into the script as it stands here. This module is read as text: p2pnn itself never imports torch for it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def max_pool(x, *, kernel_shape, strides, pads):  # type: ignore[no-untyped-def]
    top, left, bottom, right = pads
    x = F.pad(x, (left, right, top, bottom), value=float("-inf"))
    return F.max_pool2d(x, kernel_shape, strides)


def average_pool(x, *, kernel_shape, strides, pads, count_include_pad):  # type: ignore[no-untyped-def]
    top, left, bottom, right = pads
    area = kernel_shape[0] * kernel_shape[1]
    total = F.avg_pool2d(F.pad(x, (left, right, top, bottom)), kernel_shape, strides) * area
    ones = F.pad(torch.ones_like(x[:1, :1]), (left, right, top, bottom), value=1.0 if count_include_pad else 0.0)
    return total / (F.avg_pool2d(ones, kernel_shape, strides) * area)


def conv(x, weight, bias=None, *, strides, pads, dilations, group):  # type: ignore[no-untyped-def]
    top, left, bottom, right = pads
    x = F.pad(x, (left, right, top, bottom))
    return F.conv2d(x, weight, bias, stride=strides, dilation=dilations, groups=group)


def gather(table, indices):  # type: ignore[no-untyped-def]
    return F.embedding(indices, table) if table.ndim == 2 else table[indices]


def attention(queries, keys, values, *, q_num_heads, kv_num_heads, is_causal, scale):  # type: ignore[no-untyped-def]
    q, k, v = (
        x.unflatten(2, (heads, -1)).transpose(1, 2)
        for x, heads in ((queries, q_num_heads), (keys, kv_num_heads), (values, kv_num_heads))
    )
    k, v = (x.repeat_interleave(q_num_heads // kv_num_heads, dim=1) for x in (k, v))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=bool(is_causal), scale=scale)
    return y.transpose(1, 2).flatten(2)
