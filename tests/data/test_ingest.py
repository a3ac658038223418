import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from p2pnn.data import batches, chunks
from p2pnn.data import ingest as ingesting
from p2pnn.data.blobs import BlobStore
from p2pnn.data.fit import Feature
from p2pnn.data.ingest import ingest, ingest_rows
from p2pnn.data.source import from_arrays, open_source
from p2pnn.data.table import Source
from p2pnn.errors import DataError
from p2pnn.job.spec import Split
from p2pnn.model.graph import Graph, Scaling

FEATURES = (Feature("features", "x", (3,)), Feature("label", "y", (), 4, True, True))


def source(rows: int = 50) -> Source:
    random = np.random.default_rng(5)
    return from_arrays({"x": random.normal(3, 2, (rows, 3)), "y": np.arange(rows) % 4})


def read(split: Split, column: str, store: BlobStore) -> np.ndarray:
    reader = batches.SplitReader(split, column, store)
    out = np.empty((split.rows, *reader.shape), reader.dtype)
    reader.rows(batches.split_order(split), out)
    return out


def test_splits_cover_every_row_once(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    data = ingest(source(), FEATURES, store.put, seed=3, validation_fraction=0.1)
    assert data.validation is not None
    assert data.test is not None
    assert (data.train.rows, data.validation.rows, data.test.rows) == (36, 4, 10)
    parts = [batches.split_order(split) for split in (data.train, data.validation, data.test)]
    assert sorted(np.concatenate(parts)) == list(range(50))
    assert data.inputs == {"features": "x", "label": "y"}
    for split in (data.train, data.validation, data.test):
        np.testing.assert_array_equal(read(split, "y", store), batches.split_order(split) % 4)
    again = ingest(source(), FEATURES, store.put, seed=4)
    assert again.train.dataset == data.train.dataset
    assert batches.split_order(again.test).tolist() != batches.split_order(data.test).tolist()  # type: ignore[arg-type]


def test_the_values_arrive_whole_over_many_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 100)  # 8 rows of x, 12 labels
    monkeypatch.setattr(ingesting, "BLOCK_BYTES", 70)
    store = BlobStore(tmp_path)
    data = ingest(source(), FEATURES, store.put)
    assert [len(column.chunks) for column in data.train.dataset.columns] == [7, 5]
    whole = Split(data.train.dataset, 0, 50)
    (block,) = source().train.blocks(50, ["x", "y"])
    np.testing.assert_array_equal(read(whole, "x", store), block["x"])
    np.testing.assert_array_equal(read(whole, "y", store), block["y"])


def test_a_part_of_its_own_is_what_is_tested_on(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    both = from_arrays({"x": np.zeros((6, 3)), "y": [0] * 6}, {"x": np.ones((2, 3)), "y": [3, 2]})
    data = ingest(both, FEATURES, store.put)
    assert data.test is not None
    assert (data.train.rows, data.test.rows, data.test.seed) == (6, 2, -1)
    assert read(data.test, "y", store).tolist() == [3, 2]
    other = ingest(both, FEATURES, store.put, test=source(7))
    assert other.test is not None
    assert other.test.rows == 7
    assert ingest(source(), FEATURES, store.put, test_fraction=0).test is None


def test_scaling_is_fitted_on_the_rows_trained_on_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingesting, "BLOCK_BYTES", 100)
    (tmp_path / "d.csv").write_text("a,b,y\n" + "".join(f"{row * row},7,{row % 2}\n" for row in range(40)))
    store = BlobStore(tmp_path / "blobs")
    features = (Feature("f", "x", (2,)), Feature("label", "y", (), 2, True, True))
    data = ingest(open_source(tmp_path / "d.csv", "y"), features, store.put, seed=9)
    trained = read(data.train, "x", store).astype(np.float64)
    scaling = data.scaling["f"]
    np.testing.assert_allclose(scaling.shift, [trained[:, 0].mean(), 7])
    np.testing.assert_allclose(scaling.scale, [1 / trained[:, 0].std(), 1])
    scaled = batches.scale(read(data.train, "x", store), scaling)
    np.testing.assert_allclose(scaled.mean(axis=0), [0, 0], atol=1e-6)
    np.testing.assert_allclose(scaled.std(axis=0), [1, 0], atol=1e-6)
    assert set(data.scaling) == {"f"}
    completed = data.complete(Graph((), (), (), (), (), {}))
    assert completed.scaling == data.scaling


