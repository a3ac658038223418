from __future__ import annotations

import pytest

from p2pnn.model.graph import BATCH, Initializer, Op, Parameter, Shape, concrete, elements, show


@pytest.mark.parametrize(
    ("shape", "text"), [((), "()"), ((BATCH,), "(batch,)"), ((3,), "(3,)"), ((BATCH, 3, 2), "(batch, 3, 2)")]
)
def test_show(shape: Shape, text: str) -> None:
    assert show(shape) == text


def test_sizes() -> None:
    assert elements(()) == 1
    assert elements((2, 3)) == 6
    assert concrete((BATCH, 3), 5) == (5, 3)
    assert Parameter("w", (4, 5), Initializer("constant")).size == 20


def test_attributes_by_type() -> None:
    op = Op("Any", "op", (), (), {"a": 1, "b": 0.5, "c": (1, 2)})
    assert (op.integer("a"), op.number("a"), op.number("b"), op.integers("c")) == (1, 1.0, 0.5, (1, 2))
    with pytest.raises(AssertionError):
        op.integer("b")
