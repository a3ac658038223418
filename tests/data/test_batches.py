from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnn.data import batches, chunks
from p2pnn.data.blobs import BlobStore
from p2pnn.errors import DataError, StorageError
from p2pnn.job.spec import Chunk, Column, Dataset, Split
from p2pnn.model.graph import Scaling


def dataset(rows: int) -> Dataset:
    return Dataset("d", rows, ())


def stored(store: BlobStore, rows: np.ndarray, per_chunk: int) -> Split:
    pieces = [rows[start : start + per_chunk] for start in range(0, len(rows), per_chunk)]
    parts = tuple(Chunk(store.put(chunks.write(piece)), len(piece)) for piece in pieces)
    column = Column("x", rows.dtype.name, rows.shape[1:], parts)
    return Split(Dataset("d", len(rows), (column,)), 0, len(rows))


@settings(max_examples=50)
@given(st.integers(0, 300), st.integers(0, 300), st.integers(-1, 5), st.integers(0, 2**63), st.integers(0, 4))
def test_an_epoch_is_a_permutation_of_its_split(rows: int, cut: int, split_seed: int, seed: int, epoch: int) -> None:
    cut = min(cut, rows)
    first, second = Split(dataset(rows), 0, cut, split_seed), Split(dataset(rows), cut, rows, split_seed)
    assert sorted([*batches.split_order(first), *batches.split_order(second)]) == list(range(rows))
    order = batches.epoch_order(first, seed, epoch)
    assert order.dtype == np.int64
    assert sorted(order) == sorted(batches.split_order(first))


def test_orders_differ_by_seed_and_epoch_and_nothing_else() -> None:
    split = Split(dataset(100), 10, 90, seed=3)
    orders = [batches.epoch_order(split, seed, epoch).tolist() for seed in (0, 1, 11) for epoch in (0, 1, 2)]
    assert len({tuple(order) for order in orders}) == 9
    assert batches.epoch_order(split, 1, 2).tolist() == orders[5]


def test_orders_are_fixed_for_ever() -> None:
    """A run that is resumed under a later release must see the same batches."""
    assert batches.epoch_order(Split(dataset(8), 0, 8), 0, 0).tolist() == [4, 1, 3, 0, 5, 2, 6, 7]
    assert batches.split_order(Split(dataset(8), 2, 8, 5)).tolist() == [0, 6, 7, 5, 4, 2]


def test_without_a_seed_a_split_is_a_range() -> None:
    assert batches.split_order(Split(dataset(9), 4, 7)).tolist() == [4, 5, 6]
    with pytest.raises(DataError, match="which has 9"):
        batches.split_order(Split(dataset(9), 4, 10))


@settings(max_examples=40)
@given(st.integers(1, 40), st.integers(1, 9), st.lists(st.integers(0, 10**6), max_size=30))
def test_gathering_equals_indexing(
    tmp_path_factory: pytest.TempPathFactory, count: int, per_chunk: int, picks: list[int]
) -> None:
    rows = np.arange(count * 6, dtype=np.float32).reshape(count, 2, 3)
    store = BlobStore(tmp_path_factory.mktemp("store"))
    reader = batches.SplitReader(stored(store, rows, per_chunk), "x", store)
    indices = np.array([pick % count for pick in picks], np.int64)
    out = np.full((len(indices) + 1, 2, 3), -1, np.float32)
    reader.rows(indices, out)
    np.testing.assert_array_equal(out[:-1], rows[indices])
    assert (out[-1] == -1).all()


def test_labels_widen_on_the_way_out(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    reader = batches.SplitReader(stored(store, np.arange(10, dtype=np.uint8), 4), "x", store)
    out = np.empty(3, np.int64)
    reader.rows(np.array([9, 0, 5]), out)
    assert out.tolist() == [9, 0, 5]
    with pytest.raises(DataError, match="does not go into bool"):
        reader.rows(np.array([1]), np.empty(1, np.bool_))


def test_few_maps_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "MAPS_OPEN_MAX", 2)
    opened: list[Path] = []
    open_chunk = chunks.open
    monkeypatch.setattr(chunks, "open", lambda path: (opened.append(path), open_chunk(path))[1])
    store = BlobStore(tmp_path)
    reader = batches.SplitReader(stored(store, np.arange(4), 1), "x", store)
    assert opened == []
    out = np.empty(1, np.int64)
    for row in (0, 1, 0, 2, 0, 1):  # 2 pushes 1 out, and 1 must be opened again
        reader.rows(np.array([row]), out)
        assert out[0] == row
    assert len(opened) == 4


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    split = stored(store, np.zeros((4, 3), np.float32), 2)
    with pytest.raises(DataError, match="has no column y; it has x"):
        batches.SplitReader(split, "y", store)
    reader = batches.SplitReader(split, "x", store)
    for indices, out in (([0, 1], np.empty((1, 3), np.float32)), ([0], np.empty((1, 4), np.float32))):
        with pytest.raises(DataError, match="do not go into"):
            reader.rows(np.array(indices), out)
    for indices in ([4], [-1]):
        with pytest.raises(DataError, match="has 4 rows"):
            reader.rows(np.array(indices), np.empty((1, 3), np.float32))
    with pytest.raises(DataError, match="4 rows in its chunks, not 5"):
        batches.SplitReader(Split(Dataset("d", 5, split.dataset.columns), 0, 5), "x", store)


def test_a_chunk_that_is_not_its_columns(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    blob = store.put(chunks.write(np.zeros((4, 3), np.float32)))
    split = Split(Dataset("d", 4, (Column("x", "float32", (4,), (Chunk(blob, 4),)),)), 0, 4)
    with pytest.raises(StorageError, match="column x says"):
        batches.SplitReader(split, "x", store).rows(np.array([0]), np.empty((1, 4), np.float32))
    store.remove(blob)
    with pytest.raises(StorageError, match="is not here"):
        batches.SplitReader(split, "x", store).rows(np.array([0]), np.empty((1, 4), np.float32))


def test_scale_with_one_number() -> None:
    raw = np.array([[0, 128, 255]], np.uint8)
    out = batches.scale(raw, Scaling((0.0,), (1 / 255,)))
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out, raw.astype(np.float32) * np.float32(1 / 255))


def test_scale_with_one_number_per_channel() -> None:
    raw = np.random.default_rng(1).integers(0, 256, (5, 3, 2, 2), dtype=np.uint8)
    scaling = Scaling((1.0, 2.0, 3.0), (0.5, 0.25, 2.0))
    out = np.empty(raw.shape, np.float32)
    assert batches.scale(raw, scaling, out) is out
    for channel in range(3):
        wanted = (raw[:, channel].astype(np.float32) - scaling.shift[channel]) * scaling.scale[channel]
        np.testing.assert_array_equal(out[:, channel], wanted)
    with pytest.raises(DataError, match="2 scales do not fit"):
        batches.scale(raw, Scaling((0.0,), (1.0, 1.0)))
