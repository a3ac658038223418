from __future__ import annotations

import math

import numpy as np
import pytest

from p2pnn.engine.numpy import erf
from tests.engine.numpy.build import Build
from tests.engine.numpy.cases import cases_of
from tests.engine.numpy.checks import check_forward, check_gradient, forward


@pytest.mark.parametrize("name", cases_of(erf))
def test_gradients(name: str) -> None:
    check_gradient(name)


@pytest.mark.parametrize("name", cases_of(erf, forward=True))
def test_forward(name: str) -> None:
    check_forward(name)


def test_erf_is_within_four_units_in_the_last_place() -> None:
    z = np.concatenate([np.linspace(-5, 5, 20_001), np.geomspace(1e-30, 1, 500), [0.0, -np.inf, np.inf]]).astype(
        np.float32
    )
    found, square = np.empty_like(z), np.empty_like(z)
    erf.erf(z, found, square)
    exact = np.array([math.erf(float(n)) for n in z])
    unit = np.spacing(np.maximum(np.abs(exact), 1e-37).astype(np.float32))
    assert (np.abs(found - exact) <= 4 * unit).all()
    assert np.abs(found - exact).max() < 2e-7
    assert np.abs(found).max() == 1


def test_a_number_that_is_none_stays_none() -> None:
    z = np.array([np.nan], np.float32)
    erf.erf(z, found := np.empty_like(z), np.empty_like(z))
    assert np.isnan(found).all()


def test_blocks_do_not_show() -> None:
    """A function of 20,000 elements, in three blocks, is that of each element."""
    x = np.random.default_rng(0).standard_normal((2, 10_000)).astype(np.float32)
    b = Build()
    made, _ = forward(b.graph({"y": b.op("Gelu", b.input(10_000))}), "predict", {"input0": x}, 2)
    expected = [n * (1 + math.erf(n / math.sqrt(2))) / 2 for n in x[:, ::97].reshape(-1).astype(float)]
    np.testing.assert_allclose(made["gelu0"][:, ::97].reshape(-1), expected, rtol=2e-5, atol=1e-6)
