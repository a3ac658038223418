from __future__ import annotations

import math

import numpy as np
import pytest

from p2pnn.ps.norms import BLOCK, norm_squared


def test_norms_and_what_is_not_finite() -> None:
    x = np.random.default_rng(1).standard_normal(2 * BLOCK + 5, np.float32)
    assert norm_squared(x) == pytest.approx(float((x.astype(np.float64) ** 2).sum()), rel=1e-5)
    assert norm_squared(np.zeros(3, np.float32)) == 0
    for value in (np.nan, np.inf, -np.inf):
        x[BLOCK + 1] = value
        assert not math.isfinite(norm_squared(x))
    x[BLOCK + 1] = 1e30  # finite, its square is not
    assert math.isinf(norm_squared(x))
