"""Both convolution methods, in blocks of every kind, give one result; the choice between them is by shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from p2pnn.engine.base import Context
from p2pnn.engine.numpy import convolution, kernel
from p2pnn.engine.numpy.banded import BandedConvolution
from p2pnn.engine.numpy.columns import ColumnConvolution
from p2pnn.engine.numpy.engine import NumpyEngine
from tests.engine.build import Build, Run, batch
from tests.engine.test_gradients import image

ROWS = 5
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "pads": {"pads": (1, 1, 1, 1)},
    "uneven": {"pads": (2, 0, 1, 2), "strides": (2, 1)},
    "strides": {"strides": (3, 2)},
    "dilations": {"dilations": (2, 3), "pads": (2, 1, 0, 3)},
    "both": {"dilations": (2, 1), "strides": (2, 3), "pads": (1, 2, 2, 1)},
    "groups": {"group": 2, "pads": (1, 1, 1, 1), "strides": (1, 2)},
}


def results(attributes: dict[str, Any], bands: bool, block_bytes: int, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    monkeypatch.setattr(convolution, "prefers_bands", lambda *_: bands)
    monkeypatch.setattr(kernel, "BLOCK_BYTES", block_bytes)
    b = Build()
    y = b.conv(image(b, 4, 11, 10), 6, 3, **attributes)
    graph = b.graph({"y": y}, [b.op("MeanSquaredError", y, b.input(*b.known[y].shape[1:]))])
    run = Run(graph, [0] * len(graph.ops), rows=ROWS, engine=NumpyEngine(np.float64))
    method = run.programs[0]._plan.forward[1].kernel._method  # type: ignore[attr-defined]
    assert isinstance(method, BandedConvolution if bands else ColumnConvolution)
    run.load(0, batch(graph, ROWS))
    context = Context(1, 0, 0, ROWS)
    run.programs[0].forward(0, context, run.values[0])
    run.programs[0].backward(0, context, {}, first=True)
    return [run.values[0][graph.losses[0]].copy(), *run.end_step().values()]


@pytest.mark.parametrize("name", SHAPES)
def test_methods_and_blocks_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = results(SHAPES[name], False, 1 << 30, monkeypatch)
    assert all(np.abs(array).max() > 0 for array in expected)
    methods = [False] if name == "groups" else [False, True]
    for bands in methods:
        for block_bytes in (1 << 30, 60_000, 20_000, 5_000, 1):  # all images, some, one, some rows, one row
            for found, wanted in zip(results(SHAPES[name], bands, block_bytes, monkeypatch), expected, strict=True):
                np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("channels", "size", "outputs", "kernel_size", "bands"),
    [(1, 28, 6, 5, True), (16, 28, 16, 3, False), (64, 14, 64, 3, False)],
)
def test_bands_are_for_few_channels(channels: int, size: int, outputs: int, kernel_size: int, bands: bool) -> None:
    b = Build()
    y = b.conv(b.input(channels, size, size), outputs, kernel_size)
    run = Run(b.graph({"y": y}), [0], rows=2, mode="predict")
    method = run.programs[0]._plan.forward[0].kernel._method  # type: ignore[attr-defined]
    assert isinstance(method, BandedConvolution) is bands
