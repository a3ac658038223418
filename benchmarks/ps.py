"""A parameter server and two workers against torch's and TensorFlow's, on an MLP 784-2048-2048-2048-10 with plain SGD.

    ./run bench ps [--json] [--quick] [--only PART] [--torch-python PATH] [--tensorflow-python PATH]

Parts: `here`, all on this machine's loopback. p2pnn on one node; with one server and two workers (`async`, real daemons and
executors), which push and fetch each step, or each fourth, and the same with a backup of the server on another node; torch's RPC
as its tutorials have a parameter server, as soon as it can and one push ahead; TensorFlow's ParameterServerStrategy. 128 rows per
batch, one BLAS thread each, the same rows, first parameters and rate. They take turns; the speed of a job is the slope of its
steps over time. At the end each trains longer, once, and the loss is noted against time.

`links`: the same with bf16 and int8 both ways, in network namespaces whose links are shaped to 100 Mbit/s and 1 Gbit/s (root).

`shards`: 1 to 8 workers and 1, 2 and 4 shards, each on a node with a link of 100 Mbit/s of its own. A machine of few cores cannot
compute for eight, so computing is replaced by a wait of a fixed time there; all else is as it is.
"""

from __future__ import annotations

import json
import signal
import socket
import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import _classification as work
from benchmarks import _ps_links, _shaped
from benchmarks._measure import Contest, Report, Target, arguments, conclude
from benchmarks._ps_jobs import Kind, prepared, train
from benchmarks._torch_python import add_option, add_tensorflow_option, tensorflow_python, torch_python
from benchmarks._worker import Ended, Worker, together
from benchmarks.mesh import (
    RATE,
    WARM_UP_STEPS,
    Bout,
    Contestant,
    Effort,
    Training,
    slope,
    take_turns,
    until_a_loss,
)
from p2pnn.cli.local import LocalMesh
from p2pnn.cli.request import DataParallelPart
from p2pnn.errors import P2pnnError, UsageError

BATCH = 128
WORKERS = 2
PARTS = ("here", "links", "shards")

ONE = "p2pnn, 1 node"
EACH, FOURTH = "p2pnn, server + 2 workers", "p2pnn, server + 2 workers, every 4th step"
BACKED = "p2pnn, server and backup + 2 workers"
TORCH, TORCH_AHEAD, TORCH_FOURTH = "torch RPC", "torch RPC, one push ahead", "torch RPC, every 4th step"
TENSORFLOW = "TensorFlow"
JOBS = {
    ONE: Kind(BATCH, None),
    EACH: Kind(BATCH, DataParallelPart(workers=WORKERS, shards=1, replicas=1)),
    FOURTH: Kind(BATCH, DataParallelPart(workers=WORKERS, shards=1, replicas=1, push_every=4, fetch_every=4)),
    BACKED: Kind(BATCH, DataParallelPart(workers=WORKERS, shards=1, replicas=2)),
}
CALLS = {TORCH: (1, False), TORCH_AHEAD: (1, True), TORCH_FOURTH: (4, False)}
"""Contestant → steps per push, whether a push is waited for a step later."""

CONTESTS: tuple[tuple[str, tuple[str, ...], dict[str, float]], ...] = (
    (EACH, (EACH, TORCH, TORCH_AHEAD, TENSORFLOW, ONE), {TORCH: 1.0, TORCH_AHEAD: 1.0, TENSORFLOW: 1.4}),
    (FOURTH, (FOURTH, ONE, EACH, TORCH_FOURTH), {ONE: 1.5}),
    (BACKED, (BACKED, EACH, ONE), {}),
)
"""Ours, who it stands beside, and what it must be at least, divided by whom."""


class Ours:
    """Jobs on a mesh that stays."""

    def __init__(self, mesh: LocalMesh, rows: work.Rows, kind: Kind) -> None:
        self._mesh, self._rows, self._kind = mesh, rows, kind

    def train(self, training: Training) -> Effort:
        return train(self._mesh, prepared(self._rows, self._kind, training.steps))


class Theirs:
    """Processes of another library, all of which take part in each training."""

    def __init__(self, processes: list[Worker], folder: Path, **how: Any) -> None:
        self._processes = processes
        self._asked = {"folder": str(folder), "parameters": 2 * (len(work.WIDTHS) - 1), "rate": RATE, **how}

    def train(self, training: Training) -> Effort:
        self._all("prepare", least_s=0.0, order=training.order.name, **self._asked)
        curves = [answer["losses"] for answer in self._all("round", count=training.steps) if answer["losses"]]
        speeds = [slope([(0.0, 0), *((t, step) for t, step, _ in curve)]) for curve in curves]
        return Effort(statistics.fmean(speeds) * BATCH, [tuple(row) for row in curves[0]])

    def _all(self, do: str, **what: Any) -> list[dict[str, Any]]:
        for process in self._processes:
            process.tell(do, **what)
        return [process.hear() for process in self._processes]


def main() -> int:
    options = arguments(__doc__ or "", extend=extend)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # and leave nothing behind
    report = Report("ps", quick=options.quick)
    parts = options.only or PARTS
    rows = work.make_up(4_096 if options.quick else 32_768)
    report.facts["data"] = f"made up, {len(rows['label']):,} rows"
    if "here" in parts:
        here(report, rows, options)
    reason = _shaped.missing()
    for part in ("links", "shards"):
        if part in parts and reason:
            report.absent[part] = reason
    if "links" in parts and not reason:
        _ps_links.compression(report, rows, quick=options.quick)
    if "shards" in parts and not reason:
        _ps_links.scaling(report, quick=options.quick)
    return report.end(options)


