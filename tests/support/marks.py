"""Marks of tests."""

from collections.abc import Iterable
from typing import Any

import pytest


def long(*values: Any, id: str | None = None) -> Any:
    """A parameter set that differs little from others, for long runs only."""
    return pytest.param(*values, id=id, marks=pytest.mark.long)


def some(values: Iterable[str], count: int = 3) -> list[Any]:
    """The first of them, and the others for long runs only: of what is tried in the same way."""
    return [value if number < count else long(value) for number, value in enumerate(values)]
