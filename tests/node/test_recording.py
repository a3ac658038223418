"""What a node records of a start, and how clocks are compared."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pnn.data.blobs import BlobStore
from p2pnn.job.spans import RING_BYTES, Kind, Ring, of_push, unpack
from p2pnn.node import recording as module
from p2pnn.node.recording import DRIFT, Offset, Recording
from tests.executor import models
from tests.executor.mesh import contiguous, spec_for
from tests.executor.pump import data_plan, hybrid, hybrid_plan
from tests.node.nodes import JOB, A, B, plan_of, toy


class Clock:
    """Ticks by one second whenever it is read."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> Recording:
    monkeypatch.setattr(module, "clock", Clock())
    spec, _ = toy()
    return Recording(JOB, 2, A, 1, spec, plan_of(spec, [A, B]))


def test_tensors_from_their_beginning_to_their_end(recording: Recording) -> None:
    recording.begins(0, 4)
    recording.begins(0, 5)
    recording.sent(1, 4, 100.5)
    recording.received(0, 5)
    recording.received(0, 9)  # of which no beginning was seen
    part = recording.part()
    assert [(s.start, s.end, s.micro_batch, s.kind, s.what) for s in unpack(part.moved)] == [
        (100.5, 103.0, 4, Kind.SEND, 1),
        (102.0, 104.0, 5, Kind.RECEIVE, 0),
    ]


def test_parts_of_pushes_from_their_beginning_to_their_end(recording: Recording) -> None:
    recording.push_begins(1, 2, 7, 0)
    recording.push_begins(1, 2, 7, 1)
    recording.push_received(1, 2, 7, 1)
    recording.push_received(1, 2, 8, 0)  # of which no beginning was seen
    recording.exchanged(Kind.SEND_VALUES, 1, 2, 7, 100.5)
    assert [(s.start, s.end, s.micro_batch, s.kind, s.what) for s in unpack(recording.part().moved)] == [
        (102.0, 103.0, 7, Kind.RECEIVE_PUSH, of_push(1, 2)),
        (100.5, 104.0, 7, Kind.SEND_VALUES, of_push(1, 2)),
    ]


def test_a_part_says_what_its_numbers_mean(recording: Recording) -> None:
    part = recording.part()
    assert (part.job, part.generation, part.index, part.name, part.nodes) == (JOB, 2, 1, "b", ("a", "b"))
    assert part.segments == ("one … relu_1", "two … argmax_1") or len(part.segments) == 2
    forward, backward = part.transfers
    assert (forward.source, forward.target, forward.backward) == (0, 1, False)
    assert (backward.source, backward.target, backward.backward) == (1, 0, True)
    assert forward.layer == backward.layer
    assert forward.nbytes == backward.nbytes == 8 * 5 * 4
    assert part.clock_error_s == -1.0


def test_the_executors_ring_outlives_its_memory(recording: Recording) -> None:
    memory = memoryview(bytearray(RING_BYTES))
    ring = Ring(memory)
    recording.watch(memory)
    recording.watch_server(memory)
    ring.add(1.0, 2.0, 0, 0, Kind.FORWARD, 0)
    ring.waits(2.0)
    assert len(unpack(recording.part().computed)) == 1
    recording.close()
    ring.add(2.0, 3.0, 0, 0, Kind.BACKWARD, 0)
    part = recording.part()
    assert len(unpack(part.computed)) == len(unpack(part.served)) == 1
    assert part.since == 2.0
    assert part.taken_s == recording.part().taken_s


def test_of_clocks() -> None:
    trip = Offset.of_trip(left=10.0, came=10.2, theirs=1000.0)
    assert trip.offset_s == pytest.approx(989.9)
    assert trip.error_s == pytest.approx(0.1)
    assert trip.error_at(10.2) == trip.error_s
    assert trip.error_at(20.2) == pytest.approx(0.1 + 10 * DRIFT)
    unknown, own = Offset(), Offset(0.0, 0.0, 5.0)
    assert unknown.error_at(1e6) == -1.0
    assert own.error_at(1e6) == 0.0
    quicker = Offset(989.95, 0.05, 12.0)
    assert unknown.better(trip, 10.2) is trip
    assert trip.better(unknown, 10.2) is trip
    assert trip.better(quicker, 12.0) is quicker
    assert quicker.better(trip, 12.0) is quicker
    late = Offset(989.9, 0.1, 5000.0)
    assert quicker.better(late, 5000.0) is late  # by now the old one has drifted more than a slow trip is wrong


@pytest.mark.parametrize(("there", "back"), [(0.0, 0.3), (0.1, 0.1), (0.25, 0.01)])
def test_the_truth_lies_within_the_error(there: float, back: float) -> None:
    """However a trip's time is shared by its two ways."""
    ahead = 123.0
    trip = Offset.of_trip(left=10.0, came=10.0 + there + back, theirs=10.0 + there + ahead)
    assert abs(trip.offset_s - ahead) <= trip.error_s + 1e-9


def test_where_workers_are_cut_it_names_who_speaks_to_each_shard(tmp_path: Path) -> None:
    """Two workers of two nodes each; of three shards one belongs to one segment and two to the other."""
    spec = hybrid(spec_for(models.scaled(models.dense()), BlobStore(tmp_path / "blobs")))
    plan = hybrid_plan(spec, contiguous(spec.graph, 2), 2, 3)
    part = Recording(JOB, 2, A, 0, spec, plan).part()
    assert part.workers == (0, 2)
    assert set(part.speakers) == {(0, 2), (1, 3)}
    assert len(part.speakers) == len(part.homes) == 3
    whole = data_plan(spec, 2, 3)
    assert Recording(JOB, 2, A, 0, spec, whole).part().speakers == ()
