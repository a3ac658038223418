import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from p2pnn.data.source import Wanted, from_arrays, open_source
from p2pnn.data.table import ColumnType
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
        ("a.jpg", b"\xff\xd8\xff", "cannot be read as an image"),
        ("a.mp3", b"ID3\x04", "is of no known format"),
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


def test_text_and_tables_share_a_suffix(tmp_path: Path) -> None:
    table = tmp_path / "table.txt"
    table.write_text("a,b\n1,2\n3,4\n")
    assert open_source(table, "b").columns["x"].features
    assert open_source(table, usual_label="b").columns["y"].dtype == "int64"
    text = open_source(table, usual_label="c", wanted=Wanted(context=3))
    assert (text.name, text.ordered, text.columns["x"].shape, text.train.rows) == ("table", True, (3,), 3)


def test_folders(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "train.txt").write_text("ab" * 200)
    assert open_source(tmp_path / "text").ordered
    for name in ("rose", "tulip"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("RGB", (4, 5)).save(tmp_path / "images" / name / "1.png")
    found = open_source(tmp_path / "images", wanted=Wanted(size=(2, 3), channels=1))
    assert (found.classes, found.columns["x"].shape) == (("rose", "tulip"), (1, 2, 3))
    assert open_source(tmp_path / "images" / "rose" / "1.png").columns == {"x": ColumnType("uint8", (3, 5, 4))}
