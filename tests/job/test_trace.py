"""Parts of nodes as one trace: on one clock, in Chrome's format, and as shares of time."""

from __future__ import annotations

import itertools
import json
import math
from collections import defaultdict
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnn.errors import CheckpointError
from p2pnn.job.shares import summary
from p2pnn.job.spans import ALL_WORKERS, RECORD, SPANS_MAX, Kind, Span, of_push, shard_and_worker
from p2pnn.job.trace import PART_BYTES_MAX, NodePart, Passage, Trace, View, chrome, decode

NODES = ("a", "b")
TRANSFERS = (Passage("conv1", 4096, 0, 1, False), Passage("conv1", 4096, 1, 0, True))
SEGMENTS = ("conv1 … pool1", "fc1 … loss")


def packed(*spans: tuple[float, float, int, int, int, int]) -> bytes:
    return b"".join(RECORD.pack(*span) for span in spans)


def part(index: int, computed: bytes = b"", moved: bytes = b"", **changes: Any) -> NodePart:
    fields: dict[str, Any] = {
        "job": "toy-1", "generation": 1, "index": index, "name": NODES[index], "nodes": NODES, "segments": SEGMENTS,
        "transfers": TRANSFERS, "computed": computed, "moved": moved, "taken_s": 100.0, "clock_error_s": 0.0,
    }  # fmt: skip
    return NodePart(**(fields | changes))


FIRST = part(
    0,
    packed(
        (10.0, 11.0, 0, 0, Kind.FORWARD, 0),
        (11.0, 13.0, 0, -1, Kind.FOR_TENSOR, 1),
        (13.0, 14.0, 0, 0, Kind.BACKWARD, 0),
        (14.0, 15.0, -1, 0, Kind.UPDATE, -1),
    ),
    packed((11.0, 11.5, 0, -1, Kind.SEND, 0), (12.5, 13.0, 0, -1, Kind.RECEIVE, 1)),
)
SECOND = part(
    1,
    packed(
        (510.5, 511.5, 0, -1, Kind.FOR_TENSOR, 0),
        (511.5, 512.5, 0, 0, Kind.FORWARD, 1),
        (512.5, 514.5, -1, -1, Kind.FOR_ORDER, -1),
    ),
    packed((511.2, 511.5, 0, -1, Kind.RECEIVE, 0), (512.5, 512.9, 0, -1, Kind.SEND, 1)),
    clock_offset_s=-500.0,
    clock_error_s=0.0001,
    computed_lost=7,
)
TRACE = Trace("toy-1", 1, (FIRST, SECOND), {"c": "it is not connected"})


def rendered(trace: Trace) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(chrome(trace))
    validate(found)
    return found


