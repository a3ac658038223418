from __future__ import annotations

import pytest

from p2pnn.errors import ModelError
from p2pnn.model import attributes
from p2pnn.model.attributes import AttributeRule, canonical
from p2pnn.model.graph import BATCH, Attribute, Value

X = Value("x", "float32", (BATCH, 4, 6))


def test_axes_are_counted_from_the_front_and_sorted() -> None:
    assert canonical("op", AttributeRule("axes"), [-1, 1], 3) == (1, 2)
    assert canonical("op", AttributeRule("axis"), -1, 3) == 2
    assert canonical("op", AttributeRule("float"), 1, 3) == 1.0


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (
            {"axes": (-1, 1), "starts": (1, 0), "ends": (2**63 - 1, -1), "steps": (2, 1)},
            ((1, 2), (0, 1), (3, 6), (1, 2)),
        ),
        ({"axes": (2,), "starts": (-2,), "ends": (99,), "steps": ()}, ((2,), (4,), (6,), (1,))),
    ],
)
def test_slices_are_cut_to_the_extents(given: dict[str, Attribute], found: tuple[tuple[int, ...], ...]) -> None:
    attributes.slices("op", given, [X])
    assert tuple(given[key] for key in ("axes", "starts", "ends", "steps")) == found


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"axes": (1,), "starts": (3,), "ends": (3,), "steps": (1,)}, "from 3 to 3 at axis 1"),
        ({"axes": (1,), "starts": (3,), "ends": (0,), "steps": (-1,)}, "at least 1"),
        ({"axes": (1, 2), "starts": (3,), "ends": (0,), "steps": (1,)}, "equally many"),
        ({"axes": (0,), "starts": (0,), "ends": (1,), "steps": (1,)}, "0 is the batch"),
        ({"axes": (1, -2), "starts": (0, 0), "ends": (1, 1), "steps": (1, 1)}, "different axes"),
    ],
)
def test_slices_that_hold_nothing_or_run_backwards(given: dict[str, Attribute], part: str) -> None:
    with pytest.raises(ModelError, match=r"^op") as caught:
        attributes.slices("op", given, [X])
    assert part in str(caught.value)


def test_unsqueezed_axes_are_the_output_s() -> None:
    given: dict[str, Attribute] = {"axes": (-1, 1)}
    attributes.unsqueeze("op", given, [X])
    assert given["axes"] == (1, 4)
    with pytest.raises(ModelError, match="0 to 4"):
        attributes.unsqueeze("op", {"axes": (5, 1)}, [X])


def test_attention_fills_in_heads_and_scale() -> None:
    given: dict[str, Attribute] = {"q_num_heads": 3, "kv_num_heads": 0, "scale": 0.0}
    attributes.attention("op", given, [X])
    assert given == {"q_num_heads": 3, "kv_num_heads": 3, "scale": pytest.approx(2**-0.5)}
    attributes.attention("op", given, [X])
    assert given["scale"] == pytest.approx(2**-0.5)
