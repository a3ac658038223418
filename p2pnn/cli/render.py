"""From the daemon's records to the lines that a person reads. Pure: text in, text out, no terminal, no clock.

Every number has its unit, and a number that nobody measured is not printed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from textwrap import wrap
from typing import Any, Final

from p2pnn.ps.histogram import Histogram

BAR_CELLS: Final = 30
BAR_CELLS_MIN: Final = 6
LABEL_CELLS: Final = 13
_NOT_METRICS: Final = (
    "number",
    "time",
    "kind",
    "epoch",
    "epochs",
    "step",
    "steps",
    "samples_per_s",
    "rate",
    "trained_again",
    "never_trained",
)


def label(name: str, text: str) -> str:
    """`Plan         text`: the left column of the first minute."""
    return f"{name:<{LABEL_CELLS}}{text}"


def label_lines(name: str, text: str, width: int | None) -> list[str]:
    """The same over as many lines as it takes; None for one."""
    if width is None or len(text) + LABEL_CELLS <= width:
        return [label(name, text)]
    found = wrap(text, max(20, width - LABEL_CELLS), break_long_words=False, break_on_hyphens=False)
    return [label("" if number else name, line) for number, line in enumerate(found)]


def count(number: float) -> str:
    """1234567 as `1,234,567`; rates below 100 keep a decimal."""
    return f"{number:,.1f}" if 0 < abs(number) < 100 and number != int(number) else f"{number:,.0f}"


def size(number: float) -> str:
    """Bytes as `512 B`, `3.1 MB`-like binary units: 256 KiB, 3.1 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(number) < 1024 or unit == "GiB":
            break
        number /= 1024
    return f"{number:.0f} {unit}" if unit == "B" or abs(number) >= 10 else f"{number:.1f} {unit}"


def clock(seconds: float) -> str:
    """A duration as `0:04`, `12:30` or `1:05:09`."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def percent(fraction: float, decimals: int = 1) -> str:
    return f"{100 * fraction:.{decimals}f} %"


def metric(name: str, value: float) -> str:
    """`accuracy 95.9 %`, `top5_accuracy 99.1 %`, `rmse 0.213`."""
    shown = percent(value) if is_fraction(name) else f"{value:.4g}"
    return f"{name} {shown}"


def is_fraction(name: str) -> bool:
    return "accuracy" in name or name.startswith("top")


def metrics(values: Mapping[str, float] | None, prefix: str = "") -> list[str]:
    return [prefix + metric(name, value) for name, value in (values or {}).items()]


def plan_headline(plan: Mapping[str, Any], demonstration: bool = False) -> str:
    """The plan's first line: the best single node against this cut, both predicted, and why where the cut is slower."""
    reasons = plan.get("reasons") or ()
    line = str(reasons[0]) if reasons else f"{count(plan['samples_per_s'])} samples/s over {len(plan['nodes'])} nodes"
    return f"{line}, to show it" if demonstration and line.endswith("cut anyway") else line


def plan_table(plan: Mapping[str, Any], gone: Collection[str] = ()) -> list[str]:
    """Which layers lie on which node, what it sends per training step, and by how many updates it runs behind, if any do.
    Of a data-parallel run: who is a worker, who holds which shards, and what a worker exchanges. gone: names of nodes that it has
    lost and goes on without."""
    if plan.get("replicas"):
        return _roles_table(plan, gone)
    late = plan.get("delays") or ()
    rows = [["node", "layers", "parameters", "memory", *(["runs behind by"] if any(late) else []), "sends per step"]]
    for index, node in enumerate(plan["nodes"]):
        sends = []
        for peer, forward, backward in node.get("sends", ()):
            back = ", and its gradient back" if backward == forward else f", and {size(backward)} of gradients back"
            sends.append(f"{size(forward)} to {peer}{back if backward else ''}")
        memory = size(node["memory_bytes"])
        behind = [f"{late[index]} update{'s' * (late[index] > 1)}" if late[index] else ""] if any(late) else []
        rows.append([node["name"], node["layers"], count(node["parameters"]), memory, *behind, "; ".join(sends)])
    return ["  " + line for line in table(rows, right=(2, 3))]


