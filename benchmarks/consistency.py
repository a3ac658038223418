"""What each way of data parallelism learns, and what it sends: LeNet-5 on images, one worker against several.

    ./run bench consistency [--json] [--quick] [--data FOLDER] [--epochs N] [--workers N] [--only WAYS]

One worker alone (`--parallel model --nodes 1`), then as many as asked for with two shards: `async` with Adagrad on the shards
(Downpour SGD, Dean et al. 2012), the same with a warm start, with int8 and error feedback both ways, `sync`, `ssp:4`, `sync`
with a backup worker and `local:8` (DiLoCo). The same rows, first parameters and seed, batches of 128; the rate of Adagrad is
0.01. After each epoch the accuracy on rows that nobody trains on is noted; at the end, what was pushed and fetched.

Without --data the digits that p2pnn brings along are learnt, by an MLP; the usual data is MNIST's folder. All nodes share this
machine, so the seconds say nothing about several machines: `./run bench ps` is for that.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import _jobs
from benchmarks._measure import Contest, Report, Target, arguments, conclude
from p2pnn.cli import prepare
from p2pnn.cli.local import LocalMesh
from p2pnn.cli.request import DataParallelPart, DataPart, MeshPart, ModelPart, Request, TrainPart, check
from p2pnn.data.source import DIGITS
from p2pnn.errors import DataError, UsageError
from p2pnn.job.spec import Optimizer

ONE, ASYNC, WARM, INT8, SYNC, SSP, BACKUP, LOCAL = (
    "one worker",
    "async",
    "async, warm start",
    "async, int8",
    "sync",
    "ssp:4",
    "sync, 1 backup",
    "local:8",
)
SHARDS = 2
WARM_START = 200
"""Updates of the first worker alone: Adagrad's first steps are its longest, and several workers' would be made from one point."""

BATCH = 128
GAMMA = 0.01
SEED = 7
WANTED = {DIGITS: 0.95}
ACCURACY = 0.985
"""Of MNIST."""

EPOCHS_RATIO_MAX, BYTES_RATIO_MAX, POINTS_LOST_MAX = 1.5, 0.13, 0.2


@dataclass
class Learnt:
    """Of one run. accuracies: after each epoch. sent: bytes of all pushes and fetches of the whole run."""

    accuracies: list[float] = field(default_factory=list)
    sent: float = 0.0
    seconds: float = 0.0

    def epochs_to(self, accuracy: float) -> int:
        """How many it took; 0 where it never did."""
        return next((number for number, found in enumerate(self.accuracies, 1) if found >= accuracy), 0)


def ways(workers: int) -> dict[str, tuple[Optimizer, DataParallelPart | None]]:
    adagrad = Optimizer("adagrad", rate=GAMMA, schedule="constant")

    def part(
        consistency: str = "async", backup: int = 0, values: str = "float32", warm_start: int = 0
    ) -> DataParallelPart:
        return DataParallelPart(
            consistency,
            workers,
            SHARDS,
            backup,
            push_compression=values,
            pull_compression=values,
            warm_start=warm_start,
        )

    return {
        ONE: (adagrad, None),
        ASYNC: (adagrad, part()),
        WARM: (adagrad, part(warm_start=WARM_START)),
        LOCAL: (adagrad, part("local:8")),
        INT8: (adagrad, part(values="int8")),
        SYNC: (adagrad, part("sync")),
        SSP: (adagrad, part("ssp:4")),
        BACKUP: (adagrad, part("sync", backup=1)),
    }


def learn(
    mesh: LocalMesh, data: str, epochs: int, name: str, optimizer: Optimizer, part: DataParallelPart | None
) -> Learnt:
    """Run one job to its end."""
    asked = Request(
        name="consistency",
        seed=SEED,
        model=ModelPart(source="mlp" if data == DIGITS else "lenet5"),
        data=DataPart(train=data, validation_fraction=0.15),
        train=TrainPart(epochs=epochs, batch_size=BATCH, micro_batches=4, optimizer=optimizer),
        mesh=MeshPart(nodes=1 if part is None else 0, parallel="model" if part is None else "data"),
        data_parallel=part or DataParallelPart(),
    )
    check(asked)
    found, began = Learnt(), time.monotonic()
    _jobs.run(mesh, prepare.training(asked), noting(found, name))
    found.seconds = time.monotonic() - began
    return found


def noting(found: Learnt, name: str) -> Callable[[dict[str, Any]], None]:
    def show(event: dict[str, Any]) -> None:
        if event["kind"] == "epoch":
            found.accuracies.append(float(event["validation_accuracy"]))
            print(f"  {name}: epoch {event['epoch']}, accuracy {found.accuracies[-1]:.4f}", file=sys.stderr, flush=True)
        elif event["kind"] == "progress" and "pushed_bytes" in event:
            found.sent = (event["pushed_bytes"] + event["fetched_bytes"]) * event["step"]

    return show


def main() -> int:
    options = arguments(__doc__ or "", extend=extend)
    report = Report("consistency", options.quick)
    data = DIGITS if options.data is None else str(usable(options.data))
    epochs = options.epochs or (3 if options.quick else 40 if data == DIGITS else 10)
    wanted = WANTED.get(data, ACCURACY)
    report.facts["job"] = f"{'mlp on digits' if data == DIGITS else 'lenet5 on ' + options.data}, {epochs} epochs"
    report.facts["nodes"] = f"{options.workers} on one machine, {SHARDS} shards"
    found: dict[str, Learnt] = {}
    with LocalMesh(options.workers) as mesh:
        for name, (optimizer, part) in chosen(ways(options.workers), options.only).items():
            found[name] = learn(mesh, data, epochs, name, optimizer, part)
            report.facts[f"{name}, seconds"] = round(found[name].seconds, 1)
    tell(report, found, wanted)
    return report.end(options)


def chosen(
    all_ways: dict[str, tuple[Optimizer, DataParallelPart | None]], only: str
) -> dict[str, tuple[Optimizer, DataParallelPart | None]]:
    """Those that --only names, and what they are compared with. Raises UsageError for a name that is none."""
    if not only:
        return all_ways
    names = {name.strip() for name in only.split(";")}
    if unknown := names - all_ways.keys():
        raise UsageError(f"--only {'; '.join(sorted(unknown))}: there are {'; '.join(all_ways)}")
    return {name: way for name, way in all_ways.items() if name in names | {ONE, ASYNC}}


def tell(report: Report, found: dict[str, Learnt], wanted: float) -> None:
    accuracy = Contest(
        "accuracy after all epochs, on rows that nobody trains on", "%", ours=ASYNC, higher_is_better=True
    )
    accuracy.add({name: 100 * learnt.accuracies[-1] for name, learnt in found.items()})
    report.add(accuracy, Target(at_least=100 * wanted))
    took = {name: learnt.epochs_to(wanted) for name, learnt in found.items()}
    reached = {name: float(number) for name, number in took.items() if number}
    if {ONE, ASYNC} <= reached.keys():
        first = Contest(f"epochs until the accuracy is {100 * wanted:g} %", "epochs", ours=ASYNC)
        first.add(reached)
        report.add(first, Target(ONE, at_most=EPOCHS_RATIO_MAX))
    report.facts["never got there"] = ", ".join(name for name, number in took.items() if not number) or "nobody"
    sent = Contest("pushed and fetched, all workers", "MB", ours=LOCAL if LOCAL in found else ASYNC)
    sent.add({name: learnt.sent / 1e6 for name, learnt in found.items() if learnt.sent})
    report.add(sent, *([Target(ASYNC, at_most=BYTES_RATIO_MAX)] if LOCAL in found else []))
    if INT8 in found:
        lost = Contest("int8 with error feedback: accuracy lost against float32", "points", ours=INT8)
        lost.add({INT8: 100 * (max(found[ASYNC].accuracies) - max(found[INT8].accuracies))})
        report.add(lost, Target(at_most=POINTS_LOST_MAX))
    report.series |= {f"{name}: accuracy by epoch": learnt.accuracies for name, learnt in found.items()}


def extend(parser: Any) -> None:
    parser.add_argument("--data", metavar="FOLDER", help="images to learn, such as MNIST's folder; else digits")
    parser.add_argument("--epochs", type=int, metavar="N", help="10, of digits 40; with --quick 3")
    parser.add_argument("--only", default="", metavar="WAYS", help=f"as '{LOCAL}; {INT8}', beside {ONE} and {ASYNC}")
    parser.add_argument("--workers", type=int, default=4, metavar="N", help="model replicas, one per node (4)")


def usable(path: str) -> Path:
    """The path. Raises DataError where nothing is there; what is there is looked at when the first job is made."""
    found = Path(path).expanduser()
    if not found.exists():
        raise DataError(f"there is no {path}; name a folder of images, such as MNIST's")
    return found


if __name__ == "__main__":
    sys.exit(conclude(main))
