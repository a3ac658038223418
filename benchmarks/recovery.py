"""What snapshots cost, and what a node costs that is killed in the middle of a run: digits, an MLP 64-128-128-10, three nodes.

    ./run bench recovery [--json] [--quick] [--kills N]

First the same job with snapshots (at the interval that they choose by themselves) and without, in turns, on one local mesh:
samples per second, from a quarter of its steps on. Then, N times, each on a mesh of its own: a node that holds a part of the
running job is killed with SIGKILL at a step drawn by chance; told are the seconds from the kill until the job's progress is told
again by the nodes that are left, and the steps that were done twice. Each run's bits must be those of a run that nothing
happened to.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from benchmarks import _jobs
from benchmarks._measure import Contest, Report, Target, arguments, conclude
from p2pnn.cli import follow, prepare, submit
from p2pnn.cli.local import LocalMesh
from p2pnn.cli.request import DataPart, MeshPart, ModelPart, Request, TrainPart
from p2pnn.errors import P2pnnError
from p2pnn.job.spec import Optimizer

WITH, WITHOUT = "with snapshots", "without"
SETTLE = 0.25
VICTIMS = ("b", "c")
"""Node a is the one that this process listens to."""

SEED = 11


def prepared(epochs: int, snapshot_steps: int = -1) -> submit.Prepared:
    """The demonstration's job, for so many epochs of 45 steps."""
    asked = Request(
        name="recovery",
        model=ModelPart(source="mlp"),
        data=DataPart(train="digits"),
        train=TrainPart(epochs=epochs, batch_size=32, micro_batches=4, optimizer=Optimizer("adam", rate=2e-3)),
        mesh=MeshPart(nodes=3),
    )
    found = prepare.training(asked)
    found.spec = msgspec.structs.replace(found.spec, snapshot_steps=snapshot_steps)
    return found


def speed(mesh: LocalMesh, job: submit.Prepared) -> float:
    """Samples per second of a job, from SETTLE of its steps on."""
    told: list[tuple[float, int]] = []

    def show(event: dict[str, Any]) -> None:
        if event["kind"] == "progress" and event["step"] >= SETTLE * job.spec.steps:
            told.append((event["time"], event["step"]))

    _jobs.run(mesh, job, show)
    (first, since), (last, until) = told[0], told[-1]
    return (until - since) * job.spec.batch_size / (last - first)


def kill(job: submit.Prepared, victim: str, at: int) -> tuple[float, int, float, str]:
    """Kill a node at a step: seconds until progress is told again, steps redone, seconds as the mesh tells them, bits."""
    with LocalMesh(3) as mesh:
        name = submit.send(mesh.daemon, job)
        killed = again = 0.0
        recovered: dict[str, Any] = {}
        bits = ""
        for event in follow.events(mesh.daemon, name):
            if event["kind"] == "progress" and not killed and event["step"] >= at:
                killed = time.time()
                mesh.kill(victim)
            elif event["kind"] == "recovered":
                recovered = event
            elif event["kind"] in ("progress", "epoch") and recovered and not again:
                again = event["time"]
            elif event["kind"] == "result":
                bits = event["bits"]
            elif event["kind"] == "state" and event["state"] == "failed":
                raise P2pnnError(event["reason"])
        if not recovered:
            raise P2pnnError(f"the job ended before node {victim} was missed; its bits are {bits}")
        return again - killed, recovered["redone"], recovered["seconds"], bits


def main(argv: Sequence[str] | None = None) -> int:
    def more(parser: Any) -> None:
        parser.add_argument("--kills", type=int, default=0, help="how many nodes are killed (50; with --quick 3)")

    options = arguments(__doc__ or "", argv, more)
    report = Report("recovery", options.quick)
    rounds, epochs = (2, 10) if options.quick else (9, 40)
    with LocalMesh(3) as mesh:
        both = {WITH: prepared(epochs), WITHOUT: prepared(epochs, 0)}
        contest = Contest("digits, MLP, 3 nodes on one machine", "samples/s", ours=WITH, higher_is_better=True)
        contest.run({name: lambda job=job: speed(mesh, job) for name, job in both.items()}, rounds)  # type: ignore[misc]
        report.add(contest, Target(WITHOUT, at_least=0.95))
        job = prepared(12)
        undisturbed = (_jobs.run(mesh, job, lambda event: None).result or {})["bits"]
    dice = random.Random(SEED)
    seconds: list[float] = []
    redone: list[int] = []
    differing = failed = 0
    for number in range(options.kills or (3 if options.quick else 50)):
        victim, at = VICTIMS[number % 2], dice.randrange(60, 360)
        try:
            waited, steps, told, bits = kill(job, victim, at)
        except P2pnnError as error:
            failed += 1
            print(f"kill {number + 1}: node {victim} at step {at}: {error}", file=sys.stderr, flush=True)
            continue
        seconds.append(waited)
        redone.append(steps)
        differing += bits != undisturbed
        figures = f"{waited:.2f} s ({told:.2f} s until all ran), {steps} redone, {bits}"
        print(f"kill {number + 1}: node {victim} at step {at}: {figures}", file=sys.stderr, flush=True)
    if seconds:
        time_lost = Contest("a killed node: until progress is told again", "s", ours="worst")
        time_lost.add({"worst": max(seconds), "median": statistics.median(seconds)})
        report.add(time_lost, Target(at_most=5.0))
        twice = Contest("a killed node: steps done twice", "steps", ours="worst")
        twice.add({"worst": float(max(redone)), "median": float(statistics.median(redone))})
        report.add(twice, Target(at_most=8.0))
    report.facts = {"kills": len(seconds), "not gone on": failed, "other bits than undisturbed": differing}
    report.series = {"seconds": seconds, "redone": redone}
    return report.end(options)


if __name__ == "__main__":
    sys.exit(conclude(main))
