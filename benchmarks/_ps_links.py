"""The parts of `./run bench ps` whose links are shaped: compression, and numbers of workers and shards."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from itertools import pairwise

from benchmarks import _classification as work
from benchmarks import _shaped
from benchmarks._jobs import Mesh
from benchmarks._measure import Contest, Report, Target
from benchmarks._ps_jobs import Kind, prepared, train
from benchmarks.mesh import Effort
from p2pnn.cli.request import DataParallelPart
from p2pnn.errors import P2pnnError

BATCH = 128
LINKS = {"100 Mbit/s": 100_000_000, "1 Gbit/s": 1_000_000_000}
COMPRESSIONS = ("float32", "bf16", "int8")
STEPS = {"100 Mbit/s": 24, "1 Gbit/s": 80}
QUICK_STEPS = {"100 Mbit/s": 8, "1 Gbit/s": 12}
"""The first ones are computed while the link fills: of these few, too many for the figures of a quick run to say much."""

TARGETS = {"100 Mbit/s": {"bf16": 1.7, "int8": 2.5}}
"""Ours divided by float32 at the same link."""

SHARDS = (1, 2, 4)
WORKERS = (1, 2, 4, 8)
WAIT_S = 0.4
WAITING = Kind(8, None, (512, 512))
"""A network of 669,706 parameters; its rows only say which step it is."""

STEPS_EACH = 12
"""Of each worker."""


def compression(report: Report, rows: work.Rows, *, quick: bool) -> None:
    """Every step pushes and fetches, in three encodings, over links of two rates."""
    for link, bits_per_s in LINKS.items():
        try:
            with _shaped.ShapedMesh(3, bits_per_s) as mesh:
                measured = _encodings(mesh, rows, link, quick=quick)
        except P2pnnError as error:
            report.absent[f"compression over {link}"] = str(error)
            continue
        for name in COMPRESSIONS[1:]:
            samples = {one: measured[one] for one in (name, "float32")}
            contest = Contest(f"{name} both ways over {link}", "samples/s", name, True, samples)
            least = TARGETS.get(link, {}).get(name)
            report.add(contest, *([Target("float32", at_least=least)] if least else []))


def _encodings(mesh: Mesh, rows: work.Rows, link: str, *, quick: bool) -> dict[str, list[float]]:
    jobs = {
        name: prepared(
            rows,
            Kind(
                BATCH, DataParallelPart(workers=2, shards=1, replicas=1, push_compression=name, pull_compression=name)
            ),
            (QUICK_STEPS if quick else STEPS)[link],
        )
        for name in COMPRESSIONS
    }
    measured: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(1 if quick else 3):
        for name, job in jobs.items():
            effort = train(mesh, job)
            measured[name].append(effort.samples_per_s)
            _say(f"round {number + 1}, {link}, {name}", effort)
    return measured


def scaling(report: Report, *, quick: bool) -> None:
    """Numbers of workers that wait where they would compute, for numbers of shards: which link is full, and when."""
    link, bits_per_s = next(iter(LINKS.items()))
    counts = WORKERS[1::2] if quick else WORKERS
    with ExitStack() as stack:
        try:
            mesh = stack.enter_context(_shaped.ShapedMesh(max(counts) + max(SHARDS), bits_per_s, WAIT_S))
            measured = _numbers(mesh, counts, rounds=1 if quick else 3, each=STEPS_EACH // (2 if quick else 1))
        except P2pnnError as error:
            report.absent["numbers of workers and shards"] = str(error)
            return
    for workers, samples in measured.items():
        name = f"{workers} worker{'s' * (workers > 1)} that wait {WAIT_S:g} s a step in place of computing, {link}"
        report.add(Contest(name, "steps/s", _shards(SHARDS[-1]), True, samples))
    widths = (work.WIDTHS[0], *WAITING.hidden, work.WIDTHS[-1])
    nbytes = 4 * sum((inputs + 1) * outputs for inputs, outputs in pairwise(widths))
    most = bits_per_s / 8 / nbytes
    report.facts["a server's link is full"] = (
        f"at {most:.1f} steps/s per shard ({nbytes / 1e6:.2f} MB of gradients a step through one link of {link}); workers alone "
        f"would make {1 / WAIT_S:g} steps/s each"
    )
    report.facts["one worker"] = "its first shard is on its own node, where the planner puts it"


def _numbers(mesh: Mesh, counts: tuple[int, ...], rounds: int, each: int) -> dict[int, dict[str, list[float]]]:
    rows = work.make_up(WAITING.batch * each * max(counts))
    measured: dict[int, dict[str, list[float]]] = {n: {_shards(s): [] for s in SHARDS} for n in counts}
    for number in range(rounds):
        for workers in counts:
            for shards in SHARDS:
                kind = Kind(WAITING.batch, DataParallelPart(workers=workers, shards=shards, replicas=1), WAITING.hidden)
                effort = train(mesh, prepared(rows, kind, workers * each), apart=workers > 1)
                measured[workers][_shards(shards)].append(effort.samples_per_s / kind.batch)
                _say(f"round {number + 1}, {workers} workers, {_shards(shards)}", effort)
    return measured


def _shards(count: int) -> str:
    return f"{count} shard{'s' * (count > 1)}"


def _say(what: str, effort: Effort) -> None:
    print(f"  {what}: {effort.samples_per_s:,.1f} samples/s", file=sys.stderr, flush=True)
