"""The choice between the methods is by shape alone; whichever runs, outputs and gradients are right."""

from __future__ import annotations

import pytest

from p2pnn.engine.numpy import convolution
from p2pnn.engine.numpy.banded import BandedConvolution
from p2pnn.engine.numpy.columns import ColumnConvolution
from p2pnn.engine.numpy.winograd import WinogradConvolution
from tests.engine.numpy.build import Build, Run
from tests.engine.numpy.cases import cases_of
from tests.engine.numpy.checks import check_forward, check_gradient


@pytest.mark.parametrize("name", cases_of(convolution))
def test_gradients(name: str) -> None:
    check_gradient(name)


@pytest.mark.parametrize("name", cases_of(convolution, forward=True))
def test_forward(name: str) -> None:
    check_forward(name)


@pytest.mark.parametrize(
    ("channels", "size", "outputs", "kernel_size", "method"),
    [
        (1, 28, 6, 5, BandedConvolution),
        (64, 28, 64, 5, ColumnConvolution),
        (32, 28, 24, 3, WinogradConvolution),
        (16, 28, 16, 3, BandedConvolution),
        (64, 14, 64, 3, WinogradConvolution),
        (64, 14, 64, 1, ColumnConvolution),
    ],
)
def test_the_method_follows_from_the_shapes(
    channels: int, size: int, outputs: int, kernel_size: int, method: type
) -> None:
    b = Build()
    y = b.conv(b.input(channels, size, size), outputs, kernel_size)
    for rows in (2, 5):
        run = Run(b.graph({"y": y}), [0], rows=rows, mode="predict")
        assert isinstance(run.programs[0]._plan.forward[0].kernel._method, method)  # type: ignore[attr-defined]
