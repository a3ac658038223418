"""`./run chaos`: real daemons, a role, a fault and a phase at a time; what was promised, whether it was kept, in what time.

    ./run chaos                                 the whole matrix, some minutes to some hours
    ./run chaos --only 'coordinator/kill/*'     the cells whose names match; * stands for anything
    ./run chaos --only holder/kill/training --repeat 50
    ./run chaos --list                          the names of all cells: ROLE/FAULT/PHASE
    ./run chaos --counting 300                  so many kills amid data-parallel runs that count their pushes: half an hour

One line per cell; below it each promise that was not kept, and the one command that repeats the cell. Exit status 1 where one
was not kept. A cell is skipped with the reason where this machine cannot have its fault (a full disk takes root, and so does a
pulled cable), and void where the fault did not happen to anybody or what comes before it failed.
"""

from __future__ import annotations

import argparse
import asyncio
import fnmatch
import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

from tests.chaos import counting
from tests.chaos.cells import EPOCHS, Cell, Run, matrix, undisturbed
from tests.chaos.faults import FAULTS
from tests.chaos.findings import Outcome
from tests.support import warm

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="./run chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", metavar="PATTERN", help="cells to play; may be repeated")
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="play each cell N times  [default: 1]")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the first play  [default: 0]")
    parser.add_argument("--secured", action="store_true", help="with keys and TLS, as on machines of a network")
    parser.add_argument("--counting", type=int, metavar="N", help="no cells: N kills amid runs that count their pushes")
    parser.add_argument("--json", action="store_true", help="print one JSON object per cell, and nothing else")
    parser.add_argument("--list", action="store_true", help="print the names of the cells and end")
    arguments = parser.parse_args(words)
    cells = [cell for cell in matrix() if matches(cell, arguments.only or ["*"])]
    if not cells:
        parser.error(f"no cell matches {' '.join(arguments.only)}; --list names them all")
    if arguments.repeat < 1:
        parser.error("--repeat must be at least 1")
    if arguments.list:
        print("\n".join(str(cell) for cell in cells))
        return 0
    if arguments.counting is not None and arguments.counting < 1:
        parser.error("--counting must be at least 1")
    if arguments.counting and (arguments.only or arguments.secured or arguments.json or arguments.repeat > 1):
        parser.error("--counting plays no cells: it goes with --seed alone")
    try:
        if arguments.counting:
            return asyncio.run(count(arguments.counting, arguments.seed))
        return asyncio.run(play(cells, arguments.repeat, arguments.seed, arguments.json, arguments.secured))
    except KeyboardInterrupt:
        return 130
    finally:
        warm.close()


def matches(cell: Cell, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatch(str(cell), pattern) for pattern in patterns)


def end_by_signals() -> None:
    """From now on a signal that ends a program cancels the task that says so."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None

    def end() -> None:
        """Once: another signal must not break off the cleaning up."""
        for number in ENDING:
            loop.add_signal_handler(number, lambda: None)
        task.cancel()

    for number in ENDING:
        loop.add_signal_handler(number, end)


async def count(kills: int, seed: int) -> int:
    """Kill so many amid runs that count. The exit status."""
    end_by_signals()
    with tempfile.TemporaryDirectory(prefix="p2pnn-chaos-") as folder:
        try:
            return await counting.play(folder, kills, seed, lambda line: print(line, flush=True))
        except asyncio.CancelledError:
            print("interrupted", file=sys.stderr)
            return 130


async def play(cells: list[Cell], repeat: int, seed: int, as_json: bool, secured: bool) -> int:
    """Play the cells one after the other, tell of each, and sum up. The exit status."""
    end_by_signals()
    for need in {FAULTS[cell.fault].needs for cell in cells}:
        need()  # before the first process is started
    outcomes: list[Outcome] = []
    bits: dict[int, str] = {}
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="p2pnn-chaos-") as folder:
        try:
            for number in range(repeat):
                for cell in cells:
                    epochs = EPOCHS[cell.phase]
                    if epochs not in bits:
                        bits[epochs] = await undisturbed(Path(tempfile.mkdtemp(dir=folder)), epochs)
                    run = Run(cell, seed + number, bits[epochs], secured=secured)
                    outcomes.append(await run.play(Path(tempfile.mkdtemp(dir=folder))))
                    tell(outcomes[-1], as_json)
        except asyncio.CancelledError:
            print("interrupted", file=sys.stderr)
            return 130
        finally:
            if outcomes and not as_json:
                print("\n".join(summary(outcomes, time.monotonic() - begin)))
    return 1 if any(one.broken for one in outcomes) else 0


def tell(one: Outcome, as_json: bool) -> None:
    print(json.dumps(one.as_json()) if as_json else "\n".join(lines(one)), flush=True)


def lines(one: Outcome) -> Iterator[str]:
    """What is printed of a cell."""
    kept = [str(finding) for finding in one.found if finding.kept and finding.figure is not None]
    plain = [finding for finding in one.found if finding.kept and finding.figure is None]
    said = one.skipped or one.void or ", ".join([*kept, f"{len(plain)} more kept"])
    yield f"{one.cell:<34} {one.verdict:<9} {one.seconds:6.1f} s   {said}"
    for finding in one.broken:
        yield f"    {finding}"
    if one.broken or one.void:
        yield f"    again: ./run chaos --only {one.cell} --seed {one.seed}{one.flags}"


def summary(outcomes: list[Outcome], seconds: float) -> Iterator[str]:
    """Each figure over all cells, by fault: how many, the median, the worst, and the limit."""
    figures: dict[tuple[str, str], list[tuple[float, str, str, float | None]]] = {}
    for one in outcomes:
        for found in one.found:
            if found.figure is not None:
                key = (one.cell.split("/")[1], found.promise)
                figures.setdefault(key, []).append((found.figure, one.cell, found.unit, found.limit))
    if figures:
        yield ""
        yield f"{'fault':<11} {'promise':<16} {'times':>5} {'median':>8} {'worst':>8} {'limit':>7}   worst in"
    for (fault, promise), found_ in sorted(figures.items()):
        worst, cell, unit, _ = max(found_)
        limits = {limit for _, _, _, limit in found_}
        limit = "–" if limits == {None} else f"{limits.pop():g}" if len(limits) == 1 else "varies"
        middle = median(figure for figure, _, _, _ in found_)
        yield f"{fault:<11} {promise:<16} {len(found_):>5} {middle:>8.2f} {worst:>8.2f} {limit:>7}   {cell} {unit}".rstrip()
    verdicts = [one.verdict for one in outcomes]
    counts = {word: verdicts.count(word) for word in ("kept", "NOT KEPT", "void", "skipped")}
    said = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    yield ""
    yield f"{len(outcomes)} cells in {seconds:.0f} s: {said}"


if __name__ == "__main__":
    sys.exit(main())
