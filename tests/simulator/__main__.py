"""`./run sim`: many seeds of the charter's simulation, on all cores, and what came of them.

./run sim                       200 seeds
./run sim --seeds 10000         seeds 1 to 10000
./run sim --seeds 50 --seed 7   seeds 7 to 56
./run sim --seed 7              seed 7 alone: what repeats a failure
./run sim --without "rule 4"    with a rule switched off, which must be caught
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

from p2pnn.cluster.consensus import Consensus
from tests.simulator.ablations import SAFETY, DoesNotRewrite
from tests.simulator.cluster import Result, one_seed

FSYNC = "rule 1, fsync"
WITHOUT: dict[str, type[Consensus]] = {**SAFETY, "rule 2": DoesNotRewrite, FSYNC: Consensus}
CHUNK = 20
"""Seeds that a process takes at once."""


def play(seeds: range, without: str = "") -> Iterator[Result]:
    """These seeds, one after the other, here. without: a key of WITHOUT."""
    core = WITHOUT[without] if without else Consensus
    suffix = f' --without "{without}"' if without else ""
    for seed in seeds:
        yield one_seed(seed, core, command=f"./run sim --seed {seed}{suffix}", lying_disks=without == FSYNC)


def run_seeds(seeds: range, without: str = "") -> list[Result]:
    """The same at once: what a process is given."""
    return list(play(seeds, without))


def run_parallel(seeds: range, without: str, processes: int) -> Iterator[Result]:
    """The same over processes, in the order of the seeds."""
    chunks = [seeds[at : at + CHUNK] for at in range(0, len(seeds), CHUNK)]
    with ProcessPoolExecutor(processes) as pool:
        for results in pool.map(run_seeds, chunks, [without] * len(chunks)):
            yield from results


def main(arguments: list[str]) -> int:
    """0 where no seed found a violation (with a rule switched off: where one did)."""
    options = _parse(arguments)
    seeds = range(options.seed, options.seed + options.seeds)
    processes = min(options.processes, -(-len(seeds) // CHUNK))
    print(
        f"seeds {seeds[0]} to {seeds[-1]}, {processes} processes"
        + (f", without {options.without}" * bool(options.without))
    )
    began = time.perf_counter()
    found = play(seeds, options.without) if processes == 1 else run_parallel(seeds, options.without, processes)
    results = list(_shown(found))
    _report(results, time.perf_counter() - began)
    broken = any(result.violation for result in results)
    return int(broken != bool(options.without))


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="./run sim", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, help="how many; 200, or 1 with --seed alone")
    parser.add_argument("--seed", type=int, help="the first; 1")
    parser.add_argument("--without", default="", choices=sorted(WITHOUT), metavar="RULE", help="; ".join(WITHOUT))
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="all cores")
    options = parser.parse_args(arguments)
    if options.seeds is None:
        options.seeds = 200 if options.seed is None else 1
    options.seed = 1 if options.seed is None else options.seed
    if options.seeds < 1 or options.processes < 1:
        parser.error("--seeds and --processes are at least 1")
    return options


def _shown(results: Iterator[Result]) -> Iterator[Result]:
    """Tells every thousand seeds, and every violation at once: nobody waits an hour for it."""
    for count, result in enumerate(results, 1):
        if result.violation:
            print(f"violation in seed {result.seed}: {result.violation.splitlines()[0]}", flush=True)
        if count % 1000 == 0:
            print(f"{count} seeds", flush=True)
        yield result


def _report(results: list[Result], seconds: float) -> None:
    fired: Counter[str] = Counter()
    for result in results:
        fired.update(result.fired)
    violations = [result for result in results if result.violation]
    whole = [result for result in results if not result.violation]
    void = sum(bool(result.void) for result in results)
    print(f"seeds       {len(results):,} in {seconds:.1f} s, {len(results) / seconds:.1f} per second")
    print(f"steps       {sum(result.steps for result in results):,}")
    print(f"void        {void:,} in which a planned fault never fired; they count for the others")
    print("fired       " + ", ".join(f"{name} {count:,}" for name, count in sorted(fired.items())))
    print(f"elections   {sum(result.elections for result in results):,}")
    print(f"commits     {sum(result.commits for result in results):,}")
    if whole:
        leader = sorted(result.leader_after_s for result in whole)
        commit = sorted(result.commit_after_s for result in whole)
        print(f"leader      after the last fault: {_spread(leader)}")
        print(f"commit      after the last fault: {_spread(commit)}")
    print(f"violations  {len(violations)}")
    for result in violations[:3]:
        print("\n" + result.violation)


def _spread(seconds: list[float]) -> str:
    at = len(seconds) - 1
    return f"median {seconds[at // 2]:.2f} s, p99 {seconds[at * 99 // 100]:.2f} s, most {seconds[-1]:.2f} s"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
