"""What an executor writes down of its actions and its waits."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from p2pnn.data.blobs import BlobStore
from p2pnn.executor import commands
from p2pnn.executor.spans import Spans
from p2pnn.job import script
from p2pnn.job.spans import RING_BYTES, SPANS_MAX, WAITS, Kind, Span, read, unpack
from p2pnn.train import machine as m
from p2pnn.train.schedule import Task
from tests.executor import models
from tests.executor.mesh import Mesh, interleaved, spec_for

TASK = Task(1, 5, (0, 1), 0, 0, ())
TRAIN = m.Stage("train", 8, 12, 2, 4)


@pytest.fixture
def memory() -> bytearray:
    return bytearray(RING_BYTES)


def test_what_lies_behind_the_ring_is_never_written_to() -> None:
    """Snapshots, or the landing places of values: a long run must not write its spans over them."""
    memory = bytearray(RING_BYTES + 4096)
    spans = Spans(memoryview(memory))
    for number in range(SPANS_MAX + 100):
        spans.did(m.Forward(TASK, number), TRAIN, 1.0, 2.0)
    assert not any(memory[RING_BYTES:])
    found = read(memoryview(memory)[:RING_BYTES])
    assert found.lost == 101
    assert unpack(found.spans)[-1].micro_batch == SPANS_MAX + 99


@pytest.mark.parametrize(
    ("action", "stage", "expected"),
    [
        (m.Forward(TASK, 9), TRAIN, (9, 2, Kind.FORWARD, 5)),
        (m.Backward(TASK, 11), TRAIN, (11, 2, Kind.BACKWARD, 5)),
        (m.Forward(TASK, 12), TRAIN, (12, 3, Kind.FORWARD, 5)),
        (m.Update(2, None), TRAIN, (-1, 2, Kind.UPDATE, -1)),
        (m.Squares(2), TRAIN, (-1, 2, Kind.SQUARES, -1)),
        (m.Forward(TASK, 3), m.Stage("evaluate", 0, 4), (3, -1, Kind.EVALUATE, 5)),
        (m.Forward(TASK, 3), m.Stage("predict", 0, 4), (3, -1, Kind.PREDICT, 5)),
        (m.Answer(script.Checkpoint(1)), m.Stage("train", 0, 0), (-1, -1, Kind.CHECKPOINT, -1)),
        (m.Answer(script.Restore(1, ())), m.Stage("evaluate", 0, 0), (-1, -1, Kind.RESTORE, -1)),
        (m.Answer(script.Train(1, 4)), m.Stage("evaluate", 0, 0), (-1, -1, Kind.ANSWER, -1)),
    ],
)
def test_actions(memory: bytearray, action: m.Action, stage: m.Stage, expected: tuple[int, ...]) -> None:
    Spans(memoryview(memory)).did(action, stage, 1.0, 1.5)
    assert unpack(read(memory).spans) == [Span(1.0, 1.5, *expected)]


ARRIVED, SENT, RETIRED = commands.Arrived(3, 9), commands.Sent(4, 8), commands.PeerRetired(1, 9)


@pytest.mark.parametrize(
    ("batches", "expected"),
    [
        ([[ARRIVED]], (9, -1, Kind.FOR_TENSOR, 3)),
        ([[SENT]], (8, -1, Kind.FOR_SENT, 4)),
        ([[ARRIVED, SENT]], (9, -1, Kind.FOR_TENSOR, 3)),
        ([[ARRIVED], [SENT]], (8, -1, Kind.FOR_SENT, 4)),
        ([[SENT], [RETIRED]], (8, -1, Kind.FOR_SENT, 4)),
        ([[commands.PeerSquares(1, 0, [])]], (-1, -1, Kind.FOR_SQUARES, 1)),
        ([[ARRIVED], [script.Train(1, 9)]], (-1, -1, Kind.FOR_ORDER, -1)),
    ],
)
def test_a_wait_is_put_down_to_the_news_that_ended_it(memory: bytearray, batches: list[Any], expected: Any) -> None:
    spans = Spans(memoryview(memory))
    for at, batch in enumerate(batches):
        spans.waits(1.0 + at)
        assert read(memory).since == 1.0
        spans.news(batch)
    spans.did(m.Update(0, None), TRAIN, 5.0, 6.0)
    spans.did(m.Update(1, None), TRAIN, 6.0, 7.0)
    wait, *work = unpack(read(memory).spans)
    assert wait == Span(1.0, 5.0, *expected)
    assert [span.kind for span in work] == [Kind.UPDATE, Kind.UPDATE]
    assert read(memory).since == 0.0


@pytest.mark.parametrize("schedule", ["sync", "async:2"])
def test_executors_account_for_their_time(tmp_path: Path, schedule: str) -> None:
    """Spans do not overlap, each pass of each micro-batch is there once, and computing sums up to what progress reports."""
    blobs = BlobStore(tmp_path / "blobs")
    graph = models.scaled(models.convolutional())
    more = {"schedule": schedule, "micro_batches": 1} if schedule != "sync" else {}
    spec = spec_for(graph, blobs, epochs=4, **more)
    with Mesh(spec, interleaved(graph, 2), blobs, nodes=2) as mesh:
        mesh.train(8)
        mesh.evaluate("test")
        mesh.checkpoint()
        assert mesh.finish() == [0, 0]
        for node in range(2):
            spans = mesh.spans(node)
            assert all(a.end <= b.start for a, b in itertools.pairwise(spans))
            passes = Counter((s.kind, s.what, s.micro_batch, s.step) for s in spans if s.kind in (1, 2))
            assert set(passes.values()) == {1}
            assert {step for *_, step in passes} == set(range(8))
            assert [s.step for s in spans if s.kind == Kind.UPDATE] == list(range(8))
            assert {Kind.EVALUATE, Kind.CHECKPOINT} <= {s.kind for s in spans}
            training = [s for s in spans if s.kind in (Kind.FORWARD, Kind.BACKWARD, Kind.UPDATE)]
            reported = sum(report.compute_s for report in mesh.progress[node])
            assert sum(s.end - s.start for s in training) == pytest.approx(reported, rel=0.05)
            waits = [s for s in spans if s.kind in WAITS]
            assert {s.what for s in waits if s.kind == Kind.FOR_TENSOR} <= {
                t.index for t in mesh.transfers if t.target == node
            }
            assert any(s.kind == Kind.FOR_TENSOR for s in waits)


def test_without_a_reader_nothing_breaks() -> None:
    spans = Spans(None)
    for at in range(3):
        spans.waits(float(at))
        spans.did(m.Forward(TASK, at), TRAIN, 1.0, 2.0)
