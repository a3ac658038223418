"""How long something lasts, as a person reads it."""

import pytest

from p2pnn.types import lasting


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(-1, "0 s"), (0.4, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "119 min"), (7200, "2 h"), (200_000, "2 days")],
)
def test_durations_have_one_unit(seconds: float, said: str) -> None:
    assert lasting(seconds) == said