def _roles_table(plan: Mapping[str, Any], gone: Collection[str]) -> list[str]:
    cut = any(
        len(replica["nodes"]) > 1 for replica in plan["replicas"]
    )  # so values travel between the nodes of a worker, too
    rows = [["node", "roles", "parameters", "memory", "per step"]]
    for node in plan["nodes"]:
        pushed, fetched = (sum(row[n] for row in node.get("sends", ())) for n in (1, 2))
        words = ("sends", "gets back") if cut else ("pushes", "fetches")
        moves = f"{words[0]} {size(pushed)}, {words[1]} {size(fetched)}" if node.get("sends") else ""
        if node.get("copied_bytes"):
            moves += f"{', ' * bool(moves)}sends {size(node['copied_bytes'])} on to backups"
        was = f"gone (was {node['layers']})" if node["name"] in gone else node["layers"]
        rows.append([node["name"], was, count(node["parameters"]), size(node["memory_bytes"]), moves])
    return ["  " + line for line in table(rows, right=(2, 3))]


def plan_reasons(plan: Mapping[str, Any]) -> list[str]:
    """Why it is so: each node's share of the work, each cut, and warnings."""
    lines = [f"  {node['name']}: {node['why']}" for node in plan["nodes"] if node.get("why")]
    return lines + [f"  {reason}" for reason in (plan.get("reasons") or ())[1:]]