def validate(found: dict[str, Any]) -> None:
    """The Trace Event Format, as far as it is used: types of fields per phase, rows without overlap, flows with two ends."""
    assert set(found) == {"traceEvents", "displayTimeUnit", "otherData"}
    assert found["displayTimeUnit"] in ("ms", "ns")
    rows: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    flows: dict[int, list[Any]] = defaultdict(list)
    named = set()
    for event in found["traceEvents"]:
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        assert isinstance(event["name"], str)
        assert isinstance(event["ts"], int | float)
        assert event["ts"] >= 0
        match event["ph"]:
            case "X":
                assert event["dur"] >= 0
                assert event["cat"] in ("compute", "wait", "serve", "send", "receive")
                assert isinstance(event["args"], dict)
                rows[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
            case "M":
                names = {"process_name", "thread_name", "process_labels", "process_sort_index"}
                assert event["name"] in names
                assert set(event["args"]) <= {"name", "labels", "sort_index"}
                if event["name"] == "thread_name":
                    named.add((event["pid"], event["tid"]))
            case "s" | "f":
                flows[event["id"]].append(event)
            case "i":
                assert event["s"] == "p"
            case other:
                pytest.fail(f"phase {other}")
    assert rows.keys() <= named
    for row in rows.values():
        row.sort()
        assert all(end <= start + 0.002 for (_, end), (start, _) in itertools.pairwise(row)), "spans overlap"
    for first, last in flows.values():
        assert (first["ph"], last["ph"], last["bp"]) == ("s", "f", "e")
        for end in (first, last):
            assert any(a <= end["ts"] <= b for a, b in rows[end["pid"], end["tid"]]), "an arrow without a slice"


def slices(found: dict[str, Any], pid: int, category: str) -> list[tuple[Any, ...]]:
    events = [e for e in found["traceEvents"] if e["ph"] == "X" and e["pid"] == pid and e["cat"] == category]
    return [(e["name"], e["ts"], e["dur"], e["args"]) for e in events]


def test_both_nodes_lie_on_the_coordinators_clock() -> None:
    found = rendered(TRACE)
    assert slices(found, 0, "compute") == [
        ("forward conv1 … pool1", 0, 1e6, {"micro-batch": 0, "step": 0}),
        ("backward conv1 … pool1", 3e6, 1e6, {"micro-batch": 0, "step": 0}),
        ("update", 4e6, 1e6, {"step": 0}),
    ]
    assert slices(found, 1, "compute") == [("forward fc1 … loss", 1.5e6, 1e6, {"micro-batch": 0, "step": 0})]
    assert slices(found, 0, "wait") == [("for gradient of conv1 from b", 1e6, 2e6, {"micro-batch": 0})]
    assert [name for name, *_ in slices(found, 1, "wait")] == ["for conv1 from a", "for the coordinator"]
    assert slices(found, 0, "send") == [("conv1", 1e6, 5e5, {"micro-batch": 0, "bytes": 4096})]
    assert slices(found, 0, "receive") == [("gradient of conv1", 2.5e6, 5e5, {"micro-batch": 0, "bytes": 4096})]
    assert slices(found, 1, "receive")[0][:2] == ("conv1", 1.2e6)


def test_names_labels_and_what_is_missing() -> None:
    found = rendered(TRACE)
    meta = [e for e in found["traceEvents"] if e["ph"] == "M"]
    assert [e["args"]["name"] for e in meta if e["name"] == "process_name"] == ["node a", "node b", "node c (no trace)"]
    threads = [e["args"]["name"] for e in meta if e["name"] == "thread_name" and e["pid"] == 0]
    assert threads == ["compute", "wait", "send to b", "receive from b"]
    labels = [e["args"]["labels"] for e in meta if e["name"] == "process_labels"]
    assert labels == ["clock ± 0 µs", "clock ± 100 µs, older spans are gone: 7 of work, 0 transfers"]
    [missing] = [e for e in found["traceEvents"] if e["ph"] == "i"]
    assert missing["name"] == "no trace: it is not connected"
    about = found["otherData"]
    assert about["missing"] == {"c": "it is not connected"}
    assert [node["older_spans_gone"] for node in about["nodes"]] == [0, 7]


def test_arrows_lead_from_sending_to_receiving() -> None:
    found = rendered(TRACE)
    arrows = [(e["ph"], e["pid"], e["id"]) for e in found["traceEvents"] if e["ph"] in "sf"]
    assert arrows == [("s", 0, 1), ("f", 1, 1), ("s", 1, 2), ("f", 0, 2)]
    alone = rendered(Trace("toy-1", 1, (FIRST,), {}))
    assert not [e for e in alone["traceEvents"] if e["ph"] in "sf"]


def test_what_is_sent_at_once_has_rows_of_its_own() -> None:
    moved = packed(*((float(n), n + 2.5, n, -1, Kind.SEND, 0) for n in range(6)))
    found = rendered(Trace("toy-1", 1, (part(0, moved=moved),), {}))
    meta = [e for e in found["traceEvents"] if e["name"] == "thread_name"]
    assert [e["args"]["name"] for e in meta][2:] == ["send to b", "send to b (2)", "send to b (3)"]


def test_a_wait_that_is_not_over_is_shown_and_spans_that_make_no_sense_are_not() -> None:
    nonsense = packed((5.0, 4.0, 0, 0, Kind.FORWARD, 0), (float("nan"), 4.0, 0, 0, Kind.FORWARD, 0))
    nonsense += packed((-math.inf, 4.0, 0, 0, Kind.FORWARD, 0), (1.0, math.inf, 0, 0, Kind.FORWARD, 0))
    unknown = packed((1.0, 2.0, 0, 0, 99, 0), (2.0, 3.0, 0, 0, Kind.FORWARD, 77))
    moved = packed((1.0, 2.0, 0, 0, Kind.SEND, 77))
    found = rendered(Trace("toy-1", 1, (part(0, nonsense + unknown, moved, since=3.0, taken_s=8.0),), {}))
    assert [name for name, *_ in slices(found, 0, "compute")] == ["kind 99 conv1 … pool1", "forward"]
    assert slices(found, 0, "wait") == [("not over when this node's part was taken", 2e6, 5e6, {})]
    assert slices(found, 0, "send") == []


def test_nothing_recorded_is_a_trace_too() -> None:
    rendered(Trace("toy-1", 1, (part(0),), {}))
    rendered(Trace("toy-1", 1, (), {"a": "gone"}))


SERVER = part(
    0,
    packed((1.0, 2.0, -1, -1, Kind.FOR_VALUES, 0), (2.0, 3.0, -1, -1, Kind.FOR_PUSHED, -1), (3.0, 4.0, 0, 0, Kind.FORWARD, 0)),
    packed(
        (1.0, 2.0, 7, -1, Kind.RECEIVE_PUSH, of_push(0, 1)),
        (1.5, 2.5, 6, -1, Kind.RECEIVE_PUSH, of_push(0, 0)),
        (5.0, 6.0, 7, -1, Kind.SEND_VALUES, of_push(0, 1)),
        (2.0, 3.0, 6, -1, Kind.SEND_PUSH, of_push(1, 0)),
        (2.0, 3.0, 6, -1, Kind.RECEIVE_VALUES, of_push(2, 0)),  # there is no shard 2
        (2.0, 3.0, 6, -1, Kind.RECEIVE_PUSH, of_push(1, 9)),  # nor a worker 9
    ),
    served=packed(
        (2.0, 3.0, 7, 4, Kind.JUDGE, of_push(0, 1)),
        (3.0, 3.5, 7, 4, Kind.LOG, of_push(0, 1)),
        (3.5, 5.0, -1, 4, Kind.APPLY, of_push(0, ALL_WORKERS)),
        (5.0, 6.0, -1, 4, Kind.APPLY, of_push(3, 1)),
    ),
    homes=(0, 1),
    workers=(0, 1),
)  # fmt: skip


def test_what_a_server_does_has_a_lane_of_its_own() -> None:
    found = rendered(Trace("toy-1", 1, (SERVER,), {}))
    assert slices(found, 0, "serve") == [
        ("judge push 7 of worker 1 to shard 0", 1e6, 1e6, {"push": 7, "version": 4}),
        ("log push 7 of worker 1 to shard 0", 2e6, 5e5, {"push": 7, "version": 4}),
        ("apply a round of pushes to shard 0", 2.5e6, 1.5e6, {"version": 4}),
    ]
    threads = [e["args"]["name"] for e in found["traceEvents"] if e["name"] == "thread_name"]
    assert threads == ["compute", "wait", "serve", "receive from b", "receive from a", "send to b"]
    assert sorted(slices(found, 0, "receive")) == [
        ("push 6 of worker 0 to shard 0", 5e5, 1e6, {"push": 6}),
        ("push 7 of worker 1 to shard 0", 0, 1e6, {"push": 7}),
    ]
    assert [name for name, *_ in slices(found, 0, "send")] == [
        "push 6 of worker 0 to shard 1", "parameters of shard 0 for worker 1",
    ]  # fmt: skip
    waits = [name for name, *_ in slices(found, 0, "wait")]
    assert waits == ["for shard 0 of the parameters, on a", "until a push had left"]


def test_of_a_worker_that_is_cut_the_node_is_named_that_speaks_to_the_shard() -> None:
    """Two workers: the first nodes of both speak to shard 0, the second ones to shard 1."""
    cut = msgspec.structs.replace(SERVER, nodes=("a", "b", "c", "d"), workers=(0, 2), speakers=((0, 2), (1, 3)))
    assert decode(msgspec.msgpack.encode(cut), "it") == cut
    view = View(cut)
    pushes = {shard_and_worker(span.what): view.peer(span) for span in view.moving if span.kind == Kind.RECEIVE_PUSH}
    assert pushes == {(0, 0): "a", (0, 1): "c"}
    pushed = packed(
        (1.0, 2.0, 7, -1, Kind.RECEIVE_PUSH, of_push(1, 1)), (1.0, 2.0, 7, -1, Kind.SEND_PUSH, of_push(1, 1))
    )
    view = View(msgspec.structs.replace(cut, moved=pushed))
    assert {view.peer(span) for span in view.moving} == {"d", "b"}


stretch = st.tuples(
    st.floats(0, 100), st.floats(0, 5), st.integers(-1, 3), st.sampled_from(list(Kind)), st.integers(-1, 3)
)


@given(computed=st.lists(stretch, max_size=20), moved=st.lists(stretch, max_size=20), offset=st.floats(-1e6, 1e6))
def test_any_spans_make_a_valid_trace(computed: list[Any], moved: list[Any], offset: float) -> None:
    now, spans = 0.0, []
    for start, length, m, kind, what in computed:  # an executor's do not overlap
        now += start
        spans.append(Span(now, now + length, m, 0, kind, what))
        now += length
    flying = [
        Span(a, a + length, m, -1, Kind.SEND if kind % 2 else Kind.RECEIVE, what) for a, length, m, kind, what in moved
    ]
    trace = Trace("toy-1", 1, (part(0, packed(*spans), packed(*flying), clock_offset_s=offset),), {})
    if len({(s.what, s.micro_batch, s.kind) for s in flying}) == len(flying):
        rendered(trace)
    for share in summary(trace):
        assert share.computing <= 1 + 1e-6
        assert share.overlap is None or share.overlap <= 1 + 1e-6


def test_parts_travel_and_are_checked() -> None:
    data = msgspec.msgpack.encode(SECOND)
    assert decode(data, "it") == SECOND
    assert data.startswith((b"\x8f\xa3job", b"\xde\x00\x15\xa3job"))  # leftovers of parcels are told by their first key
    for wrong, sentence in (
        (b"\xc1", "not a readable trace"),
        (bytes(PART_BYTES_MAX + 1), "has at most"),
        (msgspec.msgpack.encode(msgspec.structs.replace(SECOND, format=9)), "reads up to 1"),
        (msgspec.msgpack.encode(msgspec.structs.replace(SECOND, computed=b"x")), "is damaged"),
        (
            msgspec.msgpack.encode(msgspec.structs.replace(SECOND, moved=bytes((SPANS_MAX + 1) * RECORD.size))),
            "is damaged",
        ),
        (msgspec.msgpack.encode(msgspec.structs.replace(SECOND, nodes=("a",))), "is damaged"),
        (msgspec.msgpack.encode(msgspec.structs.replace(SECOND, served=b"x")), "is damaged"),
        (msgspec.msgpack.encode(msgspec.structs.replace(SECOND, homes=(2,))), "is damaged"),
        (msgspec.msgpack.encode(msgspec.structs.replace(SERVER, speakers=((0, 2), (1, 1)))), "is damaged"),
        (msgspec.msgpack.encode(msgspec.structs.replace(SERVER, speakers=((0, 1), (1,)))), "is damaged"),
        (msgspec.msgpack.encode(msgspec.structs.replace(SERVER, speakers=((0, 1),))), "is damaged"),
        (msgspec.msgpack.encode(msgspec.structs.replace(SECOND, index=-1)), "is damaged"),
        (msgspec.msgpack.encode(msgspec.structs.replace(SECOND, clock_offset_s=math.inf)), "is damaged"),
        (msgspec.msgpack.encode(msgspec.structs.replace(SECOND, taken_s=math.nan)), "is damaged"),
    ):
        with pytest.raises(CheckpointError, match=sentence):
            decode(wrong, "it")
