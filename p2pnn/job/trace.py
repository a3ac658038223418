"""A run's trace: the parts that its nodes give, on one clock, and what they show as Chrome trace events (as a summary: `shares`).

Each node's times are of its own monotonic clock. A part says how far that is from the coordinator's (`clock_offset_s`, the
midpoint of the quickest of several round trips; it errs by half of that trip at most), so all parts go onto one axis.

The events follow Chrome's Trace Event Format, which chrome://tracing and Perfetto read: a process per node (`pid`: its
index in the plan), a row (`tid`) for computing, one for waiting, one for serving shards of the parameters, and one or more per
peer and direction, because spans of one row must not overlap. An arrow leads from a tensor's sending to its receiving.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec

from p2pnn.errors import CheckpointError
from p2pnn.job.spans import (
    ALL_WORKERS,
    PUSHES,
    RECORD,
    SENDS,
    SPANS_MAX,
    WAITS,
    Kind,
    Span,
    shard_and_worker,
    unpack,
)

FORMAT: Final = 1
PART_BYTES_MAX: Final = 4 << 20
"""A node's part has three rings of 640 KiB and the names of its segments and transfers."""

COMPUTE, WAIT, SERVE, FIRST_LANE = 1, 2, 3, 4
_WORDS: Final = {
    Kind.FORWARD: "forward", Kind.BACKWARD: "backward", Kind.UPDATE: "update", Kind.SQUARES: "squares",
    Kind.EVALUATE: "evaluate", Kind.PREDICT: "predict", Kind.CHECKPOINT: "checkpoint", Kind.RESTORE: "restore",
    Kind.ANSWER: "answer", Kind.JUDGE: "judge", Kind.LOG: "log", Kind.APPLY: "apply",
}  # fmt: skip


class Passage(msgspec.Struct, frozen=True, array_like=True):
    """A transfer for people: the layer whose output crosses, its bytes, from and to which node's index.

    backward: the gradient for that output.
    """

    layer: str
    nbytes: int
    source: int
    target: int
    backward: bool


class NodePart(msgspec.Struct, frozen=True):
    """What one node recorded of one start of a job. job comes first: leftovers of parcels are told by it.

    computed, moved: records of `job.spans`, the executor's and the daemon's; *_lost: how many older ones are gone.
    since: on the node's clock, when a wait began that was not over, or 0.0. taken_s: when the part was taken. served: records of
    the node's server, where it has shards of the parameters. homes, workers: the node's index of each shard and each worker.
    speakers: where workers are cut over nodes, per shard, each worker's node that speaks to it.
    clock_error_s: how far clock_offset_s may be wrong; −1.0 where the coordinator's clock was never heard.
    """

    job: str
    generation: int
    index: int
    name: str
    nodes: tuple[str, ...]
    segments: tuple[str, ...]
    transfers: tuple[Passage, ...]
    computed: bytes
    moved: bytes
    computed_lost: int = 0
    moved_lost: int = 0
    since: float = 0.0
    taken_s: float = 0.0
    clock_offset_s: float = 0.0
    clock_error_s: float = -1.0
    format: int = FORMAT
    served: bytes = b""
    served_lost: int = 0
    homes: tuple[int, ...] = ()
    workers: tuple[int, ...] = ()
    speakers: tuple[tuple[int, ...], ...] = ()


class Trace(msgspec.Struct, frozen=True):
    """A job's parts, and why others are missing: node's name → one sentence."""

    job: str
    generation: int
    parts: tuple[NodePart, ...]
    missing: dict[str, str]


def decode(data: bytes, source: str) -> NodePart:
    """Read a part. source names the file or peer; CheckpointError where it is damaged, too large or newer than this program."""
    if len(data) > PART_BYTES_MAX:
        raise CheckpointError(f"{source} has {len(data):,} bytes; a trace has at most {PART_BYTES_MAX:,}")
    try:
        part = msgspec.msgpack.decode(data, type=NodePart)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise CheckpointError(f"{source} is not a readable trace ({error})") from error
    check(part, source)
    return part


def check(part: NodePart, source: str) -> None:
    """Raises CheckpointError where a part would not be understood, or names what it does not describe."""
    if part.format > FORMAT:
        raise CheckpointError(f"{source} has format {part.format}; this p2pnn reads up to {FORMAT}: use a newer p2pnn")
    times = (part.since, part.taken_s, part.clock_offset_s, part.clock_error_s)
    whole = all(map(math.isfinite, times)) and all(
        len(spans) % RECORD.size == 0 and len(spans) <= SPANS_MAX * RECORD.size
        for spans in (part.computed, part.moved, part.served)
    )
    ends = {end for passage in part.transfers for end in (passage.source, passage.target)} | {part.index}
    ends |= {*part.homes, *part.workers, *(end for row in part.speakers for end in row)}
    whole &= not part.speakers or [len(part.workers)] * len(part.homes) == [*map(len, part.speakers)]
    if not whole or not all(0 <= end < len(part.nodes) for end in ends):
        raise CheckpointError(f"{source} is damaged: its spans or its nodes do not fit each other")


# --- on one clock