@pytest.mark.parametrize(
    ("normalize", "wanted"),
    [("auto", Scaling((0.0,), (1 / 16,))), ("none", None), (0.25, Scaling((0.0,), (0.25,)))],
)
def test_images_are_scaled_by_their_greatest_value(
    tmp_path: Path, normalize: float | str, wanted: Scaling | None
) -> None:
    features = (Feature("image", "x", (1, 8, 8)), Feature("label", "y", (), 10, True, True))
    data = ingest(open_source("digits"), features, BlobStore(tmp_path).put, normalize=normalize)
    assert (data.train.rows, data.test.rows) == (1437, 360)  # type: ignore[union-attr]
    assert data.scaling.get("image") == wanted


def test_floats_that_are_no_features_stay_as_they_are(tmp_path: Path) -> None:
    assert ingest(source(), FEATURES, BlobStore(tmp_path).put).scaling == {}


@pytest.mark.parametrize(
    ("x", "y", "sentence"),
    [
        (np.nan, 0, r"data, row 4 of x, entry \[1\]: the value is NaN"),
        (-np.inf, 0, r"row 4 of x, entry \[1\]: the value is infinite, or too large for float32"),
        (1e39, 0, r"row 4 of x, entry \[1\]: the value is infinite, or too large for float32"),
        (0.0, 4, "row 4 of y: the number is 4, but the model has 4 classes, 0 to 3"),
        (0.0, -1, "row 4 of y: the number is -1, but the model has 4 classes"),
    ],
)
@pytest.mark.parametrize("block_bytes", [1 << 20, 50])
def test_wrong_values_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, x: float, y: int, sentence: str, block_bytes: int
) -> None:
    monkeypatch.setattr(ingesting, "BLOCK_BYTES", block_bytes)
    arrays = {"x": np.zeros((9, 3)), "y": np.zeros(9, np.int64)}
    arrays["x"][4, 1], arrays["y"][4] = x, y
    with pytest.raises(DataError, match=sentence):
        ingest(from_arrays(arrays), FEATURES, BlobStore(tmp_path).put)


def test_a_wrong_label_in_a_csv_is_named_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("a,b,c,kind\n1,2,3,0\n1,2,3,9\n1,2,3,1\n")
    with pytest.raises(DataError, match=r"d.csv, line 3, column kind: the number is 9"):
        ingest(open_source(tmp_path / "d.csv", "kind"), FEATURES, BlobStore(tmp_path / "blobs").put)


def test_nothing_left_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="data has 1 rows; with 1 for testing and 0 for validation none is left"):
        ingest(source(1), FEATURES, BlobStore(tmp_path).put)


def test_test_data_of_another_kind(tmp_path: Path) -> None:
    put = BlobStore(tmp_path).put
    with pytest.raises(DataError, match="has no column y"):
        ingest(source(), FEATURES, put, test=from_arrays({"x": np.zeros((2, 3))}))
    with pytest.raises(DataError, match=r"x is float32\[3\] in the data to train on but float32\[5\] in data"):
        ingest(source(), FEATURES, put, test=from_arrays({"x": np.zeros((2, 5)), "y": [0, 0]}))
    named = Source("named", source().train, None, ("a", "b", "c", "d"))
    with pytest.raises(DataError, match="were numbered apart"):
        ingest(source(), FEATURES, put, test=named)


def test_rows_in_their_order(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    split = ingest_rows(source(9).train, "mine", FEATURES[1:], store.put)
    assert (split.dataset.name, split.rows, split.seed) == ("mine", 9, -1)
    assert [column.name for column in split.dataset.columns] == ["y"]
    assert read(split, "y", store).tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0]


def test_memory_is_bounded_by_a_chunk(tmp_path: Path) -> None:
    """26 MB of rows pass through; what is held is measured by what is allocated."""
    np.save(tmp_path / "a.npy", np.zeros((25, 1 << 20), np.uint8).reshape(-1, 256))
    path = tmp_path / "a.npy"
    store = BlobStore(tmp_path / "blobs")
    tracemalloc.start()
    try:
        ingest_rows(open_source(path).train, "a", [Feature("x", "x", (256,))], store.put)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert path.stat().st_size > 6 * chunks.CHUNK_BYTES
    assert peak < 5 * chunks.CHUNK_BYTES


@pytest.mark.parametrize(
    ("dtype", "normalize", "wanted"),
    [
        ("float32", 0.5, Scaling((0.0,), (0.5,))),
        ("int32", 0.5, Scaling((0.0,), (0.5,))),
        ("int32", "auto", Scaling((0.0,), (1 / 49,))),
        ("float32", "auto", None),
    ],
)
def test_single_numbers_are_scaled_like_rows(
    tmp_path: Path, dtype: str, normalize: float | str, wanted: Scaling | None
) -> None:
    data = from_arrays({"x": np.arange(50).astype(dtype)})
    found = ingest(data, (Feature("x", "x", ()),), BlobStore(tmp_path).put, test_fraction=0.0, normalize=normalize)
    assert found.scaling.get("x") == wanted