def table(rows: Sequence[Sequence[str]], right: Iterable[int] = ()) -> list[str]:
    """Columns side by side, two spaces apart; the columns in `right` stand to the right."""
    if not rows:
        return []
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    sides = set(right)
    lines = []
    for row in rows:
        cells = [f"{c:>{w}}" if i in sides else f"{c:<{w}}" for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return lines


def bar(fraction: float, cells: int = BAR_CELLS) -> str:
    """A line of `cells` cells of which a fraction is done: ━━━━╸─────."""
    halves = round(min(1.0, max(0.0, fraction)) * cells * 2)
    full, half = divmod(halves, 2)
    return "━" * full + "╸" * half + "─" * (cells - full - half)


LEAST_FIRST: Final = ("busy", "bytes", "slowest", "staleness", "rate", "metrics", "loss")
"""What leaves a progress line that is too long, and in which order."""


def progress(event: Mapping[str, Any], width: int | None = None) -> str:
    """One line of a `progress` event. Where it is wider than width, the busy shares go first, then what a data-parallel run
    exchanges, then the rate, then the metrics: loss, bar and time left stay as long as they can.
    """
    head, done = f"epoch {event['epoch']}/{event['epochs']}", 0.0
    if event.get("steps"):
        done = event["step"] / event["steps"]
    line = ""
    for gone in range(len(LEAST_FIRST) + 1):
        tail = "  ".join(text for key, text in _measured(event) if key not in LEAST_FIRST[:gone])
        cells = BAR_CELLS if width is None else min(BAR_CELLS, width - len(head) - len(tail) - 5)
        line = f"{head}  {bar(done, cells)}  {tail}" if cells >= BAR_CELLS_MIN else f"{head}  {tail}"
        if cells >= BAR_CELLS_MIN:
            break
    return cut(line, width)


def preparing(nodes: Mapping[str, tuple[int, int]], width: int | None = None) -> str:
    """One line for all nodes that fetch their data: fetched and total bytes by name."""
    parts = (f"{name} {size(fetched)} of {size(total)}" for name, (fetched, total) in nodes.items())
    return cut(f"preparing the data on {', '.join(parts)}", width)


def cut(line: str, width: int | None) -> str:
    """The line without what does not fit; its last cell stays free, for in it a terminal begins the next line."""
    return line if width is None or len(line) < width else f"{line[: max(0, width - 2)]}…"[: max(0, width - 1)]


def _measured(event: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a `progress` event measured, as far as it did, each with what it is."""
    parts = [] if event.get("loss") is None else [("loss", f"loss {event['loss']:.3f}")]
    parts += [("metrics", text) for text in metrics(event.get("metrics"))]
    if event.get("samples_per_s"):
        parts.append(("rate", f"{count(round(event['samples_per_s']))} samples/s"))
    behind = staleness(event).rows()
    if behind:
        parts.append(("staleness", f"staleness {_median(behind)} (max {behind[-1][0]})"))
    if event.get("pushed_bytes") is not None:
        copied = f" ⇉{size(event['copied_bytes'])}" if event.get("copied_bytes") else ""
        parts.append(("bytes", f"↑{size(event['pushed_bytes'])} ↓{size(event['fetched_bytes'])}{copied} a step"))
    if event.get("slowest"):
        parts.append(("slowest", f"slowest {event['slowest']}"))
    busy = " ".join(f"{name} {percent(share, 0)}" for name, share in (event.get("busy") or {}).items())
    parts += [("busy", f"{busy} busy")] if busy else []
    return parts + ([] if event.get("left_s") is None else [("left", f"{clock(event['left_s'])} left")])


def _median(rows: Sequence[tuple[str, int]]) -> str:
    """The row in which the middle one is. rows: (name, how many), ascending."""
    left = sum(number for _, number in rows) / 2
    for name, number in rows:
        left -= number
        if left <= 0:
            return name
    return rows[-1][0]


def staleness(event: Mapping[str, Any]) -> Histogram:
    """How many updates pushes were behind, of a `progress` event; empty where there are no shards."""
    return Histogram({int(behind): number for behind, number in (event.get("staleness") or {}).items()})


def epoch(event: Mapping[str, Any]) -> str:
    """One line of an `epoch` event, or of a record of metrics.jsonl: every number in it that is not about the run."""
    head = f"epoch {int(event['epoch'])}" + (f"/{event['epochs']}" if event.get("epochs") else "")
    parts = []
    for name, value in event.items():
        if name in ("loss", "validation_loss"):
            parts.append(f"{name.replace('_', ' ')} {loss(value)}")
        elif name not in _NOT_METRICS and isinstance(value, int | float):
            parts.append(metric(name, value).replace("validation_", "validation "))
    if event.get("samples_per_s"):
        parts.append(f"{count(round(event['samples_per_s']))} samples/s")
    return "  ".join([head, *parts])


def evaluation(found: Mapping[str, Any], seconds: float | None = None) -> str:
    """`test accuracy 97.8 %   (352 of 360)   11.2 s`; further metrics and the loss follow."""
    split, rows = found.get("split", "test"), int(found.get("rows", 0))
    parts = []
    for name, value in (found.get("metrics") or {}).items():
        parts.append(metric(name, value))
        of = int((found.get("counts") or {}).get(name, rows))
        if name == "accuracy" and of:
            parts.append(f"({round(value * of):,} of {of:,})")
    if not parts and found.get("loss") is not None:
        parts = [f"loss {loss(found['loss'])}", f"({rows:,} rows)"]
    if seconds is not None:
        parts.append(f"{seconds:.1f} s")
    return f"{split} " + "   ".join(parts)


def evaluations(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The evaluations of a job's result: one, several, or none, each with split, rows, loss and metrics."""
    found = result.get("evaluation") or result.get("results") or ()
    return [found] if isinstance(found, Mapping) else list(found)


def time_of_day(unix_s: float | None) -> str:
    """The local time as 14:03:55."""
    return "--:--:--" if unix_s is None else f"{datetime.fromtimestamp(unix_s):%H:%M:%S}"


def event(found: Mapping[str, Any]) -> str:
    """One line for any event of a job's log; empty for those that say nothing to a person."""
    match found["kind"]:
        case "state":
            reason = found.get("reason") or found.get("text") or ""
            return str(found["state"]) + (f": {reason}" if reason else "")
        case "queued":
            return f"queued behind {found['behind']}" + (f" on {found['node']}" if found.get("node") else "")
        case "preparing":
            total = found.get("total_bytes") or 0
            return f"preparing on {found['node']}: {size(found.get('fetched_bytes', 0))} of {size(total)} of the data"
        case "progress":
            return "  ".join([f"step {found['step']:,}/{found['steps']:,}", *(text for _, text in _measured(found))])
        case "epoch":
            return epoch(found)
        case "checkpoint":
            if found.get("error"):
                return f"checkpoint of step {found['step']} failed, training goes on: {found['error']}"
            return f"checkpoint of step {found['step']}" + ("" if found.get("complete") else " is not complete yet")
        case "evaluation":
            return evaluation(found)
        case "warning":
            return f"warning: {found['text']}"
        case "note" | "recovered":
            return str(found["text"])
        case "plan":
            return label("Plan", plan_headline(found["plan"]))
        case "result":
            return f"bits {found['bits']}" if found.get("bits") else ""
        case _:
            return ""


def checkpoint_of(job: Mapping[str, Any], step: int) -> str:
    """`the checkpoint of step 653 of 1,404: the job failed`: what the parameters of a job that is not done are."""
    of = f" of {count(job['steps'])}" if job.get("steps") else ""
    became = {"failed": "failed", "cancelled": "was cancelled", "running": "runs"}
    return f"the checkpoint of step {count(step)}{of}: the job {became.get(job['state'], 'is ' + job['state'])}"


def age(seconds: float) -> str:
    """How long ago, in the unit that says it: `40 s`, `12 min`, `3 h`, `5 d`."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{max(0, int(seconds))} s"


def loss(value: float) -> str:
    """Four decimals, and of what has run away its magnitude alone."""
    return f"{value:.4f}" if abs(value) < 1e6 else f"{value:.4g}"


def jobs_table(jobs: Sequence[Mapping[str, Any]], now_s: float) -> list[str]:
    """now_s: unix time, for the ages of the jobs."""
    rows = [("job", "kind", "state", "age", "epoch", "loss", "nodes", "coordinator")]
    for job in jobs:
        at = f"{job['epoch']}/{job['epochs']}" if job.get("epochs") else ""
        shown = "" if job.get("loss") is None else loss(job["loss"])
        names = " ".join(job.get("nodes") or ())
        old = age(now_s - job["created_s"]) if job.get("created_s") else ""
        rows.append((job["job"], job["kind"], job["state"], old, at, shown, names, job.get("coordinator_name") or ""))
    return table(rows, right=(3, 4, 5))


def peers_table(peers: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [("name", "address", "state", "round trip", "job", "machine")]
    for peer in peers:
        trip = "" if peer.get("rtt_ms") is None else f"{peer['rtt_ms']:.2f} ms"
        profile = peer.get("profile")
        machine = f"{profile['gflops']:.0f} GFLOP/s, {size(profile['memory_bytes'])} free" if profile else ""
        rows.append((peer.get("name") or "?", peer["address"], peer_state(peer), trip, peer.get("job") or "", machine))
    return table(rows, right=(3,))


def peer_state(peer: Mapping[str, Any]) -> str:
    """`suspect since 3 s, by a and c: it answers no probe`, `dead: connection reset`, `unreachable: refused`, `alive`."""
    state = str(peer["state"])
    if state == "suspect":
        by = " and ".join(peer.get("by") or ())
        state += f" since {peer.get('since_s', 0):.0f} s" + (f", by {by}" if by else "")
    if peer.get("draining") and state in ("self", "alive", "suspect"):
        state += ", draining"
    return state + (f": {peer['reason']}" if peer.get("reason") else "")


def datasets_table(datasets: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [("name", "id", "rows", "here", "columns", "jobs")]
    for found in datasets:
        total, jobs = found.get("total_bytes", found["bytes"]), f"{len(found['jobs']):,}"
        here = size(found["bytes"]) + (f" of {size(total)}" if total > found["bytes"] else "")
        jobs += f" ({found['active']:,} not ended)" if found.get("active") else ""
        rows.append((found["name"], found["id"][:12], count(found["rows"]), here, " ".join(found["columns"]), jobs))
    return table(rows, right=(2, 3))
