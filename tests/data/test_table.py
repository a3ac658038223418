import numpy as np
import pytest

from p2pnn.data.table import Arrays, ColumnType, Source, column_type, same_rows
from p2pnn.errors import DataError


def test_arrays_are_read_in_blocks_of_their_columns() -> None:
    x = np.arange(30.0).reshape(5, 2, 3)
    table = Arrays("memory", {"x": x, "y": [0, 1, 2, 1, 0], "mask": np.array([True, False, True, True, False])})
    assert table.rows == 5
    assert table.columns["x"] == ColumnType("float32", (1, 2, 3))
    assert table.columns["y"] == ColumnType("int64", ())
    blocks = list(table.blocks(2, ["x", "mask"]))
    assert [len(block["x"]) for block in blocks] == [2, 2, 1]
    assert set(blocks[0]) == {"x", "mask"}
    np.testing.assert_array_equal(np.concatenate([block["x"] for block in blocks]), x[:, None].astype(np.float32))
    assert np.concatenate([block["mask"] for block in blocks]).tolist() == [1, 0, 1, 1, 0]


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"x": np.zeros((3, 2)), "y": np.zeros(4)}, "x has 3 rows but y has 4"),
        ({"x": np.array([{}, None])}, "holds Python objects"),
        ({"x": np.zeros(3, np.complex128)}, "x is complex128, which cannot be used"),
        ({"x": np.array(["a", "b"])}, "cannot be used"),
        ({"x": 3.0}, "is a single value"),
        ({"x": [[1, 2], [3]]}, "its rows have different shapes"),
        ({"x": np.zeros((0, 4))}, "memory holds no data"),
        ({"x": np.zeros((4, 0))}, "which holds nothing"),
        ({}, "memory holds no data"),
    ],
)
def test_arrays_that_cannot_be_used(arrays: dict[str, object], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        Arrays("memory", arrays)


def test_a_place_is_named_for_a_person() -> None:
    table = Arrays("memory", {"x": np.zeros((2, 3))})
    assert table.where("x", 1, (2,)) == "memory, row 1 of x, entry [2]"
    assert table.where("x", 1, ()) == "memory, row 1 of x"


def test_class_count_is_that_of_all_labels() -> None:
    train, test = Arrays("a", {"x": [[0.0]] * 3, "y": [0, 1, 2]}), Arrays("b", {"x": [[0.0]], "y": [6]})
    assert Source("s", train).class_count() == 3
    assert Source("s", train, test).class_count() == 7
    assert Source("s", train, None, ("a", "b", "c", "d")).class_count() == 4
    with pytest.raises(DataError, match="has no column z; it has x, y"):
        Source("s", train).class_count("z")
    with pytest.raises(DataError, match="which are no classes"):
        Source("s", train).class_count("x")


def test_types() -> None:
    assert column_type("p", "x", np.dtype(">f8"), (3,)) == ColumnType("float32", (3,))
    assert column_type("p", "x", np.dtype("uint8"), (28, 28)).shape == (1, 28, 28)
    assert ColumnType("int16", (3, 4)).row_bytes == 24
    assert ColumnType("int16", ()).is_integer
    assert not ColumnType("float32", ()).is_integer
    assert same_rows("p", {"x": 4, "y": 4}) == 4


def test_negative_labels_are_no_classes() -> None:
    labels = np.zeros(70_000, np.int64)
    labels[66_000] = -1
    source = Source("d", Arrays("d", {"y": labels}))
    with pytest.raises(DataError, match="d, row 66000 of y: the label is -1, but classes are numbered from 0"):
        source.class_count()