class View:
    """One part with its times on the coordinator's clock. computing, waiting, serving, moving: in order of their start."""

    def __init__(self, part: NodePart) -> None:
        self.part = part
        self.name = part.name
        computed = list(_mapped(part, part.computed))
        self.waiting = [span for span in computed if span.kind in WAITS]
        self.computing = [span for span in computed if span.kind not in WAITS]
        self.serving = [span for span in _mapped(part, part.served) if self._of_shard(span) is not None]
        self.moving = sorted(span for span in _mapped(part, part.moved) if self._is_known(span))
        if 0.0 < part.since < part.taken_s:
            offset = part.clock_offset_s
            self.open_wait: Span | None = Span(part.since + offset, part.taken_s + offset, -1, -1, 0, -1)
        else:
            self.open_wait = None

    def _is_known(self, span: Span) -> bool:
        if span.kind in PUSHES:
            found = self._of_shard(span)
            return found is not None and found[1] != ALL_WORKERS
        return 0 <= span.what < len(self.part.transfers)

    def _of_shard(self, span: Span) -> tuple[int, int] | None:
        """The shard and the worker that a span is about; None where it names none."""
        shard, worker = shard_and_worker(span.what)
        known = 0 <= shard < len(self.part.homes) and (worker < len(self.part.workers) or worker == ALL_WORKERS)
        return (shard, worker) if known else None

    def nbytes(self, span: Span) -> int | None:
        """Of a tensor that was sent or received."""
        return None if span.kind in PUSHES else self.part.transfers[span.what].nbytes

    def peer(self, span: Span) -> str:
        """The other end of what was sent or received."""
        if span.kind in PUSHES:
            shard, worker = shard_and_worker(span.what)
            of_worker = span.kind in (Kind.SEND_PUSH, Kind.RECEIVE_VALUES)
            workers = self.part.speakers[shard] if self.part.speakers else self.part.workers
            return self.part.nodes[self.part.homes[shard] if of_worker else workers[worker]]
        passage = self.part.transfers[span.what]
        return self.part.nodes[passage.target if span.kind == Kind.SEND else passage.source]

    def label(self, span: Span) -> str:
        """What a span was, for a person."""
        part = self.part
        match span.kind:
            case Kind.FOR_ORDER:
                return "for the coordinator"
            case Kind.FOR_VALUES if 0 <= span.what < len(part.homes):
                return f"for shard {span.what} of the parameters, on {part.nodes[part.homes[span.what]]}"
            case Kind.FOR_PUSHED:
                return "until a push had left"
            case Kind.JUDGE | Kind.LOG | Kind.APPLY | Kind.SEND_PUSH | Kind.RECEIVE_PUSH:
                return self._push(span)
            case Kind.SEND_VALUES | Kind.RECEIVE_VALUES:
                shard, worker = shard_and_worker(span.what)
                return f"parameters of shard {shard} for worker {worker}"
            case Kind.FOR_SQUARES:
                return f"for squares from {part.nodes[span.what] if 0 <= span.what < len(part.nodes) else '?'}"
            case Kind.FOR_TENSOR | Kind.FOR_SENT | Kind.SEND | Kind.RECEIVE if 0 <= span.what < len(part.transfers):
                passage = part.transfers[span.what]
                tensor = f"gradient of {passage.layer}" if passage.backward else passage.layer
                if span.kind == Kind.FOR_TENSOR:
                    return f"for {tensor} from {part.nodes[passage.source]}"
                return f"until {tensor} had left" if span.kind == Kind.FOR_SENT else tensor
        word = _WORDS.get(Kind(span.kind), "") if span.kind in _WORDS else f"kind {span.kind}"
        return f"{word} {part.segments[span.what]}" if 0 <= span.what < len(part.segments) else word

    def _push(self, span: Span) -> str:
        shard, worker = shard_and_worker(span.what)
        word = f"{_WORDS[Kind(span.kind)]} " if span.kind in _WORDS else ""
        if worker == ALL_WORKERS:
            return f"{word}a round of pushes to shard {shard}"
        return f"{word}push {span.micro_batch} of worker {worker} to shard {shard}"


def _mapped(part: NodePart, spans: bytes) -> Iterator[Span]:
    for span in unpack(spans):
        if -math.inf < span.start <= span.end < math.inf:  # False also for what is no number
            yield span._replace(start=span.start + part.clock_offset_s, end=span.end + part.clock_offset_s)


# --- Chrome trace events


def chrome(trace: Trace) -> bytes:
    """The trace as a JSON object of the Trace Event Format; times in microseconds from the first span."""
    views = [View(part) for part in trace.parts]
    all_spans = (span for v in views for span in (*v.computing, *v.waiting, *v.serving, *v.moving))
    begin = min((span.start for span in all_spans), default=0.0)
    events: list[dict[str, Any]] = []
    ends: dict[tuple[int, int], dict[int, dict[str, Any]]] = {}  # (transfer, micro-batch) → its Kind → event
    for view in views:
        events += _rows(view, begin, ends)
    events += _arrows(ends.values())
    for number, (name, why) in enumerate(trace.missing.items()):
        pid = 10_000 + number
        events += [_named("process_name", pid, 0, f"node {name} (no trace)"),
                   {"name": f"no trace: {why}", "ph": "i", "s": "p", "ts": 0, "pid": pid, "tid": 0}]  # fmt: skip
    about = {
        "job": trace.job,
        "start": trace.generation,
        "clock": "the coordinator's monotonic clock",
        "nodes": [_about(view.part) for view in views],
        "missing": trace.missing,
    }
    return msgspec.json.encode({"traceEvents": events, "displayTimeUnit": "ms", "otherData": about})


