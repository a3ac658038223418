import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from p2pnn.data import idx
from p2pnn.errors import DataError

CODES = {"uint8": 8, "int8": 9, "int16": 11, "int32": 12, "float32": 13, "float64": 14}


def encode(array: np.ndarray) -> bytes:
    head = bytes([0, 0, CODES[array.dtype.name], array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


def read(table: idx.IdxTable, name: str, rows_max: int = 3) -> np.ndarray:
    return np.concatenate([block[name] for block in table.blocks(rows_max, [name])])


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("packed", [False, True])
def test_every_type_comes_back(tmp_path: Path, dtype: str, packed: bool) -> None:
    array = (np.arange(7 * 6).reshape(7, 2, 3) - 20).astype(dtype)
    data = encode(array)
    path = tmp_path / "a.idx"
    path.write_bytes(gzip.compress(data) if packed else data)
    assert idx.is_idx(path)
    found = read(idx.open_file(path).train, "x")  # type: ignore[arg-type]
    assert found.dtype == ("float32" if dtype == "float64" else dtype)
    np.testing.assert_array_equal(found, array[:, None])


def mnist(folder: Path, part: str, rows: int, suffix: str = "") -> None:
    images = np.arange(rows * 4, dtype=np.uint8).reshape(rows, 2, 2)
    for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", images[:, 0, 0] % 10)):
        data = encode(array)
        (folder / (name + suffix)).write_bytes(gzip.compress(data) if suffix else data)


def test_mnists_folder(tmp_path: Path) -> None:
    mnist(tmp_path, "train", 5, ".gz")
    mnist(tmp_path, "t10k", 3)
    assert idx.is_folder(tmp_path)
    source = idx.open_folder(tmp_path)
    assert source.test is not None
    assert (source.name, source.train.rows, source.test.rows) == (tmp_path.name, 5, 3)
    assert source.columns["x"].shape == (1, 2, 2)
    assert source.class_count() == 9
    together = list(source.train.blocks(2, ["x", "y"]))
    assert [len(block["y"]) for block in together] == [2, 2, 1]
    assert source.train.where("y", 4, ()) == f"{tmp_path}/train-labels-idx1-ubyte.gz, row 4"


def test_half_a_pair_is_refused(tmp_path: Path) -> None:
    mnist(tmp_path, "train", 5)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="has train-images but not the other"):
        idx.open_folder(tmp_path)


def test_images_bring_the_labels_beside_them(tmp_path: Path) -> None:
    mnist(tmp_path, "some", 4)
    source = idx.open_file(tmp_path / "some-images-idx3-ubyte")
    assert set(source.columns) == {"x", "y"}
    assert set(idx.open_file(tmp_path / "some-labels-idx1-ubyte").columns) == {"x"}


def test_different_numbers_of_rows_are_refused(tmp_path: Path) -> None:
    mnist(tmp_path, "train", 4)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(encode(np.zeros(3, np.uint8)))
    with pytest.raises(DataError, match=r"images.* has 4 rows but .*labels.* has 3"):
        idx.open_folder(tmp_path)


@pytest.mark.parametrize("packed", [False, True])
def test_a_short_file_is_refused_with_its_row(tmp_path: Path, packed: bool) -> None:
    data = encode(np.zeros((10, 4), np.uint8))[:-5]
    path = tmp_path / "short"
    path.write_bytes(gzip.compress(data) if packed else data)
    found = "and ends in or before row 8" if packed else "which take 40 bytes, and 35 follow"
    with pytest.raises(DataError, match=rf"short is cut short: it announces 10 rows,? {found}"):
        read(idx.open_file(path).train, "x")  # type: ignore[arg-type]


def test_damaged_gzip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "damaged.gz"
    path.write_bytes(gzip.compress(encode(np.random.default_rng(1).integers(0, 255, (500, 9), np.uint8)))[:-2000])
    with pytest.raises(DataError, match=r"damaged.gz cannot be read"):
        read(idx.open_file(path).train, "x")  # type: ignore[arg-type]


@pytest.mark.parametrize("data", [b"", b"\0\0", b"\0\0\x07\1\0\0\0\1a", b"\0\0\x08\0", b"\0\0\x08\3\0\0\0\1"])
def test_what_is_no_idx(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(DataError, match="is not an IDX file"):
        idx.open_file(path)
