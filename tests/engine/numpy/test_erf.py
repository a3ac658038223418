from __future__ import annotations

import pytest

from p2pnn.engine.numpy import erf
from tests.engine.numpy.cases import cases_of
from tests.engine.numpy.checks import check_forward, check_gradient


@pytest.mark.parametrize("name", cases_of(erf))
def test_gradients(name: str) -> None:
    check_gradient(name)


@pytest.mark.parametrize("name", cases_of(erf, forward=True))
def test_forward(name: str) -> None:
    check_forward(name)
