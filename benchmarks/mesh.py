"""A mesh of two nodes against one, and against torch's own pipeline, on an MLP 784-2048-2048-2048-10 with plain SGD.

    ./run bench mesh [--json] [--quick] [--data PATH] [--batch N] [--torch-python PATH]

Contestants: p2pnn on 1 node and on 2 (real daemons and executors, as `p2pnn train --local` starts them), with the schedules
`sync` (4 micro-batches) and `async:2`; torch in one process, and `torch.distributed.pipelining` in two (Schedule1F1B, 4 micro-
batches, gloo). One BLAS thread each, the same rows in the same order, the same first parameters, the same rate. They take
turns: a round is a job, or as many steps of torch. The speed of a job is the slope of its steps over time as its progress tells
them; what passes from its submission to its first step is told apart. At the end each trains longer, once, and the loss is
noted against time.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from benchmarks import _classification as work
from benchmarks._measure import Contest, Report, Target, arguments
from benchmarks._worker import Absent, Worker, torch_python
from p2pnn.cli import follow, submit
from p2pnn.cli.local import LocalMesh
from p2pnn.errors import P2pnnError
from p2pnn.job.spec import JobSpec
from p2pnn.zoo import mlp

ONE, SYNC, ASYNC = "p2pnn, 1 node", "p2pnn, 2 nodes, sync", "p2pnn, 2 nodes, async:2"
TORCH, PIPELINE = "torch, 1 process", "torch, 2 processes, 1F1B"
JOBS = {ONE: (1, 1, "sync"), SYNC: (2, 4, "sync"), ASYNC: (2, 1, "async:2")}
"""Contestant → nodes, micro-batches, schedule."""

RATE = 0.05
MICRO_BATCHES = 4
CUT = 2
"""Layers on the pipeline's first process: the cut that p2pnn's plan takes too."""

SETTLE = 0.25
"""The first quarter of a job's steps does not count: the pieces that the coordinator hands out still grow."""


@dataclass
class Effort:
    """One training: samples per second, [seconds, steps, loss], and what passed before the first step."""

    samples_per_s: float
    losses: list[tuple[float, int, float]]
    start_s: float = 0.0
    busy: dict[str, float] = field(default_factory=dict)
    predicted: float = 0.0


class Contestant(Protocol):
    def train(self, steps: int) -> Effort: ...


