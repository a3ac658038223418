"""What the loss of a parameter server costs: a node that is the primary of a shard is killed amid a data-parallel run.

    ./run bench failover [--json] [--quick] [--kills N] [--consistency KIND]

Digits, an MLP 64-128-128-10, `async` by default, four nodes of this machine: two of them train; two shards with a backup each
lie where the planner has them. N times, each on a mesh of its own, a node that is some shard's primary is killed with SIGKILL at
a step drawn by chance. Told are the longest time without a step from then on (progress is told every 0.2 s, so a calm run has
that much), how often the run moved, and the loss on the test rows at the end, against that of calm runs in between.
"""

from __future__ import annotations

import itertools
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks._measure import Contest, Report, Target, arguments, conclude
from p2pnn.cli import follow, prepare, submit
from p2pnn.cli.local import LocalMesh
from p2pnn.cli.request import DataParallelPart, DataPart, MeshPart, ModelPart, Request, TrainPart, check
from p2pnn.errors import P2pnnError
from p2pnn.job.healing import HEAL_S
from p2pnn.job.spec import Optimizer

NODES, WORKERS, SHARDS = 4, 2, 2
EPOCHS, STEPS = 20, 45 * 20
LISTENED = "a"
"""The node that this process listens to; it is not killed."""

SEED = 11
RESUME_S_MAX, LOSS_RATIO_MAX = 2.0, 1.02
CALM_EVERY = 5


@dataclass
class Play:
    """What one run told. steps: (time, step) of each progress event; starts: how often it moved, or began anew."""

    steps: list[tuple[float, int]] = field(default_factory=list)
    loss: float = 0.0
    accuracy: float = 0.0
    starts: int = 0
    killed: float = 0.0
    victim: str = ""

    def pause(self) -> float:
        """The longest time without a step from the kill on, in seconds; of a calm run from its first step on. A move of the run
        onto the nodes that are left, which stops it for a moment, comes later and is not counted."""
        moments, reached = [self.killed or self.steps[0][0]], 0
        for when, step in self.steps:
            if step > reached and moments[0] < when < moments[0] + HEAL_S:
                moments.append(when)
            reached = max(reached, step)
        return max(after - before for before, after in itertools.pairwise(moments))


def prepared(consistency: str) -> submit.Prepared:
    asked = Request(
        name="failover",
        seed=SEED,
        model=ModelPart(source="mlp"),
        data=DataPart(train="digits"),
        train=TrainPart(epochs=EPOCHS, batch_size=32, micro_batches=4, optimizer=Optimizer("adagrad", rate=0.01)),
        mesh=MeshPart(parallel="data"),
        data_parallel=DataParallelPart(consistency=consistency, workers=WORKERS, shards=SHARDS, replicas=2),
    )
    check(asked)
    return prepare.training(asked)


def play(job: submit.Prepared, at: int, dice: random.Random) -> Play:
    """One run to its end; at: the step at which a primary is killed, 0 for never. Raises P2pnnError where it fails."""
    found = Play()
    primaries: list[str] = []
    with LocalMesh(NODES) as mesh:
        name = submit.send(mesh.daemon, job)
        for event in follow.events(mesh.daemon, name):
            match event["kind"]:
                case "plan":
                    names = [share["name"] for share in event["plan"]["nodes"]]
                    primaries = [names[home["nodes"][0]] for home in event["plan"]["shards"]]
                case "progress":
                    found.steps.append((event["time"], event["step"]))
                    if at and not found.killed and event["step"] >= at:
                        found.victim = dice.choice(sorted(set(primaries) - {LISTENED}))
                        found.killed = time.time()
                        mesh.kill(found.victim)
                case "recovered":
                    found.starts += 1
                case "result":
                    [tested] = [one for one in event["evaluation"] if one["split"] == "test"]
                    found.loss, found.accuracy = tested["loss"], tested["metrics"]["accuracy"]
                case "state" if event["state"] == "failed":
                    raise P2pnnError(event["reason"])
    if at and not found.killed:
        raise P2pnnError(f"the job ended before step {at}")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    def more(parser: Any) -> None:
        parser.add_argument("--kills", type=int, default=0, help="how many primaries are killed (50; with --quick 3)")
        parser.add_argument("--consistency", default="async", metavar="KIND", help="async, ssp:S (async)")

    options = arguments(__doc__ or "", argv, more)
    report = Report("failover", options.quick)
    job, dice = prepared(options.consistency), random.Random(SEED)
    calm, struck, failed = list[Play](), list[Play](), 0
    for number in range(options.kills or (3 if options.quick else 50)):
        if number % CALM_EVERY == 0:
            calm.append(play(job, 0, dice))
        at = dice.randrange(STEPS // 10, STEPS * 6 // 10)
        try:
            found = play(job, at, dice)
        except P2pnnError as error:
            failed += 1
            print(f"kill {number + 1}: at step {at}: {error}", file=sys.stderr, flush=True)
            continue
        struck.append(found)
        figures = f"{found.pause():.2f} s without a step, loss {found.loss:.4f}, {found.starts} moves"
        print(f"kill {number + 1}: node {found.victim} at step {at}: {figures}", file=sys.stderr, flush=True)
    if struck:
        pause = Contest("a killed primary: longest time without a step", "s", ours="worst")
        pauses = sorted(found.pause() for found in struck)
        pause.add({"worst": pauses[-1], "median": statistics.median(pauses), "calm": max(map(Play.pause, calm))})
        report.add(pause, Target(at_most=RESUME_S_MAX))
        loss = Contest("loss on the test rows at the end", "nats", ours="a primary killed")
        loss.add({"a primary killed": _mean(struck), "calm": _mean(calm)})
        report.add(loss, Target("calm", at_most=LOSS_RATIO_MAX))
    report.facts = {
        "job": f"digits, MLP, {options.consistency}, {NODES} nodes, {WORKERS} workers, {SHARDS} shards with a backup each",
        "kills": len(struck),
        "failed": failed,
        "moves": sum(found.starts for found in struck),
        "calm runs": len(calm),
    }
    report.series = {
        "seconds without a step": [found.pause() for found in struck],
        "loss": [found.loss for found in struck],
        "loss of calm runs": [found.loss for found in calm],
    }
    return report.end(options)


def _mean(plays: Sequence[Play]) -> float:
    return statistics.mean(found.loss for found in plays)


if __name__ == "__main__":
    sys.exit(conclude(main))
