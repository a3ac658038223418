"""Marks of tests."""

from typing import Any

import pytest


def long(*values: Any, id: str | None = None) -> Any:
    """A parameter set that differs little from others, for long runs only."""
    return pytest.param(*values, id=id, marks=pytest.mark.long)
