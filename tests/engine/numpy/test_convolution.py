"""The choice between the methods is by shape alone; whichever runs, outputs and gradients are right."""

from __future__ import annotations

import pytest

from p2pnn.engine.numpy import convolution
from p2pnn.engine.numpy.banded import BandedConvolution
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
    ("channels", "size", "outputs", "kernel_size", "bands"),
    [(1, 28, 6, 5, True), (16, 28, 16, 3, False), (64, 14, 64, 3, False)],
)
def test_bands_are_for_few_channels(channels: int, size: int, outputs: int, kernel_size: int, bands: bool) -> None:
    b = Build()
    y = b.conv(b.input(channels, size, size), outputs, kernel_size)
    run = Run(b.graph({"y": y}), [0], rows=2, mode="predict")
    method = run.programs[0]._plan.forward[0].kernel._method  # type: ignore[attr-defined]
    assert isinstance(method, BandedConvolution) is bands