def _about(part: NodePart) -> dict[str, Any]:
    return {
        "name": part.name,
        "clock_error_us": round(part.clock_error_s * 1e6, 1) if part.clock_error_s >= 0 else None,
        "older_spans_gone": part.computed_lost,
        "older_transfers_gone": part.moved_lost,
        "older_pushes_gone": part.served_lost,
    }


def _rows(view: View, begin: float, ends: dict[tuple[int, int], dict[int, dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    pid, part = view.part.index, view.part
    yield _named("process_name", pid, 0, f"node {part.name}")
    yield {"name": "process_sort_index", "ph": "M", "ts": 0, "pid": pid, "tid": 0, "args": {"sort_index": pid}}
    notes = ["clock unknown" if part.clock_error_s < 0 else f"clock ± {part.clock_error_s * 1e6:.0f} µs"]
    if part.computed_lost or part.moved_lost or part.served_lost:
        notes.append(
            f"older spans are gone: {part.computed_lost + part.served_lost:,} of work, {part.moved_lost:,} transfers"
        )
    yield {"name": "process_labels", "ph": "M", "ts": 0, "pid": pid, "tid": 0, "args": {"labels": ", ".join(notes)}}
    yield _named("thread_name", pid, COMPUTE, "compute")
    yield _named("thread_name", pid, WAIT, "wait")
    for span in view.computing:
        yield _event(view, span, begin, COMPUTE, "compute")
    for span in view.waiting:
        yield _event(view, span, begin, WAIT, "wait")
    if view.serving:
        yield _named("thread_name", pid, SERVE, "serve")
    for span in view.serving:
        yield _event(view, span, begin, SERVE, "serve")
    if view.open_wait is not None:
        yield _event(view, view.open_wait, begin, WAIT, "wait") | {"name": "not over when this node's part was taken"}
    yield from _lanes(view, begin, ends)


def _lanes(
    view: View, begin: float, ends: dict[tuple[int, int], dict[int, dict[str, Any]]]
) -> Iterator[dict[str, Any]]:
    """Rows of what was sent and received; `ends` is added to."""
    pid = view.part.index
    lanes: dict[str, list[float]] = {}  # row → end of the last span of each of its lanes
    tids: dict[tuple[str, int], int] = {}
    for span in view.moving:
        category = "send" if span.kind in SENDS else "receive"
        row = f"{category} {'to' if category == 'send' else 'from'} {view.peer(span)}"
        free = lanes.setdefault(row, [])
        lane = next((n for n, end in enumerate(free) if end <= span.start), len(free))
        free[lane : lane + 1] = [span.end]
        if (row, lane) not in tids:
            tids[row, lane] = FIRST_LANE + len(tids)
            yield _named("thread_name", pid, tids[row, lane], f"{row} ({lane + 1})" if lane else row)
        event = _event(view, span, begin, tids[row, lane], category)
        if (nbytes := view.nbytes(span)) is not None:
            event["args"]["bytes"] = nbytes
            ends.setdefault((span.what, span.micro_batch), {})[span.kind] = event
        yield event


def _event(view: View, span: Span, begin: float, tid: int, category: str) -> dict[str, Any]:
    args: dict[str, Any] = {}
    about_push = span.kind in PUSHES or category == "serve"
    if span.micro_batch >= 0:
        args["push" if about_push else "micro-batch"] = span.micro_batch
    if span.step >= 0:
        args["version" if about_push else "step"] = span.step
    ts, end = _us(span.start - begin), _us(span.end - begin)
    return {"name": view.label(span), "cat": category, "ph": "X", "ts": ts, "dur": round(end - ts, 3),
            "pid": view.part.index, "tid": tid, "args": args}  # fmt: skip


def _arrows(tensors: Iterable[Mapping[int, Mapping[str, Any]]]) -> Iterator[dict[str, Any]]:
    """From each tensor's sending to its receiving, where both are known."""
    for number, found in enumerate(tensors, 1):
        source, target = found.get(Kind.SEND), found.get(Kind.RECEIVE)
        if source is not None and target is not None:
            common = {"name": "tensor", "cat": "tensor", "id": number}
            yield common | {"ph": "s", "ts": source["ts"], "pid": source["pid"], "tid": source["tid"]}
            inside = round(target["ts"] + target["dur"] / 2, 3)  # a slice has its end no more
            yield common | {"ph": "f", "bp": "e", "ts": inside, "pid": target["pid"], "tid": target["tid"]}


def _named(kind: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "ts": 0, "pid": pid, "tid": tid, "args": {"name": name}}


def _us(seconds: float) -> float:
    return round(seconds * 1e6, 3)
