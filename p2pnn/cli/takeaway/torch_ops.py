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
