"""The apply path of a parameter-server shard against the same optimizer from memory to memory.

    ./run bench ps_apply [--json] [--quick] [--processor]

A push of a whole network (784-2048-2048-2048-10, one shard) lies in its slot; its way through the shard is measured, from the
arrival of its parts to the answer: checks of header and age, finite values, norm, log, update in blocks, and (ssp) the
second buffer. Beside it, on arrays of the same size: the update alone with the same code and the same BLAS, and two passes of
numpy. Bytes received are not copied by either side: a transport receives into the slot. One thread; on a machine that is
busy with other things, --processor counts what the thread computes instead of the time that passes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks._measure import Contest, Report, Target, arguments, conclude
from p2pnn.engine.numpy import blas
from p2pnn.job.spec import Optimizer
from p2pnn.ps.consistency import Settings, consistency
from p2pnn.ps.layout import Slots, part_sizes
from p2pnn.ps.messages import Push, Worker
from p2pnn.ps.shard import Shard
from p2pnn.ps.sharding import cut
from p2pnn.ps.space import Entry, Flat, Space
from p2pnn.train.optimizers import Updater
from p2pnn.types import NodeId

OURS, UPDATE, NUMPY = "shard", "the update alone", "numpy, two passes"
WIDTHS = (784, 2048, 2048, 2048, 10)
RATE = 1e-6
AT_LEAST = 0.7
"""Of what updates in place; ssp also writes a second buffer, which has no such limit."""

Clock = Callable[[], float]


def main() -> int:
    options = arguments(__doc__ or "", extend=extend)
    report = Report("ps_apply", quick=options.quick)
    rounds = 5 if options.quick else 30
    with threadpool_limits(1):
        for kind in ("sgd", "adagrad", "adam"):
            for how in ("async", "ssp:4"):
                measure(report, kind, how, rounds, time.thread_time if options.processor else time.perf_counter)
    return report.end(options)


def extend(parser: Any) -> None:
    parser.add_argument("--processor", action="store_true", help="count processor time, not time that passes")


def measure(report: Report, kind: str, how: str, rounds: int, clock: Clock) -> None:
    optimizer = Optimizer(kind, RATE, schedule="constant")
    space = network()
    contestants = {OURS: through_a_shard(space, optimizer, how), UPDATE: update_alone(space.size, optimizer)}
    if kind == "sgd":
        contestants[NUMPY] = two_passes(space.size)
    contest = Contest(f"{kind}, {how}", "M elements/s", ours=OURS, higher_is_better=True)
    contest.run({name: speed(run, space.size, clock) for name, run in contestants.items()}, rounds, warm_up=2)
    report.add(contest, *([Target(UPDATE, at_least=AT_LEAST)] if how == "async" else []))


def network() -> Space:
    entries, at = [], 0
    for layer, (rows, columns) in enumerate(pairwise(WIDTHS)):
        for name, shape in ((f"fc{layer}/weight", (columns, rows)), (f"fc{layer}/bias", (columns,))):
            size = int(np.prod(shape))
            entries.append(Entry(name, shape, at, at + size, len(shape) > 1, layer))
            at += size
    return Space(entries)


def arrays(size: int) -> tuple[Flat, Flat]:
    random = np.random.default_rng(1)
    return random.standard_normal(size, np.float32), random.standard_normal(size, np.float32)


def through_a_shard(space: Space, optimizer: Optimizer, how: str) -> Callable[[], None]:
    w, g = arrays(space.size)
    sharding = cut(space, 1)
    (held,) = sharding.shards
    worker = Worker(NodeId("0" * 32))
    settings = Settings(consistency(how))
    slots = Slots.of(part_sizes(held, settings.push), 1)
    lies = g.view(np.uint8)[: slots.nbytes]  # every push is the same, in one slot
    shard = Shard(held, w, optimizer, settings, [worker], slot=lambda worker, number: lies, combine=blas.combine)
    state = [0]

    def push() -> None:
        sequence = state[0] = state[0] + 1
        for part in held.parts:
            header = Push(worker, 0, sequence, part.index, 4 * part.size, sequence - 1, sequence - 1)
            shard.arrived(header, 0.0)
        assert shard.work(0.0)
        answer = shard.next_answer(0.0)
        assert answer is not None
        assert answer.refusal is None
        shard.answer_sent(answer, 0.0)

    return push


def update_alone(size: int, optimizer: Optimizer) -> Callable[[], None]:
    w, g = arrays(size)
    updater = Updater(optimizer, blas.combine)
    slots = {name: np.zeros_like(w) for name in updater.slots}
    state = [0]

    def update() -> None:
        updater.update(w, g, slots, rate=RATE, step=state[0])
        state[0] += 1

    return update


def two_passes(size: int) -> Callable[[], None]:
    w, g = arrays(size)
    scratch = np.empty_like(w)

    def update() -> None:
        np.multiply(g, np.float32(RATE), out=scratch)
        np.subtract(w, scratch, out=w)

    return update


def speed(run: Callable[[], None], size: int, clock: Clock) -> Callable[[], float]:
    def measured() -> float:
        before = clock()
        run()
        return size / (clock() - before) / 1e6

    return measured


if __name__ == "__main__":
    conclude(main)
