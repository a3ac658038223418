"""The engine against torch: by op, by optimizer, and by whole training steps, with the memory of those.

    ./run bench engine [--json] [--quick] [--only TEXT] [--torch-python PATH] [--processor]

Each side runs in a process of its own with one thread; they take turns, round by round. torch need not be installed here: with
--torch-python, or P2PNN_BENCH_PYTHON, its side runs in another environment. Without torch our own figures are printed alone.
On a machine that is busy with other things, --processor counts what each side computes instead of the time that passes.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from functools import partial
from typing import Any

from benchmarks._cases import ALL, MEMORY_AT_MOST, Case
from benchmarks._measure import Contest, Report, Target, arguments, conclude
from benchmarks._torch_python import add_option, torch_python
from benchmarks._worker import Absent, Worker
from p2pnn.errors import UsageError

OURS, TORCH = "p2pnn", "torch"


def main() -> int:
    options = arguments(__doc__ or "", extend=extend)
    report = Report("engine", quick=options.quick)
    cases = chosen(options.only)
    rounds, least_s = (3, 0.02) if options.quick else (15, 0.1)
    python = torch_python(options.torch_python, report)
    for case in cases:
        with ExitStack() as stack:  # new processes for each case, so that its memory is its own
            workers = {OURS: stack.enter_context(Worker(sys.executable, "_ours", *["steps"] * case.steps))}
            if python:
                workers[TORCH] = stack.enter_context(Worker(python, "_torch"))
            measure(report, case, workers, rounds, least_s, "processor_seconds" if options.processor else "seconds")
    return report.end(options)


def extend(parser: Any) -> None:
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases whose name contains TEXT")
    parser.add_argument("--processor", action="store_true", help="count processor time, not time that passes (Linux)")
    add_option(parser)


def chosen(text: str) -> list[Case]:
    """The cases whose name contains the text. Raises UsageError that lists all where there is none."""
    found = [case for case in ALL if text.lower() in case.name.lower()]
    if not found:
        names = "".join(f"\n  {case.name}" for case in ALL)
        raise UsageError(f"--only {text}: no case has that in its name; give a part of one of these:{names}")
    return found


def measure(
    report: Report, case: Case, workers: dict[str, Worker], rounds: int, least_s: float, what: str = "seconds"
) -> None:
    """One case: time in milliseconds, and memory in MiB where it is a whole step."""
    able = {}
    for name, worker in workers.items():
        try:
            worker.ask("prepare", **case.as_record(), least_s=least_s)
            able[name] = worker
        except Absent as reason:
            report.absent[f"{case.name} ({name})"] = str(reason)
    if OURS not in able:
        return
    contest = Contest(case.name, "ms" if what == "seconds" else "ms of a processor", ours=OURS)
    contest.run({name: partial(milliseconds, worker, what) for name, worker in able.items()}, rounds)
    report.add(contest, *([Target(TORCH, at_most=case.at_most)] if case.at_most else []))
    if case.steps:
        memory = Contest(f"{case.name}, memory", "MiB", ours=OURS)
        about = {name: worker.ask("about") for name, worker in able.items()}
        memory.add({name: told["bytes"] / (1 << 20) for name, told in about.items()})
        report.add(memory, Target(TORCH, at_most=MEMORY_AT_MOST))
        predicted_ms = about[OURS]["predicted_s"] * 1e3
        ratio = predicted_ms / contest.median(OURS)
        report.facts[f"{case.name}, predicted"] = f"{predicted_ms:.4g} ms, {ratio:.2f} of what was measured"


def milliseconds(worker: Worker, what: str) -> float:
    return float(worker.ask("round")[what]) * 1e3


if __name__ == "__main__":
    sys.exit(conclude(main))
