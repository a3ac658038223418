"""Runs one convolution by any of the methods, in blocks of any size, with products that accumulate and without."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from p2pnn.engine.base import Context
from p2pnn.engine.numpy import blas, convolution, kernel, winograd
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
    "odd": {"pads": (1, 0, 1, 1)},
    "wide": {"pads": (2, 2, 2, 2)},
    "groups": {"group": 2, "pads": (1, 1, 1, 1), "strides": (1, 2)},
}


def results(attributes: dict[str, Any], method: type, block_bytes: int, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The loss and the gradients of one pass."""
    monkeypatch.setattr(convolution, "method_of", lambda *_: method)
    monkeypatch.setattr(kernel, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(winograd, "BLOCK_BYTES", block_bytes)
    b = Build()
    y = b.conv(image(b, 4, 11, 10), 6, 3, **attributes)
    graph = b.graph({"y": y}, [b.op("MeanSquaredError", y, b.input(*b.known[y].shape[1:]))])
    run = Run(graph, [0] * len(graph.ops), rows=ROWS, engine=NumpyEngine(np.float64))
    assert isinstance(run.programs[0]._plan.forward[1].kernel._method, method)  # type: ignore[attr-defined]
    run.load(0, batch(graph, ROWS))
    context = Context(1, 0, 0, ROWS)
    run.programs[0].forward(0, context, run.values[0])
    run.programs[0].backward(0, context, {}, index=0)
    return [run.values[0][graph.losses[0]].copy(), *run.end_step().values()]


def check_blocks(name: str, method: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """The method, in blocks of every kind, against im2col over all images at once."""
    expected = results(SHAPES[name], ColumnConvolution, BLOCKS[0], monkeypatch)
    assert all(np.abs(array).max() > 0 for array in expected)
    for accumulates in (True, False):
        if not accumulates:
            monkeypatch.setattr(blas, "_entries", {})
        for block_bytes in BLOCKS:
            for found, wanted in zip(results(SHAPES[name], method, block_bytes, monkeypatch), expected, strict=True):
                np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-12)
