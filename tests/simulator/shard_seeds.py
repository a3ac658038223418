"""One seed of the simulation of replicated shards: what it draws."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from p2pnn.replication.limits import Timing
from p2pnn.replication.replica import Replica
from tests.simulator.faults import FAULTS
from tests.simulator.network import Conditions
from tests.simulator.shard_charter import CharteredShards, VoterHost
from tests.simulator.shard_manager import ManagerHost
from tests.simulator.shards import Result, Shards

STRIKES = tuple(sorted(set(FAULTS) - {"slow disk", "disk failure", "power cut"} | {"slow host"}))
"""Disks do not matter here: a shard lives in memory."""


def one_seed(
    seed: int,
    replica: type[Replica] = Replica,
    manager: type[ManagerHost] = ManagerHost,
    names_processes: bool = True,
    *,
    command: str = "",
) -> Result:
    """What `./run sim --shards` does with a seed: it draws R, the hosts, the faults, the tempers, and the storm's length. In
    every eighth the real charter decides."""
    random = Random(seed)
    copies = random.choice((2, 2, 3, 3, 4))
    chosen = {random.choice(("partition", "one-way partition", "cut")), "crash"}
    faults = tuple(sorted({*chosen, *random.sample(STRIKES, random.randint(0, 4))}))
    nervous = random.random() < 0.5
    timing = Timing()
    if nervous:
        timing = replace(
            timing,
            beat_s=0.05,
            resend_s=0.1,
            silence_s=0.25,
            slow_s=0.4,
            steady_s=0.05,
            steady_max_s=0.2,
            push_again_s=0.1,
        )
    is_chartered = manager is ManagerHost and random.random() < 0.125
    shards = (CharteredShards if is_chartered else Shards)(
        seed,
        copies,
        random.randint(1, 3),
        replica,
        VoterHost if is_chartered else manager,
        command=command or f"./run sim --shards --seed {seed}",
        timing=timing,
        conditions=Conditions(0.005, 0.02) if nervous else Conditions(),
        names_processes=names_processes,
    )
    shards.push_every_s = random.choice((0.03, 0.06, 0.1))
    shards.whims = random.choice((0.02, 0.05, 0.05, 0.2))
    shards.lost_after_s, shards.sees_deaths = random.choice(((0.5, False), (2.0, True), (2.0, True)))
    shards.fault_every_s, shards.fault_lasts_s = random.choice(((0.3, 0.4), (0.6, 0.6), (1.0, 1.5)))
    return shards.run(faults, random.uniform(3.0, 7.0))
