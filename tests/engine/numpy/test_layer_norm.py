from __future__ import annotations

import pytest

from p2pnn.engine.numpy import layer_norm
from tests.engine.numpy.cases import cases_of
from tests.engine.numpy.checks import check_forward, check_gradient


@pytest.mark.parametrize("name", cases_of(layer_norm))
def test_gradients(name: str) -> None:
    check_gradient(name)


@pytest.mark.parametrize("name", cases_of(layer_norm, forward=True))
def test_forward(name: str) -> None:
    check_forward(name)


@pytest.mark.parametrize("name", ["LayerNormalization", "LayerNormalization image"])
def test_blocks_do_not_show(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines in blocks of two, the last one shorter."""
    monkeypatch.setattr(layer_norm, "fold", lambda rows, columns: 1)
    monkeypatch.setattr(layer_norm, "BLOCK_BYTES", 5 * 2 * 3 * 4)
    check_gradient(name)
    check_forward(name)
