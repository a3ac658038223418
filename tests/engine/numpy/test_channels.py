from __future__ import annotations

import numpy as np
import pytest

from p2pnn.engine.base import Tensors
from p2pnn.engine.numpy.channels import WIDE_COLUMNS_MAX, Columns, fold
from p2pnn.engine.numpy.kernel import Site, Workspace
from p2pnn.engine.numpy.layout import Operand
from p2pnn.model.graph import Op


def bound(rows: int, columns: int) -> Columns:
    workspace, dtype = Workspace(), np.dtype(np.float64)
    operand = Operand("x", (rows, columns), dtype, "plain", "value")
    site = Site(
        0, Op("Relu", "x", ("x",), ("y",)), (operand,), (operand,), (False,), False, dtype, workspace, Tensors()
    )
    made = Columns(site, rows, columns)
    workspace.allocate()
    return made


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (7, 3), (96, 6), (50_000, 4), (97, 16), (3, 5000), (8192, 1024)])
def test_sums_over_rows(rows: int, columns: int) -> None:
    x = np.random.default_rng(0).standard_normal((rows, columns))
    made, out = bound(rows, columns), np.empty(columns)
    made.sums(x, out)
    np.testing.assert_allclose(out, x.sum(0), atol=1e-9)


def test_a_repeated_vector_lies_over_each_row() -> None:
    made = bound(96, 6)
    x, vector, wide = np.zeros((96, 6)), np.arange(6.0), np.empty(made.shape[1])
    made.repeat(vector, wide)
    np.testing.assert_array_equal((made.wide(x) + wide).reshape(96, 6), x + vector)
    assert made.fold > 1


def test_a_fold_divides_the_rows() -> None:
    for rows in (1, 2, 97, 96, 6272, 50_000):
        for columns in (1, 6, 64, 5000):
            k = fold(rows, columns)
            assert rows % k == 0
            assert k == 1 or k * columns <= WIDE_COLUMNS_MAX