class Ours:
    """Jobs on a mesh that stays."""

    def __init__(
        self, mesh: LocalMesh, rows: work.Rows, batch: int, nodes: int, micro_batches: int, schedule: str
    ) -> None:
        self._mesh, self._rows, self._batch = mesh, rows, batch
        self._settings = (nodes, schedule)
        self._micro_batches = micro_batches

    def prepared(self, steps: int) -> submit.Prepared:
        nodes, schedule = self._settings
        rows = {name: array[: steps * self._batch] for name, array in self._rows.items()}
        epochs = -(-steps // (len(rows["label"]) // self._batch))
        asked = work.request(self._batch, self._micro_batches, epochs, RATE, nodes, schedule)
        model = mlp.build((work.WIDTHS[0],), work.WIDTHS[-1], hidden=work.WIDTHS[1:-1], dropout=0.0)
        return submit.prepare(asked, model=model, arrays=rows)

    def train(self, steps: int) -> Effort:
        prepared = self.prepared(steps)
        began = time.time()
        job = submit.send(self._mesh.daemon, prepared)
        seen: list[dict[str, Any]] = []
        outcome = follow.follow(self._mesh.daemon, job, seen.append, may_detach=False, fallen=self._mesh.fallen)
        outcome.raise_if_failed()
        return told(seen, self._batch, began)


def told(events: list[dict[str, Any]], batch: int, began: float) -> Effort:
    """What a job's events say. Times are those of its coordinator, which runs on this machine."""
    running = next(e["time"] for e in events if e["kind"] == "state" and e["state"] == "running")
    progress = [e for e in events if e["kind"] == "progress"]
    plan: dict[str, Any] = next((e["plan"] for e in events if e["kind"] == "plan"), {})
    busy = {name: statistics.median(e["busy"].get(name, 0.0) for e in progress) for name in progress[-1]["busy"]}
    return Effort(
        slope([(e["time"], e["step"]) for e in progress]) * batch,
        [(e["time"] - running, e["step"], e["loss"]) for e in progress if e["loss"] is not None],
        running - began,
        busy,
        plan.get("samples_per_s", 0.0),
    )


def slope(points: list[tuple[float, int]]) -> float:
    """Steps per second: the line of least squares through (time, steps), without the first quarter of the steps. A progress
    tells the slower node's last word, which may be a fifth of a second old, so two points alone would err by that."""
    steady = [p for p in points if p[1] >= SETTLE * points[-1][1]]
    points = steady if len(steady) > 2 else points
    mean_t = statistics.fmean(t for t, _ in points)
    mean_s = statistics.fmean(s for _, s in points)
    square = sum((t - mean_t) ** 2 for t, _ in points)
    return sum((t - mean_t) * (s - mean_s) for t, s in points) / square if square else 0.0


class Theirs:
    """Workers of torch, all of which take part in each training."""

    def __init__(self, workers: list[Worker], batch: int, **asked: Any) -> None:
        self._workers, self._batch, self._asked = workers, batch, asked

    def train(self, steps: int) -> Effort:
        self._all("prepare", least_s=0.0, **self._asked)
        answers = self._all("round", count=steps)
        losses = [tuple(row) for row in answers[-1]["losses"]]
        return Effort(slope([(t, step) for t, step, _ in losses]) * self._batch, losses)

    def _all(self, do: str, **what: Any) -> list[dict[str, Any]]:
        for worker in self._workers:
            worker.tell(do, **what)
        return [worker.hear() for worker in self._workers]


def main() -> int:
    options = arguments(__doc__ or "", extend=extend)
    report = Report("mesh")
    rows = work.load(options.data, 60_000) if options.data else work.make_up(4_096 if options.quick else 32_768)
    report.facts["data"] = f"{options.data or 'made up'}, {len(rows['label']):,} rows"
    with ExitStack() as stack:
        workers: dict[str, list[Worker]] = {}
        try:
            python = torch_python(options.torch_python)
            workers[TORCH] = [stack.enter_context(Worker(python, "_pipeline", "0", "1", "-"))]
            meeting = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "meeting"
            pair = [Worker(python, "_pipeline", str(rank), "2", str(meeting)) for rank in range(2)]
            workers[PIPELINE] = [stack.enter_context(worker) for worker in pair]
        except Absent as reason:
            report.absent["torch"] = str(reason)
        mesh = stack.enter_context(LocalMesh(2))
        for batch in options.batch or (128, 512):
            measure(report, options, batch, rows, mesh, workers)
    return report.end(options)


def extend(parser: Any) -> None:
    parser.add_argument(
        "--data", metavar="PATH", help="a data set of 28 × 28 images, such as MNIST's folder; else made up"
    )
    parser.add_argument("--batch", type=int, action="append", metavar="N", help="rows per batch; may be repeated")
    parser.add_argument("--torch-python", metavar="PATH", help="a Python that has torch and numpy")


def measure(
    report: Report, options: Any, batch: int, rows: work.Rows, mesh: LocalMesh, workers: dict[str, list[Worker]]
) -> None:
    """All contestants at one batch size."""
    rounds, seconds, curve_s = (2, 1.5, 2.0) if options.quick else (7, 4.0, 25.0)
    steps, longer = (max(12, int(s * 3_000 / batch)) for s in (seconds, curve_s))
    contestants: dict[str, Contestant] = {}
    for name, settings in JOBS.items():
        ours = Ours(mesh, rows, batch, *settings)
        try:
            spec = ours.prepared(longer).spec
            ours.train(12)
            contestants[name] = ours
        except P2pnnError as error:
            report.absent[f"{name}, batch {batch}"] = str(error)
    with tempfile.TemporaryDirectory() as folder:
        for name, ends in workers.items():
            work.write(Path(folder), rows, spec, longer)
            contestants[name] = Theirs(ends, batch, **asked(folder, spec))
        efforts = take_turns(contestants, rounds, steps)
        longest = {name: contestant.train(longer) for name, contestant in contestants.items()}
    samples = {name: [e.samples_per_s for e in found] for name, found in efforts.items()}
    for name in (ASYNC, SYNC):
        if name in samples:
            repeated = name == SYNC and ASYNC in samples
            shown = {n: samples[n] for n in samples if n in (SYNC, PIPELINE)} if repeated else samples
            contest = Contest(f"batch {batch}: {name}", "samples/s", ours=name, higher_is_better=True, samples=shown)
            report.add(contest, *targets(name, batch))
    report.facts |= {f"batch {batch}, {what}": words for what, words in facts(efforts, longest).items()}
    report.series |= {
        f"batch {batch}, {name}: [seconds, steps, loss]": [
            [round(t, 2), n, round(loss, 4)] for t, n, loss in effort.losses
        ]
        for name, effort in longest.items()
    }


def asked(folder: str, spec: JobSpec) -> dict[str, Any]:
    """What torch's processes are told."""
    return {
        "folder": folder,
        "parameters": len(spec.graph.parameters),
        "rate": RATE,
        "cut": CUT,
        "micro_batches": MICRO_BATCHES,
    }


def take_turns(contestants: dict[str, Contestant], rounds: int, steps: int) -> dict[str, list[Effort]]:
    efforts: dict[str, list[Effort]] = {name: [] for name in contestants}
    names = list(contestants)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            efforts[name].append(contestants[name].train(steps))
            print(f"  round {number + 1}: {name} {efforts[name][-1].samples_per_s:,.0f} samples/s", file=sys.stderr)
    return efforts


def targets(ours: str, batch: int) -> list[Target]:
    if ours == SYNC:
        return [Target(PIPELINE, at_least=1.1)]
    return [Target(ONE, at_least=1.5), *([Target(PIPELINE, at_least=1.9)] if batch == 128 else [])]


def facts(efforts: dict[str, list[Effort]], longest: dict[str, Effort]) -> dict[str, str]:
    """What is no contest, in words."""
    told = {}
    ours = {name: found for name, found in efforts.items() if found[-1].busy}
    for name, found in ours.items():
        measured = statistics.median(e.samples_per_s for e in found)
        start_s = statistics.median(e.start_s for e in found)
        busy = ", ".join(f"{node} {100 * part:.0f} %" for node, part in found[-1].busy.items())
        told[name] = (
            f"{found[-1].predicted:,.0f} samples/s were predicted ({found[-1].predicted / measured:.2f} of what was measured); "
            f"computing: {busy}; {start_s:.2f} s from submission to the first step"
        )
    goal = max(min(loss for _, _, loss in effort.losses) for effort in longest.values()) * 1.05
    reached = {name: next(t for t, _, loss in effort.losses if loss <= goal) for name, effort in longest.items()}
    listed = ", ".join(f"{name} {t:.1f} s" for name, t in sorted(reached.items(), key=lambda row: row[1]))
    told[f"until a loss of {goal:.3f}"] = listed
    return told


if __name__ == "__main__":
    sys.exit(main())
