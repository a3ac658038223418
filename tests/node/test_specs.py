"""Specs from strangers, and which blobs a node needs."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnn.errors import ModelError, UsageError
from p2pnn.job.spec import DataParallel, Optimizer
from p2pnn.node.specs import blobs_read_by, check, decode_spec, held_by_one, inputs_read, read_by_job
from p2pnn.types import BlobId
from tests.job.test_sampling import job as sampling_job
from tests.node.nodes import A, B, C, plan_of, plan_of_data, toy, toy_of_data


def test_a_spec_comes_back_as_it_was() -> None:
    spec, _ = toy()
    assert decode_spec(msgspec.msgpack.encode(spec)) == spec


@given(st.binary(max_size=200))
def test_any_other_bytes_are_one_sentence(data: bytes) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        decode_spec(data)


def test_deeply_nested_bytes_are_refused() -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        decode_spec(b"\x81\xa1x" + b"\x91" * 100_000)


def test_a_newer_spec_is_refused_by_its_format() -> None:
    spec, _ = toy(format=99)
    with pytest.raises(UsageError, match="format 99"):
        decode_spec(msgspec.msgpack.encode(spec))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"kind": "dream"}, "'dream' is not a kind of job"),
        ({"optimizer": Optimizer(kind="guess")}, "'guess' is not a optimizer"),
        ({"optimizer": Optimizer(schedule="lunar")}, "'lunar' is not a learning-rate schedule"),
        ({"parallel": "both"}, "'both' is not a parallel mode"),
        ({"parallel": "hybrid"}, "says nothing about its workers and shards"),
        (
            {"parallel": "hybrid", "data": DataParallel()},
            "segments = 1 with parallel = hybrid: .* over 2 nodes or more",
        ),
        ({"parallel": "data", "data": DataParallel(segments=2)}, "segments = 2 with parallel = data: .* say hybrid"),
        (
            {"parallel": "hybrid", "data": DataParallel("sync", backup=1, segments=0)},
            "backup:1 with parallel = hybrid: the nodes of a replica that is late",
        ),
        ({"parallel": "data"}, "says nothing about its workers and shards"),
        ({"data": DataParallel()}, "names workers and shards, but is not parallel = data"),
        ({"parallel": "data", "data": DataParallel(consistency="eventual")}, "no consistency 'eventual'"),
        ({"parallel": "data", "data": DataParallel(), "kind": "evaluate"}, "no gradients to push"),
        ({"parallel": "data", "data": DataParallel("sync", workers=4)}, "write a multiple of 4"),
        ({"schedule": "async"}, "schedule = 'async': write sync, or async:K"),
        ({"schedule": "async:65", "micro_batches": 1}, "from 1 to 64"),
        ({"schedule": "async:2", "micro_batches": 2}, "micro_batches = 2: leave that away or write 1"),
        ({"schedule": "async:2", "kind": "evaluate"}, "a job of kind evaluate is always sync"),
        ({"batch_size": 10, "micro_batches": 3}, "batch size 10 is not divisible by 3 micro-batches"),
        ({"micro_batches": 0}, "not divisible by 0"),
        ({"threads": 0}, "threads"),
        ({"epochs": 0}, "epochs"),
        ({"kind": "predict", "test": None}, "names no data"),
        ({"batch_size": 4096}, "96 training rows do not fill one batch of 4096"),
        ({"inputs": {"x": "x"}}, "input label of the model is fed by no column"),
    ],
)
def test_bad_settings_are_one_sentence_each(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        check(toy(**settings)[0])


def test_a_model_without_loss_or_outputs_has_nothing_to_do() -> None:
    spec, _ = toy()
    graph = msgspec.structs.replace(spec.graph, losses=())
    with pytest.raises(ModelError, match="no loss"):
        check(msgspec.structs.replace(spec, graph=graph))
    graph = msgspec.structs.replace(spec.graph, outputs={})
    with pytest.raises(ModelError, match="no outputs"):
        check(msgspec.structs.replace(spec, graph=graph, kind="predict"))


def test_a_text_that_is_gone_on_with_reads_no_data() -> None:
    spec = sampling_job(length=5)
    assert decode_spec(msgspec.msgpack.encode(spec)) == spec
    assert read_by_job(spec) == set()
    assert inputs_read(spec) == ["tokens"]
    assert blobs_read_by(msgspec.structs.replace(spec, inputs={}), plan_of(spec, [A]), 0) == {}
    with pytest.raises(UsageError, match="length = 0"):
        check(sampling_job(length=0))


def test_a_node_reads_the_columns_of_its_ops_only() -> None:
    spec, blobs = toy()
    plan = plan_of(spec, [A, B])
    first, second = (set(blobs_read_by(spec, plan, i)) for i in (0, 1))
    assert first | second == set(blobs) == read_by_job(spec)
    assert not first & second
    assert sum(blobs_read_by(spec, plan, 0).values()) == 120 * 6 * 4
    predicting = msgspec.structs.replace(spec, kind="predict")
    assert inputs_read(predicting) == ["x"]


def test_only_workers_of_a_data_parallel_job_read_data() -> None:
    spec, blobs = toy_of_data()
    plan = plan_of_data(spec, [A, B, C], workers=(0, 2), homes=(1, 2))
    assert [set(blobs_read_by(spec, plan, index)) for index in range(3)] == [set(blobs), set(), set(blobs)]
    assert held_by_one(spec, plan, C, set(blobs)) == {}
    alone = plan_of_data(spec, [A, B], workers=(0,), homes=(1,))
    assert held_by_one(spec, alone, B, set(blobs)) == {A: tuple(sorted(blobs))}


def test_what_only_one_node_will_hold_is_found_wherever_it_lies() -> None:
    spec, _ = toy(initial=(BlobId("9" * 64),))
    plan = plan_of(spec, [A, B])
    pixels, labels = (set(blobs_read_by(spec, plan, i)) for i in (0, 1))
    # The coordinator A has everything; B will fetch the labels, and all nodes the initial weights.
    assert held_by_one(spec, plan, A, set()) == {A: tuple(sorted(pixels))}
    assert held_by_one(spec, plan, C, set()) == {}
    # C resumes and has nothing: each column is with its reader alone.
    alone = held_by_one(spec, plan, C, pixels | labels)
    assert alone == {A: tuple(sorted(pixels)), B: tuple(sorted(labels))}
