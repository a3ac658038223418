"""What an executor writes down of its actions and its waits."""

from __future__ import annotations

from typing import Any

import pytest

from p2pnn.executor import commands
from p2pnn.executor.spans import Spans
from p2pnn.job import script
from p2pnn.job.spans import RING_BYTES, Kind, Span, read, unpack
from p2pnn.train import machine as m
from p2pnn.train.schedule import Task

TASK = Task(1, 5, (0, 1), 0, 0, ())
TRAIN = m.Stage("train", 8, 12, 2, 4)


@pytest.fixture
def memory() -> bytearray:
    return bytearray(RING_BYTES)


@pytest.mark.parametrize(
    ("action", "stage", "expected"),
    [
        (m.Forward(TASK, 9), TRAIN, (9, 2, Kind.FORWARD, 5)),
        (m.Backward(TASK, 9), TRAIN, (9, 2, Kind.BACKWARD, 5)),
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


def test_without_a_reader_nothing_breaks() -> None:
    spans = Spans(None)
    for at in range(3):
        spans.waits(float(at))
        spans.did(m.Forward(TASK, at), TRAIN, 1.0, 2.0)
