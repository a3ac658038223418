from __future__ import annotations

from p2pnn.engine.numpy.table import KERNELS
from p2pnn.model import ops
from tests.engine.numpy.cases import CASES, LOSSES, NO_GRADIENT


def test_every_kind_has_a_kernel_and_a_case() -> None:
    assert set(KERNELS) == set(ops.TABLE)
    assert {name.split()[0] for name in CASES} == set(ops.TABLE) - NO_GRADIENT - LOSSES