def extend(parser: Any) -> None:
    parser.add_argument("--only", action="append", choices=PARTS, help="only this part; may be repeated")
    add_option(parser)
    add_tensorflow_option(parser)


def here(report: Report, rows: work.Rows, options: Any) -> None:
    pythons = torch_python(options.torch_python, report), tensorflow_python(options.tensorflow_python, report)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bout = written(rows, folder, quick=options.quick)
        theirs = others(*pythons, folder, stack)
        mesh = stack.enter_context(LocalMesh(1 + WORKERS))
        contestants = able({name: Ours(mesh, rows, kind) for name, kind in JOBS.items()} | theirs, bout, report)
        measure(report, bout, contestants)


def written(rows: work.Rows, folder: Path, *, quick: bool) -> Bout:
    """What is done; the folder gets what the others read of it."""
    rounds, seconds, curve_s = (1, 0.5, 1.0) if quick else (7, 4.0, 25.0)
    trainings = []
    for number, wanted_s in enumerate((seconds, curve_s)):
        steps = max(WARM_UP_STEPS, int(wanted_s * 3_000 / BATCH))
        spec = prepared(rows, JOBS[ONE], steps).spec
        trainings.append(Training(spec.steps, folder / f"order-{number}.npy"))
        work.write_order(trainings[-1].order, spec)
    work.write(folder, rows, spec)
    return Bout(BATCH, rounds, *trainings)


def others(torch: str, tensorflow: str, folder: Path, stack: ExitStack) -> dict[str, Contestant]:
    found: dict[str, Contestant] = {}
    if torch:
        meeting, size = str(folder / "meeting"), 1 + WORKERS
        each = [(str(rank), str(size), meeting) for rank in range(size)]
        processes = stack.enter_context(together(torch, "_torch_ps", each))
        found |= {name: Theirs(processes, folder, every=n, ahead=ahead) for name, (n, ahead) in CALLS.items()}
    if tensorflow:
        ports = _free_ports(2 + WORKERS)
        hosts = [f"127.0.0.1:{port}" for port in ports]
        cluster = json.dumps({"chief": hosts[:1], "ps": hosts[1:2], "worker": hosts[2:]})
        tasks = [("ps", 0), *(("worker", number) for number in range(WORKERS)), ("chief", 0)]
        each = [(task, str(index), cluster) for task, index in tasks]
        found[TENSORFLOW] = Theirs(stack.enter_context(together(tensorflow, "_tensorflow_ps", each)), folder)
    return found


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


def able(contestants: dict[str, Contestant], bout: Bout, report: Report) -> dict[str, Contestant]:
    """Those that can run, warmed up; the report says why the others cannot. Raises UsageError where none of ours can."""
    found: dict[str, Contestant] = {}
    for name, contestant in contestants.items():
        steps = (
            bout.short.steps if isinstance(contestant, Theirs) else WARM_UP_STEPS
        )  # theirs read their rows from a file
        try:
            contestant.train(replace(bout.short, steps=steps))
            found[name] = contestant
        except (P2pnnError, Ended) as error:
            report.absent[name] = str(error)
    if not found.keys() & JOBS.keys():
        raise UsageError(f"none of ours can run: {'; '.join(dict.fromkeys(report.absent.values()))}")
    return found


def measure(report: Report, bout: Bout, contestants: dict[str, Contestant]) -> None:
    efforts = take_turns(contestants, bout.rounds, bout.short)
    longest = {name: contestant.train(bout.longer) for name, contestant in contestants.items()}
    for contest, targets in contests({name: [e.samples_per_s for e in found] for name, found in efforts.items()}):
        report.add(contest, *targets)
    report.facts["steps of each"] = f"{bout.short.steps} in a round, {bout.longer.steps} in the longer training"
    for name in JOBS.keys() & efforts.keys():
        busy = ", ".join(f"{node} {100 * part:.0f} %" for node, part in efforts[name][-1].busy.items())
        measured = statistics.median(e.samples_per_s for e in efforts[name])
        predicted = efforts[name][-1].predicted
        report.facts[name] = f"predicted / measured: {predicted / measured:.2f}; computing: {busy}"
    if reached := until_a_loss(longest):
        loss, seconds = reached
        told = ", ".join(f"{name} {t:.1f} s" for name, t in sorted(seconds.items(), key=lambda row: row[1]))
        report.facts[f"until a loss of {loss:.3f}"] = told
        report.figures["until a loss"] = {"loss": loss, "seconds": seconds}
    report.series |= {
        f"{name}: [seconds, steps, loss]": [[round(t, 2), n, round(loss, 4)] for t, n, loss in effort.losses]
        for name, effort in longest.items()
    }


def contests(samples: dict[str, list[float]]) -> list[tuple[Contest, list[Target]]]:
    """What of CONTESTS those that took part give."""
    found = []
    for ours, names, wanted in CONTESTS:
        beside = {name: samples[name] for name in names if name in samples}
        if ours in beside:
            contest = Contest(f"batch {BATCH}: {ours}", "samples/s", ours, True, beside)
            found.append((contest, [Target(name, at_least=least) for name, least in wanted.items()]))
    return found


if __name__ == "__main__":
    sys.exit(conclude(main))
