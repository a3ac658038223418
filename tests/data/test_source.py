import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from p2pnn.data.source import from_arrays, open_source
from p2pnn.errors import DataError


def test_the_packaged_digits() -> None:
    source = open_source("digits")
    assert source.name == "digits"
    assert source.test is None
    assert source.columns["x"].shape == (1, 8, 8)
    assert source.class_count() == 10
    (block,) = source.train.blocks(5000, ["x", "y"])
    assert block["x"].shape == (1797, 1, 8, 8)
    assert int(block["x"].max()) == 16
    assert np.bincount(block["y"]).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert block["x"][0, 0, 0].tolist() == [0, 0, 5, 13, 9, 1, 0, 0]  # the first row of the UCI file


def test_a_file_is_known_by_its_content(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4, 2)))
    np.savez(tmp_path / "b.npz", x=np.zeros((5, 2)))
    (tmp_path / "c.csv").write_text("a,b\n1,2\n")
    (tmp_path / "d").write_bytes(gzip.compress(b"\0\0\x08\1" + struct.pack(">I", 3) + b"abc"))
    for name, rows in (("a.npy", 4), ("b.npz", 5), ("c.csv", 1), ("d", 3)):
        disguised = tmp_path / ("x" + name if name == "c.csv" else f"file{rows}")
        (tmp_path / name).rename(disguised)
        assert open_source(disguised).train.rows == rows


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("gone.npz", None, "there is no file .*gone.npz"),
        ("empty.csv", b"", "is empty"),
        ("a.jpg", b"\xff\xd8\xff", "is of no known format"),
        ("notes", b"a,b\n1,2\n", "is of no known format.*ends in .csv"),
        ("a.csv", b"a,b\n1,2\n", "has no column 'label'"),
        ("a.npy", "array", "has no column 'label'; it has x"),
    ],
)
def test_what_cannot_be_opened(tmp_path: Path, name: str, content: object, sentence: str) -> None:
    if content == "array":
        np.save(tmp_path / name, np.zeros(3))
    elif isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=sentence) as caught:
        open_source(tmp_path / name, label="label")
    assert name in str(caught.value)


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder without MNIST's files"):
        open_source(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "secret.csv").write_text("a\n1\n")
    (tmp_path / "secret.csv").chmod(0)
    with pytest.raises(DataError, match="cannot be read: Permission denied"):
        open_source(tmp_path / "secret.csv")


def test_arrays() -> None:
    source = from_arrays({"image": np.zeros((4, 2)), "label": [0, 1, 0, 1]}, name="mine")
    assert (source.name, source.train.rows, source.test) == ("mine", 4, None)
    both = from_arrays({"x": [1.0]}, {"x": [2.0, 3.0]})
    assert both.test is not None
    assert both.test.rows == 2
    with pytest.raises(DataError, match="train has the arrays x, but test z"):
        from_arrays({"x": [1.0]}, {"z": [2.0]})
