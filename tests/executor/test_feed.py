"""Each step's rows are the epoch's, each once; evaluation covers the split, and its padding is counted out."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from p2pnn.data.batches import epoch_order, split_order
from p2pnn.data.blobs import BlobStore
from p2pnn.engine.numpy.engine import NumpyEngine
from p2pnn.errors import DataError
from p2pnn.executor.feed import Feed
from p2pnn.job.spec import JobSpec, Split
from p2pnn.model.graph import Value
from p2pnn.ps.allotment import Allotment
from p2pnn.train.machine import Stage
from tests.executor import models
from tests.executor.mesh import spec_for
from tests.job.test_sampling import job

ENGINE = NumpyEngine()


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path)


def feed_for(spec: JobSpec, blobs: BlobStore) -> Feed:
    return Feed(spec, ENGINE, blobs, frozenset(value.name for value in spec.graph.inputs))


def test_an_epoch_trains_on_every_row_once_in_its_order(blobs: BlobStore) -> None:
    spec = spec_for(models.dense(), blobs)
    feed = feed_for(spec, blobs)
    assert spec.train is not None
    for epoch in range(2):
        rows = []
        stage = Stage("train", 100 + 20 * epoch, 120 + 20 * epoch, step=5 * epoch, per_step=4)
        rows += [feed.indices(stage, m) for m in range(stage.first, stage.end)]
        assert {feed.valid_rows(stage, m) for m in range(stage.first, stage.end)} == {4}
        np.testing.assert_array_equal(np.concatenate(rows), epoch_order(spec.train, spec.seed, epoch))


def test_evaluation_covers_the_split_and_repeats_its_last_row(blobs: BlobStore) -> None:
    spec = spec_for(models.dense(), blobs)
    feed = feed_for(spec, blobs)
    assert spec.validation is not None
    order = split_order(spec.validation)
    assert feed.batches("validation") == 3
    stage = Stage("evaluate", 7, 10, split="validation")
    assert [feed.valid_rows(stage, m) for m in range(7, 10)] == [4, 4, 2]
    np.testing.assert_array_equal(
        np.concatenate([feed.indices(stage, m) for m in range(7, 10)]), [*order, order[-1], order[-1]]
    )


def test_rows_come_scaled_and_in_the_engine_s_layout(blobs: BlobStore) -> None:
    graph = models.scaled(models.dense())
    spec = spec_for(graph, blobs)
    feed = feed_for(spec, blobs)
    plain = feed_for(msgspec.structs.replace(spec, graph=models.dense()), blobs)
    stage = Stage("train", 0, 4, per_step=4)
    image = graph.inputs[0]
    arrays = {v.name: np.empty(ENGINE.shape(v, 4), v.dtype) for v in graph.inputs}
    feed.fill(stage, 1, arrays, ("image", "label"))
    scaled = ENGINE.export_value(image, arrays["image"]).copy()
    plain.fill(stage, 1, arrays, ("image",))
    raw = ENGINE.export_value(image, arrays["image"])
    assert raw.shape == (4, *models.IMAGE)
    assert raw.max() > 25
    np.testing.assert_allclose(scaled[:, 0], (raw[:, 0] - 128) / 64, rtol=1e-6)
    np.testing.assert_allclose(scaled[:, 1], (raw[:, 1] - 100) / 80, rtol=1e-6)
    assert arrays["label"].dtype == np.int64


def test_a_condition_holds_where_its_whole_number_is_not_zero(blobs: BlobStore) -> None:
    graph = models.dense()
    flag = Value("label", "bool", (-1,))
    spec = spec_for(graph, blobs)
    plain = feed_for(spec, blobs)
    feed = feed_for(
        msgspec.structs.replace(spec, graph=msgspec.structs.replace(graph, inputs=(graph.inputs[0], flag))), blobs
    )
    arrays = {"label": np.empty(4, np.bool_)}
    numbers = {"label": np.empty(4, np.int64)}
    seen: set[bool] = set()
    for number in range(4):
        stage = Stage("train", 0, 4, per_step=4)
        feed.fill(stage, number, arrays, ("label",))
        plain.fill(stage, number, numbers, ("label",))
        np.testing.assert_array_equal(arrays["label"], numbers["label"] != 0)
        seen |= set(arrays["label"].tolist())
    assert seen == {True, False}


def test_a_column_of_another_shape_is_refused_with_both(blobs: BlobStore) -> None:
    spec = spec_for(models.dense(), blobs)
    wrong = msgspec.structs.replace(
        spec.graph, inputs=(Value("image", "float32", (-1, 3, 8, 8)), *spec.graph.inputs[1:])
    )
    feed = feed_for(msgspec.structs.replace(spec, graph=wrong), blobs)
    with pytest.raises(DataError, match=r"\(2, 8, 8\), but input image takes \(3, 8, 8\)"):
        feed.fill(Stage("train", 0, 4, per_step=4), 0, {}, ("image",))


def test_a_split_that_is_not_there_is_refused(blobs: BlobStore) -> None:
    spec = spec_for(models.dense(), blobs, test=None)
    with pytest.raises(DataError, match="no data for its split 'test'"):
        feed_for(spec, blobs).batches("test")


def test_an_order_is_made_once_although_validation_comes_between(
    blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def counted(split: Split) -> NDArray[np.int64]:
        made.append(split.start)
        return split_order(split)

    monkeypatch.setattr("p2pnn.executor.feed.split_order", counted)
    feed = feed_for(spec_for(models.dense(), blobs), blobs)
    for number in range(3):
        feed.indices(Stage("train", 0, 4), number)
        feed.indices(Stage("evaluate", 0, 3, split="validation"), 0)
        feed.indices(Stage("evaluate", 0, 3, split="test"), 0)
    assert len(made) == 2


def test_the_row_of_a_text_begins_with_its_tokens(blobs: BlobStore) -> None:
    feed = Feed(job(context=6), ENGINE, blobs, frozenset({"tokens"}))
    arrays = {"tokens": np.full((1, 6), 9, np.int64)}
    stage = Stage("predict", 4, 5, tokens=(2, 1, 2))
    feed.fill(stage, 4, arrays, ("tokens",))
    assert arrays["tokens"].tolist() == [[2, 1, 2, 0, 0, 0]]
    assert feed.valid_rows(stage, 4) == 1
    for wrong in ((0,) * 7, (3,), (-1,)):
        with pytest.raises(DataError, match=r"tokens do not go into the input tokens of the shape \(6,\)"):
            feed.fill(Stage("predict", 4, 5, tokens=wrong), 4, arrays, ("tokens",))


def test_workers_of_one_step_share_its_micro_batches(blobs: BlobStore) -> None:
    spec = spec_for(models.dense(), blobs)
    names = frozenset(value.name for value in spec.graph.inputs)
    whole = feed_for(spec, blobs)
    stage = Stage("train", 0, 8, step=1, per_step=4)
    wanted = [whole.indices(stage, m).tolist() for m in range(8)]
    found: list[list[int]] = [[] for _ in wanted]
    for index in range(2):
        feed = Feed(spec, ENGINE, blobs, names, Allotment(2, index))
        share = Stage("train", 0, 4, step=1, per_step=2)
        for m in range(4):
            step, micro_batch = feed.at(share, m)
            found[(step - 1) * 4 + micro_batch] = feed.indices(share, m).tolist()
    assert found == wanted


def test_other_workers_take_batches_in_turn(blobs: BlobStore) -> None:
    spec = spec_for(models.dense(), blobs)
    feed = Feed(spec, ENGINE, blobs, frozenset({"image"}), Allotment(3, 1, shared=False))
    stage = Stage("train", 0, 8, step=1, per_step=4)
    assert [feed.at(stage, m) for m in (0, 3, 4)] == [(4, 0), (4, 3), (7, 0)]
    whole = feed_for(spec, blobs)
    np.testing.assert_array_equal(feed.indices(stage, 5), whole.indices(Stage("train", 0, 40, per_step=4), 29))


@pytest.mark.parametrize("workers", [2, 3, 5])
def test_workers_share_out_an_evaluation(workers: int, blobs: BlobStore) -> None:
    """Ten rows in micro-batches of four: some workers may have none, and the padding is the last one's alone."""
    spec = spec_for(models.dense(), blobs)
    whole = feed_for(spec, blobs)
    wanted = np.concatenate([whole.indices(Stage("evaluate", 0, 3, split="test"), m) for m in range(3)])[:10]
    rows: list[int] = []
    for index in range(workers):
        feed = Feed(spec, ENGINE, blobs, frozenset({"image"}), Allotment(workers, index))
        stage = Stage("evaluate", 7, 7 + feed.batches("test"), split="test")
        for m in range(stage.first, stage.end):
            rows += feed.indices(stage, m)[: feed.valid_rows(stage, m)].tolist()
    assert rows == wanted.tolist()
