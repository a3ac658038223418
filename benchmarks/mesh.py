"""A mesh of two nodes against one, and against torch's own pipeline, on an MLP 784-2048-2048-2048-10 with plain SGD.

    ./run bench mesh [--json] [--quick] [--data PATH] [--batch N] [--torch-python PATH]

Contestants: p2pnn on 1 node and on 2 (real daemons and executors, as `p2pnn train --local` starts them), with the schedules
`sync` (4 micro-batches) and `async:2`; torch in one process, and `torch.distributed.pipelining` in two (Schedule1F1B, 4 micro-
batches, gloo). One BLAS thread each, the same rows in the same order, the same first parameters, the same rate, as many steps.
They take turns: a round is a job, or torch's training of as many steps. The speed of a job is the slope of its steps over time
as its progress tells them; what passes from its submission to its first step is told apart. At the end each trains longer,
once, and the loss is noted against time.
"""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from benchmarks import _classification as work
from benchmarks import _jobs
from benchmarks._measure import Contest, Report, Target, arguments, conclude
from benchmarks._torch_python import add_option, torch_python
from benchmarks._worker import Worker, together
from p2pnn.cli import prepare, submit
from p2pnn.cli.local import LocalMesh
from p2pnn.errors import P2pnnError, UsageError
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

WARM_UP_STEPS = 12


@dataclass(frozen=True)
class Training:
    """What every contestant does, step for step. steps: of a job, which ends with an epoch; order: where torch reads its rows."""

    steps: int
    order: Path


@dataclass(frozen=True)
class Bout:
    """One batch size: rounds of one training, and then, once, a longer one."""

    batch: int
    rounds: int
    short: Training
    longer: Training


@dataclass
class Effort:
    """One training: samples per second, [seconds, steps, loss], and what passed before the first step."""

    samples_per_s: float
    losses: list[tuple[float, int, float]]
    start_s: float = 0.0
    busy: dict[str, float] = field(default_factory=dict)
    predicted: float = 0.0


class Contestant(Protocol):
    def train(self, training: Training) -> Effort: ...


