"""What a server's phases become."""

from __future__ import annotations

from p2pnn.executor.serving_spans import ServingSpans
from p2pnn.job.spans import ALL_WORKERS, RING_BYTES, Kind, Span, of_push, read, unpack
from p2pnn.ps.messages import Worker
from p2pnn.ps.report import Phase
from p2pnn.types import NodeId

WORKER = Worker(NodeId("ab" * 32), 0)


def test_each_phase_begins_where_the_one_before_it_ended() -> None:
    memory, times = memoryview(bytearray(RING_BYTES + 64)), iter((2.0, 3.0, 5.0, 8.0))
    spans = ServingSpans(memory, {WORKER: 2}, lambda: next(times))
    spans.begins(1.0)
    spans.did(1, Phase.JUDGED, WORKER, 7, 40)
    spans.did(1, Phase.LOGGED, WORKER, 7, 40)
    spans.begins(4.0)
    spans.did(0, Phase.LOGGED, None, 0, 41)
    spans.did(0, Phase.APPLIED, None, 0, 41)
    assert unpack(read(memory[:RING_BYTES]).spans) == [
        Span(1.0, 2.0, 7, 40, Kind.JUDGE, of_push(1, 2)),
        Span(2.0, 3.0, 7, 40, Kind.LOG, of_push(1, 2)),
        Span(4.0, 5.0, -1, 41, Kind.LOG, of_push(0, ALL_WORKERS)),
        Span(5.0, 8.0, -1, 41, Kind.APPLY, of_push(0, ALL_WORKERS)),
    ]


def test_without_memory_nothing_is_kept() -> None:
    ServingSpans(None, {WORKER: 2}).did(1, Phase.APPLIED, WORKER, 7, 40)
