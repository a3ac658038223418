"""`./run sim`: many seeds of a simulation, on all cores, and what came of them: the charter, shards, training, or membership.

./run sim                       200 seeds
./run sim --seeds 10000         seeds 1 to 10000
./run sim --seeds 50 --seed 7   seeds 7 to 56
./run sim --seed 7              seed 7 alone: what repeats a failure
./run sim --without "rule 4"    with a rule switched off, which must be caught
./run sim --shards              the same for replicated shards
./run sim --training            the same for workers that train on a replicated shard
./run sim --membership          the same for membership (SWIM), which has no rules to switch off here
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

from p2pnn.cluster.consensus import Consensus
from tests.simulator.ablations import SAFETY, DoesNotRewrite
from tests.simulator.cluster import Result, one_seed
from tests.simulator.leasing import play as play_leased_seed
from tests.simulator.member_seeds import Result as MemberResult
from tests.simulator.member_seeds import one_seed as one_member_seed
from tests.simulator.shard_ablations import SHARD_RULES, Ablation
from tests.simulator.shard_seeds import one_seed as one_shard_seed
from tests.simulator.shards import Result as ShardResult
from tests.simulator.training import play as play_training_seed

FSYNC = "rule 1, fsync"
WITHOUT: dict[str, type[Consensus]] = {**SAFETY, "rule 2": DoesNotRewrite, FSYNC: Consensus}
AnyResult = TypeVar("AnyResult", Result, ShardResult, MemberResult)
AnyResults = Sequence[Result] | Sequence[ShardResult] | Sequence[MemberResult]
LEASED_EVERY = 4
"""Of the seeds of training every fourth is of workers that train what is leased to them, and die."""

CHUNK = 20
"""Seeds that a process takes at once."""


def play(seeds: range, without: str = "") -> Iterator[Result]:
    """These seeds, one after the other, here. without: a key of WITHOUT."""
    core = WITHOUT[without] if without else Consensus
    suffix = f' --without "{without}"' if without else ""
    for seed in seeds:
        yield one_seed(seed, core, command=f"./run sim --seed {seed}{suffix}", lying_disks=without == FSYNC)


def play_shards(seeds: range, without: str = "") -> Iterator[ShardResult]:
    """The same of replicated shards. without: a key of SHARD_RULES."""
    ablation = SHARD_RULES[without] if without else Ablation()
    suffix = f' --without "{without}"' if without else ""
    for seed in seeds:
        yield one_shard_seed(seed, *ablation, command=f"./run sim --shards --seed {seed}{suffix}")


def play_members(seeds: range, without: str = "") -> Iterator[MemberResult]:
    """The same of membership. without: empty."""
    assert not without
    for seed in seeds:
        yield one_member_seed(seed)


def run_seeds(seeds: range, without: str = "") -> list[Result]:
    """The seeds at once: what a process is given."""
    return list(play(seeds, without))


def run_shard_seeds(seeds: range, without: str = "") -> list[ShardResult]:
    """The same of replicated shards."""
    return list(play_shards(seeds, without))


def play_training(seeds: range, without: str = "") -> Iterator[ShardResult]:
    """The same of workers on a replicated shard, some of whom train what is leased to them. without: a key of SHARD_RULES
    whose replica differs."""
    ablation = SHARD_RULES[without] if without else Ablation()
    suffix = f' --without "{without}"' if without else ""
    for seed in seeds:
        one = play_leased_seed if seed % LEASED_EVERY == 0 else play_training_seed
        yield one(seed, ablation.replica, command=f"./run sim --training --seed {seed}{suffix}")[1]


def run_training_seeds(seeds: range, without: str = "") -> list[ShardResult]:
    """The same of those."""
    return list(play_training(seeds, without))


def run_member_seeds(seeds: range, without: str = "") -> list[MemberResult]:
    """The same of membership."""
    return list(play_members(seeds, without))


def run_parallel(
    run: Callable[[range, str], list[AnyResult]], seeds: range, without: str, processes: int
) -> Iterator[AnyResult]:
    """The seeds over processes, in their order. run: one of those above."""
    chunks = [seeds[at : at + CHUNK] for at in range(0, len(seeds), CHUNK)]
    with ProcessPoolExecutor(processes) as pool:
        for results in pool.map(run, chunks, [without] * len(chunks)):
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
    broken = RUNS[options.run](seeds, options.without, processes, began)
    return int(broken != bool(options.without))


def _run(seeds: range, without: str, processes: int, began: float) -> bool:
    """Play the seeds and report; whether a promise was broken."""
    found = play(seeds, without) if processes == 1 else run_parallel(run_seeds, seeds, without, processes)
    results = list(_shown(found))
    _report(results, time.perf_counter() - began)
    print(f"elections   {sum(result.elections for result in results):,}")
    print(f"commits     {sum(result.commits for result in results):,}")
    whole = [result for result in results if not result.violation]
    if whole:
        print(f"leader      after the last fault: {_spread(sorted(result.leader_after_s for result in whole))}")
        print(f"commit      after the last fault: {_spread(sorted(result.commit_after_s for result in whole))}")
    return _report_violations(results)


def _run_shards(seeds: range, without: str, processes: int, began: float) -> bool:
    """The same of replicated shards."""
    found = play_shards(seeds, without) if processes == 1 else run_parallel(run_shard_seeds, seeds, without, processes)
    return _report_shards(list(_shown(found)), began)


def _run_training(seeds: range, without: str, processes: int, began: float) -> bool:
    """The same of workers on a replicated shard."""
    one_process = processes == 1
    found = (
        play_training(seeds, without) if one_process else run_parallel(run_training_seeds, seeds, without, processes)
    )
    return _report_shards(list(_shown(found)), began)


def _report_shards(results: Sequence[ShardResult], began: float) -> bool:
    """What came of them; whether a promise was broken."""
    _report(results, time.perf_counter() - began)
    lost = sum(result.is_lost for result in results)
    print(f"lost        {lost:,} in which the whole in-sync set died: safety was checked until then")
    print(f"updates     {sum(result.acknowledged for result in results):,} acknowledged")
    print(f"changes     {sum(result.configurations for result in results):,} of the configuration")
    print(f"promotions  {sum(result.promotions for result in results):,} of learners that were in sync before")
    print(f"states      {sum(result.transfers for result in results):,} sent to learners")
    whole = [result for result in results if not result.violation and not result.is_lost]
    if whole:
        print(f"resumed     after the last fault: {_spread(sorted(result.resumed_after_s for result in whole))}")
    return _report_violations(results)


def _run_members(seeds: range, without: str, processes: int, began: float) -> bool:
    """The same of membership."""
    play_here = processes == 1
    found = play_members(seeds, without) if play_here else run_parallel(run_member_seeds, seeds, without, processes)
    results = list(_shown(found))
    _report(results, time.perf_counter() - began)
    print(f"suspicions  {sum(result.suspicions for result in results):,}")
    print(f"deaths      {sum(result.deaths for result in results):,} told")
    print(f"joins       {sum(result.joins for result in results):,}")
    if whole := [result for result in results if not result.violation]:
        print(f"whole       after the last fault: {_spread(sorted(result.whole_after_s for result in whole))}")
    return _report_violations(results)


RUNS: dict[str, Callable[[range, str, int, float], bool]] = {
    "charter": _run,
    "shards": _run_shards,
    "training": _run_training,
    "membership": _run_members,
}


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="./run sim", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, help="how many; 200, or 1 with --seed alone")
    parser.add_argument("--seed", type=int, help="the first; 1")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--shards", action="store_const", dest="run", const="shards", help="of replicated shards instead of the charter"
    )
    what.add_argument(
        "--training", action="store_const", dest="run", const="training", help="of workers on a replicated shard"
    )
    what.add_argument(
        "--membership",
        action="store_const",
        dest="run",
        const="membership",
        help="of membership instead of the charter",
    )
    parser.set_defaults(run="charter")
    told = f"{'; '.join(WITHOUT)}; with --shards or --training {'; '.join(SHARD_RULES)}"
    parser.add_argument("--without", default="", metavar="RULE", help=told)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="all cores")
    options = parser.parse_args(arguments)
    if options.seeds is None:
        options.seeds = 200 if options.seed is None else 1
    options.seed = 1 if options.seed is None else options.seed
    if options.without and options.run == "membership":
        parser.error("--without switches no rule of membership off; tests/simulator/test_membership.py does")
    rules = SHARD_RULES if options.run in ("shards", "training") else WITHOUT
    if options.without and options.without not in rules:
        parser.error(f"--without {options.without!r} is no rule; one of: {'; '.join(rules)}")
    if options.seeds < 1 or options.processes < 1:
        parser.error("--seeds and --processes are at least 1")
    return options


def _shown(results: Iterator[AnyResult]) -> Iterator[AnyResult]:
    """Tells every thousand seeds, and every violation at once: nobody waits an hour for it."""
    for count, result in enumerate(results, 1):
        if result.violation:
            print(f"violation in seed {result.seed}: {result.violation.splitlines()[0]}", flush=True)
        if count % 1000 == 0:
            print(f"{count} seeds", flush=True)
        yield result


def _report(results: AnyResults, seconds: float) -> None:
    fired: Counter[str] = Counter()
    for result in results:
        fired.update(result.fired)
    void = sum(bool(result.void) for result in results)
    print(f"seeds       {len(results):,} in {seconds:.1f} s, {len(results) / seconds:.1f} per second")
    print(f"steps       {sum(result.steps for result in results):,}")
    print(f"void        {void:,} in which a planned fault never fired; they count for the others")
    print("fired       " + ", ".join(f"{name} {count:,}" for name, count in sorted(fired.items())))


def _report_violations(results: AnyResults) -> bool:
    violations = [result for result in results if result.violation]
    print(f"violations  {len(violations)}")
    for result in violations[:3]:
        print("\n" + result.violation)
    return bool(violations)


def _spread(seconds: list[float]) -> str:
    at = len(seconds) - 1
    return f"median {seconds[at // 2]:.2f} s, p99 {seconds[at * 99 // 100]:.2f} s, most {seconds[-1]:.2f} s"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
