"""Runs one convolution by either method, in blocks of any size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from p2pnn.engine.base import Context
from p2pnn.engine.numpy import convolution, kernel
from p2pnn.engine.numpy.banded import BandedConvolution
from p2pnn.engine.numpy.columns import ColumnConvolution
from p2pnn.engine.numpy.engine import NumpyEngine
from tests.engine.numpy.build import Build, Run, batch
from tests.engine.numpy.cases import image

ROWS = 5
BLOCKS = (1 << 30, 60_000, 20_000, 5_000, 1)
"""Bytes: all images, some, one, some rows, one row."""
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


def check_blocks(name: str, bands: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The method, in blocks of every kind, against im2col over all images at once."""
    expected = results(SHAPES[name], False, BLOCKS[0], monkeypatch)
    assert all(np.abs(array).max() > 0 for array in expected)
    for block_bytes in BLOCKS:
        for found, wanted in zip(results(SHAPES[name], bands, block_bytes, monkeypatch), expected, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-12)
