"""Where each node's time went in a run, from its trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from p2pnn.job.spans import SENDS, Span
from p2pnn.job.trace import Trace, View


class Share(NamedTuple):
    """One node within the window: shares of its time. overlap: of the time with a tensor on its way here, that it computed.

    What is left of computing and waiting is neither: messages to the daemon, and time that the system gave to others. serving: by
    a process of its own, beside it; None where the node has no shards of the parameters. computes: it has a part of the model.

    on: what it waited for longest, and the share of that. window_s: from the first to the last span of computing on any
    node, as far back as all nodes remember.
    """

    name: str
    computing: float
    waiting: float
    on: str
    on_share: float
    sending: float
    receiving: float
    overlap: float | None
    window_s: float
    lost: int
    serving: float | None = None
    computes: bool = True


def summary(trace: Trace) -> list[Share]:
    """Where each node's time went."""
    views = [View(part) for part in trace.parts]
    busy = [view for view in views if view.computing]
    if not busy:
        return []
    begin = min(view.computing[0].start for view in busy)
    remembered = [view.computing[0].start for view in busy if view.part.computed_lost]
    remembered += [view.moving[0].start for view in views if view.part.moved_lost and view.moving]
    remembered += [view.serving[0].start for view in views if view.part.served_lost and view.serving]
    begin = max([begin, *remembered])
    end = max(view.computing[-1].end for view in busy)
    return [_share(view, begin, end) for view in views] if end > begin else []


def _share(view: View, begin: float, end: float) -> Share:
    window = end - begin
    computing = _union(view.computing, begin, end)
    waited = [(view.label(span), span) for span in view.waiting]
    if view.open_wait is not None:
        waited.append(("for what had not come when its part was taken", view.open_wait))
    waits: dict[str, float] = {}
    for what, span in waited:
        waits[what] = waits.get(what, 0.0) + max(0.0, min(span.end, end) - max(span.start, begin))
    on, most = max(waits.items(), key=lambda found: found[1], default=("", 0.0))
    moving = _union(view.moving, begin, end)
    moved = _length(moving)
    return Share(
        view.name,
        _length(computing) / window,
        sum(waits.values()) / window,
        on,
        most / window,
        _length(_union([s for s in view.moving if s.kind in SENDS], begin, end)) / window,
        _length(_union([s for s in view.moving if s.kind not in SENDS], begin, end)) / window,
        _common(moving, computing) / moved if moved else None,
        window,
        view.part.computed_lost + view.part.moved_lost + view.part.served_lost,
        _length(_union(view.serving, begin, end)) / window if view.serving else None,
        bool(view.computing),
    )


def _union(spans: Sequence[Span], begin: float, end: float) -> list[tuple[float, float]]:
    """The time within [begin, end] that at least one span covers, as stretches in order. spans: in order of start."""
    found: list[tuple[float, float]] = []
    for span in spans:
        start, stop = max(span.start, begin), min(span.end, end)
        if start >= stop:
            continue
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(stop, found[-1][1])
        else:
            found.append((start, stop))
    return found


def _length(stretches: Sequence[tuple[float, float]]) -> float:
    return sum(stop - start for start, stop in stretches)


def _common(a: Sequence[tuple[float, float]], b: Sequence[tuple[float, float]]) -> float:
    """The time that two lists of stretches share."""
    total, i, j = 0.0, 0, 0
    while i < len(a) and j < len(b):
        total += max(0.0, min(a[i][1], b[j][1]) - max(a[i][0], b[j][0]))
        if a[i][1] < b[j][1]:
            i += 1
        else:
            j += 1
    return total