def prepared(rows: work.Rows, batch: int, steps: int, nodes: int, micro_batches: int, schedule: str) -> submit.Prepared:
    """A job of at least so many steps: of as many rows as they take or, where there are fewer, of whole epochs."""
    rows = {name: array[: steps * batch] for name, array in rows.items()}
    epochs = -(-steps // (len(rows["label"]) // batch))
    asked = work.request(batch, micro_batches, epochs, RATE, nodes, schedule)
    model = mlp.build((work.WIDTHS[0],), work.WIDTHS[-1], hidden=work.WIDTHS[1:-1], dropout=0.0)
    return prepare.training(asked, model=model, arrays=rows)


class Ours:
    """Jobs on a mesh that stays."""

    def __init__(self, mesh: LocalMesh, rows: work.Rows, batch: int, settings: tuple[int, int, str]) -> None:
        self._mesh, self._rows, self._batch, self._settings = mesh, rows, batch, settings

    def train(self, training: Training) -> Effort:
        job = prepared(self._rows, self._batch, training.steps, *self._settings)
        began = time.time()
        seen: list[dict[str, Any]] = []
        _jobs.run(self._mesh, job, seen.append)
        return told(seen, self._batch, began)


def told(events: list[dict[str, Any]], batch: int, began: float) -> Effort:
    """What a job's events say. Times are those of its coordinator, which runs on this machine."""
    running = next(e["time"] for e in events if e["kind"] == "state" and e["state"] == "running")
    progress = [e for e in events if e["kind"] == "progress"]
    plan: dict[str, Any] = next((e["plan"] for e in events if e["kind"] == "plan"), {})
    busy = {name: statistics.median(e["busy"].get(name, 0.0) for e in progress) for name in progress[-1]["busy"]}
    return Effort(
        slope([(running, 0), *((e["time"], e["step"]) for e in progress)]) * batch,
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

    def __init__(self, workers: list[Worker], batch: int, folder: Path) -> None:
        self._workers, self._batch = workers, batch
        self._asked = {
            "folder": str(folder),
            "parameters": 2 * (len(work.WIDTHS) - 1),
            "rate": RATE,
            "cut": CUT,
            "micro_batches": MICRO_BATCHES,
        }

    def train(self, training: Training) -> Effort:
        self._all("prepare", least_s=0.0, order=training.order.name, **self._asked)
        answers = self._all("round", count=training.steps)
        losses = [tuple(row) for row in answers[-1]["losses"]]
        return Effort(slope([(0.0, 0), *((t, step) for t, step, _ in losses)]) * self._batch, losses)

    def _all(self, do: str, **what: Any) -> list[dict[str, Any]]:
        for worker in self._workers:
            worker.tell(do, **what)
        return [worker.hear() for worker in self._workers]


def main() -> int:
    options = arguments(__doc__ or "", extend=extend)
    report = Report("mesh", quick=options.quick)
    if options.data is None:
        rows = work.make_up(4_096 if options.quick else 32_768)
    else:
        rows = work.load(options.data, 60_000)
    batches = dict.fromkeys(options.batch or (128, 512))
    for batch in batches:
        check(batch, len(rows["label"]))
    python = torch_python(options.torch_python, report)
    report.facts["data"] = f"{options.data or 'made up'}, {len(rows['label']):,} rows"
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bouts = [bout(batch, rows, folder, quick=options.quick) for batch in batches]
        workers = torch_workers(python, folder, stack) if python else {}
        mesh = stack.enter_context(LocalMesh(2))
        for one in bouts:
            contestants: dict[str, Contestant] = able(mesh, rows, one, report)
            contestants |= {name: Theirs(ends, one.batch, folder) for name, ends in workers.items()}
            measure(report, one, contestants)
    return report.end(options)


def extend(parser: Any) -> None:
    parser.add_argument(
        "--data", metavar="PATH", help="a data set of 28 × 28 images, such as MNIST's folder; else made up"
    )
    parser.add_argument("--batch", type=int, action="append", metavar="N", help="rows per batch; may be repeated")
    add_option(parser)


def check(batch: int, rows: int) -> None:
    """Raise UsageError for a batch that the data does not fill, or that has no whole micro-batches."""
    most = rows // MICRO_BATCHES * MICRO_BATCHES
    if batch % MICRO_BATCHES or not 0 < batch <= most:
        raise UsageError(
            f"--batch {batch}: it is cut into {MICRO_BATCHES} micro-batches, and the data has {rows:,} rows; give a multiple of "
            f"{MICRO_BATCHES} from {MICRO_BATCHES} to {most:,}"
        )


def bout(batch: int, rows: work.Rows, folder: Path, *, quick: bool) -> Bout:
    """What is done at one batch size; the folder gets what torch's processes read of it."""
    rounds, seconds, curve_s = (2, 1.3, 2.0) if quick else (7, 4.0, 25.0)
    trainings = []
    for number, wanted_s in enumerate((seconds, curve_s)):
        steps = max(WARM_UP_STEPS, int(wanted_s * 3_000 / batch))
        spec = prepared(rows, batch, steps, *JOBS[SYNC]).spec
        trainings.append(Training(spec.steps, folder / f"order-{batch}-{number}.npy"))
        work.write_order(trainings[-1].order, spec)
    work.write(folder, rows, spec)
    return Bout(batch, rounds, *trainings)


def torch_workers(python: str, folder: Path, stack: ExitStack) -> dict[str, list[Worker]]:
    single = stack.enter_context(Worker(python, "_pipeline", "0", "1", "-"))
    meeting = str(folder / "meeting")
    pair = stack.enter_context(together(python, "_pipeline", [(str(rank), "2", meeting) for rank in range(2)]))
    return {TORCH: [single], PIPELINE: pair}


def able(mesh: LocalMesh, rows: work.Rows, one: Bout, report: Report) -> dict[str, Contestant]:
    """Ours that can run, warmed up; the report says why the others cannot. Raises UsageError where none can."""
    found: dict[str, Contestant] = {}
    absent = {}
    for name, settings in JOBS.items():
        ours = Ours(mesh, rows, one.batch, settings)
        try:
            ours.train(Training(WARM_UP_STEPS, Path()))
            found[name] = ours
        except P2pnnError as error:
            absent[f"{name}, batch {one.batch}"] = str(error)
    if not found:
        reasons = "; ".join(dict.fromkeys(absent.values()))
        raise UsageError(f"none of ours can run with batches of {one.batch} rows: {reasons}")
    report.absent |= absent
    return found


def measure(report: Report, one: Bout, contestants: dict[str, Contestant]) -> None:
    """All contestants at one batch size."""
    efforts = take_turns(contestants, one.rounds, one.short)
    longest = {name: contestant.train(one.longer) for name, contestant in contestants.items()}
    for contest, wanted in contests(
        {name: [e.samples_per_s for e in found] for name, found in efforts.items()}, one.batch
    ):
        report.add(contest, *wanted)
    where = f"batch {one.batch}"
    report.facts[f"{where}, steps of each"] = f"{one.short.steps} in a round, {one.longer.steps} in the longer training"
    report.facts |= {f"{where}, {name}": words for name, words in facts(efforts).items()}
    if reached := until_a_loss(longest):
        loss, seconds = reached
        told = ", ".join(f"{name} {t:.1f} s" for name, t in sorted(seconds.items(), key=lambda row: row[1]))
        report.facts[f"{where}, until a loss of {loss:.3f}"] = told
        report.figures[f"{where}, until a loss"] = {"loss": loss, "seconds": seconds}
    report.series |= {
        f"{where}, {name}: [seconds, steps, loss]": [[round(t, 2), n, round(loss, 4)] for t, n, loss in effort.losses]
        for name, effort in longest.items()
    }


def contests(samples: dict[str, list[float]], batch: int) -> Iterator[tuple[Contest, list[Target]]]:
    """The best of ours that took part against all others, and then `sync` against what it is like."""
    best = next(name for name in (ASYNC, SYNC, ONE) if name in samples)
    like = {name: samples[name] for name in samples if name in (SYNC, PIPELINE)}
    for name, shown in ((best, samples), *([(SYNC, like)] if best == ASYNC and SYNC in samples else [])):
        contest = Contest(f"batch {batch}: {name}", "samples/s", ours=name, higher_is_better=True, samples=shown)
        yield contest, targets(name, batch)


def take_turns(contestants: dict[str, Contestant], rounds: int, training: Training) -> dict[str, list[Effort]]:
    efforts: dict[str, list[Effort]] = {name: [] for name in contestants}
    names = list(contestants)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            efforts[name].append(contestants[name].train(training))
            print(f"  round {number + 1}: {name} {efforts[name][-1].samples_per_s:,.0f} samples/s", file=sys.stderr)
    return efforts


def targets(ours: str, batch: int) -> list[Target]:
    return {
        ASYNC: [Target(ONE, at_least=1.5), *([Target(PIPELINE, at_least=1.9)] if batch == 128 else [])],
        SYNC: [Target(PIPELINE, at_least=1.1)],
        ONE: [],
    }[ours]


def facts(efforts: dict[str, list[Effort]]) -> dict[str, str]:
    """What is no contest about ours, in words."""
    told = {}
    for name, found in efforts.items():
        if not found[-1].busy:
            continue
        measured = statistics.median(e.samples_per_s for e in found)
        start_s = statistics.median(e.start_s for e in found)
        busy = ", ".join(f"{node} {100 * part:.0f} %" for node, part in found[-1].busy.items())
        told[name] = (
            f"{found[-1].predicted:,.0f} samples/s were predicted ({found[-1].predicted / measured:.2f} of what was measured); "
            f"computing: {busy}; {start_s:.2f} s from submission to the first step"
        )
    return told


def until_a_loss(longest: dict[str, Effort]) -> tuple[float, dict[str, float]] | None:
    """(a loss that all reach, the seconds that each took to it); None where one never had a loss that is a number."""
    curves = {
        name: [(t, loss) for t, _, loss in effort.losses if math.isfinite(loss)] for name, effort in longest.items()
    }
    if not all(curves.values()):
        return None
    goal = max(min(loss for _, loss in curve) for curve in curves.values()) * 1.05
    return goal, {name: next(t for t, loss in curve if loss <= goal) for name, curve in curves.items()}


if __name__ == "__main__":
    sys.exit(conclude(main))
