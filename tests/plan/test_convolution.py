"""What convolutions cost by their method, against what the profile of one machine measured."""

from __future__ import annotations

import pytest

from p2pnn.plan import scratch
from p2pnn.plan.convolution import efforts
from p2pnn.plan.scratch import Window

GEMM_PER_S, COPIED_PER_S = 215e9, 31e9
"""Rates of the machine on which these convolutions were timed: operations, and bytes."""


def window(rows: int, extent: int, channels: int, outputs: int, size: int, stride: int = 1, padding: int = 0) -> Window:
    out = (extent + 2 * padding - size) // stride + 1
    sides = ((size, size), (stride, stride), (padding,) * 4, (1, 1))
    return Window(rows, extent, extent, channels, out, out, outputs, *sides, 1)


@pytest.mark.parametrize(
    ("w", "wants_input", "forward_ms", "backward_ms"),
    [
        (window(128, 28, 1, 16, 5, padding=2), False, 1.66, 1.91),  # LeNet-5's first, with a banded matrix
        (window(128, 14, 16, 32, 5), True, 2.94, 7.71),  # its second
    ],
)
def test_seconds_are_near_those_measured(w: Window, wants_input: bool, forward_ms: float, backward_ms: float) -> None:
    assert scratch.bands(w, wants_input)
    found = efforts(w, wants_input)
    assert found is not None
    forward, weight, back = (1e3 * (e.flops / GEMM_PER_S + e.bytes / COPIED_PER_S) for e in found)
    assert forward == pytest.approx(forward_ms, rel=0.15)
    assert weight + wants_input * back == pytest.approx(backward_ms, rel=0.15)


def test_a_convolution_in_tiles_is_told_by_its_own_rate() -> None:
    assert efforts(window(32, 28, 64, 64, 3, padding=1), True) is None


def test_single_points_are_one_product() -> None:
    found = efforts(window(2, 28, 64, 32, 1), True)
    assert found is not None
    least = 2 * 2 * 28 * 28 * 64 * 32
    assert all(least < e.flops < 2 * least for e in found)
    assert found[0].bytes == 2 * 28 * 28 * 2 * 4 * (64 + 32)


def test_a_stride_makes_all_passes_shorter() -> None:
    near, far = (efforts(window(8, 28, 64, 128, 3, stride=s, padding=1), True) for s in (2, 3))
    assert near is not None
    assert far is not None
    assert all(a.flops > b.flops for a, b in zip(near, far, strict=True))
