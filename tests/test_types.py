"""How long something lasts, as a person reads it, and what a node may be called."""

import pytest

from p2pnn.types import is_node_name, lasting


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(-1, "0 s"), (0.4, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "119 min"), (7200, "2 h"), (200_000, "2 days")],
)
def test_durations_have_one_unit(seconds: float, said: str) -> None:
    assert lasting(seconds) == said


@pytest.mark.parametrize(
    ("name", "may"), [("attic-pc", True), ("ä_1.b", True), ("", False), ("a b", False), ("a\x1b", False)]
)
def test_names_of_nodes(name: str, may: bool) -> None:
    assert is_node_name(name) is may
