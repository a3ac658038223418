import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from p2pnn.data import npz
from p2pnn.data.table import Table
from p2pnn.errors import DataError


def read(table: Table, name: str, rows_max: int = 4) -> np.ndarray:
    return np.concatenate([block[name] for block in table.blocks(rows_max, [name])])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_every_key_is_a_column(tmp_path: Path, save: object) -> None:
    arrays = {
        "x": np.random.default_rng(0).normal(size=(11, 3)),
        "y": np.arange(11, dtype=">i2"),
        "image": np.asfortranarray(np.arange(11 * 6, dtype=np.uint8).reshape(11, 2, 3)),
        "flag": np.arange(11) % 2 == 0,
    }
    save(tmp_path / "d.npz", **arrays)  # type: ignore[operator]
    source = npz.open_npz(tmp_path / "d.npz")
    assert source.name == "d"
    assert source.test is None
    assert {name: column.dtype for name, column in source.columns.items()} == {
        "x": "float32", "y": "int16", "image": "uint8", "flag": "uint8",
    }  # fmt: skip
    np.testing.assert_array_equal(read(source.train, "x"), arrays["x"].astype(np.float32))
    np.testing.assert_array_equal(read(source.train, "y"), arrays["y"])
    np.testing.assert_array_equal(read(source.train, "image"), arrays["image"][:, None])
    np.testing.assert_array_equal(read(source.train, "flag"), arrays["flag"])


@pytest.mark.parametrize("names", [("x", "y"), ("x_train", "y_train")])
def test_test_keys_are_the_part_to_test_on(tmp_path: Path, names: tuple[str, str]) -> None:
    train = {name: np.zeros(6) for name in names}
    np.savez(tmp_path / "d.npz", **train, x_test=np.ones(2), y_test=np.ones(2))
    source = npz.open_npz(tmp_path / "d.npz")
    assert source.test is not None
    assert (source.train.rows, source.test.rows) == (6, 2)
    assert list(source.columns) == list(source.test.columns) == ["x", "y"]
    assert read(source.test, "x").tolist() == [1, 1]


def test_parts_with_different_keys(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros(3), y=np.zeros(3), x_test=np.zeros(2))
    with pytest.raises(DataError, match="x, y to train on but x to test on"):
        npz.open_npz(tmp_path / "d.npz")


def test_npy(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(10.0).reshape(5, 2))
    source = npz.open_npy(tmp_path / "a.npy")
    np.testing.assert_array_equal(read(source.train, "x"), np.arange(10.0).reshape(5, 2))


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path(TRAP),))  # type: ignore[return-value]


TRAP = "unset"


def test_pickled_objects_are_refused_unread(tmp_path: Path) -> None:
    global TRAP
    TRAP = str(tmp_path / "sprung")
    np.save(tmp_path / "o.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="holds Python objects, which are never loaded"):
        npz.open_npy(tmp_path / "o.npy")
    np.savez(tmp_path / "o.npz", x=np.zeros(1), y=np.array([Trap()], dtype=object))
    with pytest.raises(DataError, match="y holds Python objects"):
        npz.open_npz(tmp_path / "o.npz")
    assert not Path(TRAP).exists()
    pickle.loads(pickle.dumps(Trap()))  # the trap itself works
    assert Path(TRAP).exists()


def test_rows_differ(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros((3, 2)), y=np.zeros(4))
    with pytest.raises(DataError, match=r"d.npz: x has 3 rows but y has 4"):
        npz.open_npz(tmp_path / "d.npz")


def test_a_scalar(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros((3, 2)), rate=0.5)
    with pytest.raises(DataError, match="rate is a single value"):
        npz.open_npz(tmp_path / "d.npz")


def test_cut_short(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(1000))
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-9])
    with pytest.raises(DataError, match="x cannot be read: it is cut short"):
        read(npz.open_npy(tmp_path / "a.npy").train, "x")


def test_damaged_zip(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez_compressed(path, x=np.random.default_rng(0).normal(size=5000))
    whole = bytearray(path.read_bytes())
    path.write_bytes(whole[:-30])
    with pytest.raises(DataError, match=r"d.npz is not a readable npz file"):
        npz.open_npz(path)
    whole[2000:2200] = bytes(200)
    path.write_bytes(whole)
    with pytest.raises(DataError, match="x cannot be read"):
        read(npz.open_npz(path).train, "x")


def test_a_zip_of_something_else(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as file:
        file.writestr("readme.txt", "hello")
    with pytest.raises(DataError, match="holds no arrays"):
        npz.open_npz(tmp_path / "d.npz")
    with zipfile.ZipFile(tmp_path / "e.npz", "w") as file:
        file.writestr("x.npy", "not numpy")
    with pytest.raises(DataError, match="x cannot be read as a numpy array"):
        npz.open_npz(tmp_path / "e.npz")


def test_members_are_streamed(tmp_path: Path) -> None:
    """Reading the first block must not read the array: the rest of the file may be larger than memory."""
    buffer = io.BytesIO()
    np.save(buffer, np.arange(1_000_000.0))
    read_bytes = 0

    class Counting(io.BytesIO):
        def read(self, count: int | None = -1) -> bytes:
            nonlocal read_bytes
            data = super().read(count)
            read_bytes += len(data)
            return data

    table = npz.NpyTable("memory", {"x": lambda: Counting(buffer.getvalue())})
    assert len(next(table.blocks(100, ["x"]))["x"]) == 100
    assert read_bytes < 2000


def test_a_column_under_two_names_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros((3, 2)), x_train=np.ones((3, 2)))
    with pytest.raises(DataError, match="holds both x and x_train"):
        npz.open_npz(tmp_path / "d.npz")
