"""Products that accumulate, by BLAS and by numpy alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from p2pnn.engine.numpy import blas


def both(monkeypatch: pytest.MonkeyPatch, found: bool) -> None:
    """Skip where this numpy carries no BLAS that can be called; else take it, or take it away."""
    if found and not blas._entries:
        pytest.skip("this numpy's BLAS cannot be called")
    if not found:
        monkeypatch.setattr(blas, "_entries", {})


@pytest.mark.parametrize("found", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("turn_a", [False, True])
@pytest.mark.parametrize("turn_b", [False, True])
@pytest.mark.parametrize(("m", "k", "n"), [(7, 5, 3), (1, 4, 6), (6, 1, 1), (1, 1, 1), (64, 32, 48)])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (-0.25, 1.0), (1.0, 0.0), (0.5, 0.75)])
def test_product(
    monkeypatch: pytest.MonkeyPatch, found: bool, dtype: Any, turn_a: bool, turn_b: bool, m: int, k: int, n: int,
    alpha: float, beta: float,
) -> None:  # fmt: skip
    both(monkeypatch, found)
    random = np.random.default_rng(1)
    a = random.standard_normal((k, m) if turn_a else (m, k)).astype(dtype)
    b = random.standard_normal((n, k) if turn_b else (k, n)).astype(dtype)
    a, b = (a.T if turn_a else a), (b.T if turn_b else b)
    wide = random.standard_normal((m, n + 3)).astype(dtype)
    c = wide[:, :n]
    rest = wide[:, n:].copy()
    expected = alpha * (a.astype(np.float64) @ b) + beta * c
    if beta == 0.0:
        c[...] = np.nan
    blas.Product(a, b, c, np.empty((m, n), dtype))(alpha, beta)
    np.testing.assert_allclose(c, expected, rtol=1e-5 if dtype is np.float32 else 1e-12, atol=1e-5)
    assert np.array_equal(wide[:, n:], rest), "nothing beside C changes"


@pytest.mark.parametrize("found", [True, False])
def test_slices_of_wider_arrays(monkeypatch: pytest.MonkeyPatch, found: bool) -> None:
    both(monkeypatch, found)
    random = np.random.default_rng(2)
    x, w = random.standard_normal((9, 20)).astype(np.float32), random.standard_normal((20, 8)).astype(np.float32)
    y = np.zeros((9, 8), np.float32)
    for start in range(0, 20, 5):
        blas.Product(x[:, start : start + 5], w[start : start + 5], y, np.empty_like(y))()
    np.testing.assert_allclose(y, x @ w, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("found", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (-0.001, 1.0), (0.1, 0.9), (2.0, 0.0)])
def test_combine(monkeypatch: pytest.MonkeyPatch, found: bool, dtype: Any, alpha: float, beta: float) -> None:
    both(monkeypatch, found)
    random = np.random.default_rng(3)
    x, y = random.standard_normal(1001).astype(dtype), random.standard_normal(1001).astype(dtype)
    expected = alpha * x.astype(np.float64) + beta * y
    whole, cut = y.copy(), y.copy()
    blas.combine(alpha, x, beta, whole)
    np.testing.assert_allclose(whole, expected, rtol=1e-5 if dtype is np.float32 else 1e-12, atol=1e-6)
    for start, stop in ((0, 1), (1, 98), (98, 1001)):
        blas.combine(alpha, x[start:stop], beta, cut[start:stop])
    assert cut.tobytes() == whole.tobytes(), "the bits do not depend on the cut"


def test_the_fingerprint_names_what_accumulates() -> None:
    from p2pnn.engine.numpy.engine import NumpyEngine

    assert blas.name in NumpyEngine().fingerprint()
