from __future__ import annotations

import pytest

from p2pnn.engine.numpy.columns import ColumnConvolution
from tests.engine.numpy.methods import SHAPES, check_blocks


@pytest.mark.parametrize("name", SHAPES)
def test_blocks_of_any_size_give_one_result(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_blocks(name, ColumnConvolution, monkeypatch)
