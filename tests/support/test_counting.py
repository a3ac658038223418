"""The counting job's checker sees what it is there to see."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from p2pnn.data.batches import split_order
from p2pnn.ps.layout import WINDOW
from tests.support.counting import ROWS, TABLES, broken, counting, counts

EPOCHS = 3
OF = counting(EPOCHS)


def made(pushes: int = EPOCHS) -> dict[str, NDArray[np.float32]]:
    """The parameters after so many pushes of each row that is trained."""
    assert OF[0].train is not None
    trained = split_order(OF[0].train)
    found = {}
    for parameter in OF[0].graph.parameters:
        found[parameter.name] = np.zeros(parameter.shape, np.float32)
        found[parameter.name][trained] = (-pushes, pushes)
    return found


def trained_row() -> int:
    assert OF[0].train is not None
    return int(split_order(OF[0].train)[7])


def test_the_counts_of_a_run_without_faults_are_its_epochs() -> None:
    found = counts(OF, made())
    assert {name: set(count.tolist()) for name, count in found.items()} == {name: {EPOCHS} for name in TABLES}
    assert broken(found, EPOCHS, 0) == []
    assert broken(found, EPOCHS, 0, lost=4) == []


@pytest.mark.parametrize("change", [1, -1])
def test_a_push_that_is_lost_or_doubled_is_found(change: int) -> None:
    arrays = made()
    for array in arrays.values():
        array[trained_row()] += (-change, change)
    said = broken(counts(OF, arrays), EPOCHS, 0, lost=9)
    assert f"{change} pushes more than once per epoch in left, and 0 are told to be trained again" in said
    assert (f"1 pushes are missing in {TABLES[1]}" in said) == (change < 0)
    assert broken(counts(OF, arrays), EPOCHS, 1, lost=9) == (
        [] if change > 0 else [*said[:2], said[2].replace("0 are", "1 are")]
    )


def test_one_that_is_lost_is_found_though_another_one_was_trained_again() -> None:
    arrays = made()
    for array in arrays.values():
        array[trained_row()] -= (-1, 1)
        array[split_order(OF[0].train)[8]] += (-1, 1)  # type: ignore[arg-type]
    assert broken(counts(OF, arrays), EPOCHS, 0) == ["1 pushes are missing in left", "1 pushes are missing in right"]


def test_what_only_one_shard_has_is_allowed_for_lost_workers_alone() -> None:
    arrays = made()
    for row in range(WINDOW + 1):
        arrays[f"{TABLES[1]}/weight"][split_order(OF[0].train)[row]] += (-1, 1)  # type: ignore[arg-type]
    found = counts(OF, arrays)
    assert broken(found, EPOCHS, 0) == [
        f"{WINDOW + 1} pushes are in one of the tables only, and 0 may be after 0 lost workers"
    ]
    assert broken(found, EPOCHS, 0, lost=1) != []
    assert broken(found, EPOCHS, 0, lost=2) == []


@pytest.mark.parametrize("value", [(-3.0, 2.0), (-2.5, 2.5), (3.0, -3.0), (float("nan"), 3.0)])
def test_what_no_whole_pushes_make_is_refused(value: tuple[float, float]) -> None:
    arrays = made()
    arrays["left/weight"][trained_row()] = value
    with pytest.raises(AssertionError, match=f"row {trained_row()} of left/weight is "):
        counts(OF, arrays)


def test_rows_that_are_not_trained_were_not_pushed() -> None:
    arrays = made()
    assert OF[0].train is not None
    other = next(row for row in range(ROWS) if row not in split_order(OF[0].train))
    arrays["right/weight"][other] = (-1, 1)
    with pytest.raises(AssertionError, match="rows of right/weight were pushed that are not trained"):
        counts(OF, arrays)
