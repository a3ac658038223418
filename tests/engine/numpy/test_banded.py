from __future__ import annotations

import pytest

from p2pnn.engine.numpy.banded import BandedConvolution
from tests.engine.numpy.methods import SHAPES, check_blocks


@pytest.mark.parametrize("name", [name for name in SHAPES if name != "groups"])
def test_blocks_of_any_size_give_one_result(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_blocks(name, BandedConvolution, monkeypatch)
