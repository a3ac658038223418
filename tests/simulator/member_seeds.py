"""One seed of the simulation of membership: a whole mesh, a storm of faults, and the calm in which it must be whole again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final

from p2pnn.cluster import MemberFailed, MemberJoined, MemberSuspected
from p2pnn.types import NodeId
from tests.simulator.faults import FAULTS, Storm
from tests.simulator.mesh import Mesh, address_of
from tests.simulator.world import Violation

STRIKES: Final = tuple(sorted(set(FAULTS) - {"slow disk", "disk failure"}))
"""Disks do not matter here: membership remembers nothing over a restart."""

STORM_S: Final = 40.0
WHOLE_WITHIN_S: Final = 20.0
"""Of virtual time, after the last fault, until everybody has everybody, with the preset `loopback`."""

CALM_S: Final = 10.0
"""After that, in which nobody may be called dead: no old rumour may strike once more."""


@dataclass
class Result:
    """One seed. violation: empty, or the report. void: faults that were planned and never fired. suspicions, deaths, joins: how
    often nodes told that of others. whole_after_s: the time from the last fault until everybody had everybody."""

    seed: int
    violation: str = ""
    fired: Counter[str] = field(default_factory=Counter)
    void: tuple[str, ...] = ()
    steps: int = 0
    nodes: int = 0
    suspicions: int = 0
    deaths: int = 0
    joins: int = 0
    whole_after_s: float = 0.0


def storm(
    seed: int, count: int, faults: Sequence[str], *, command: str = "", every_s: float = 2.0, lasts_s: float = 4.0
) -> Result:
    """So many nodes; strikes by all of these faults. A violation is in the result, not raised. every_s, lasts_s: see `Storm`."""
    mesh = Mesh(seed, "loopback", command=command)
    world, result = mesh.world, Result(seed, fired=mesh.world.fired, nodes=count)
    try:
        nodes = mesh.full(count)
        for node in nodes:
            mesh.joins[node] = [address_of(other) for other in nodes[:2] if other != node]
        mesh.watch_links()
        end = world.now + STORM_S
        Storm(world, faults, end, every_s=every_s, lasts_s=lasts_s)
        world.run(end)
        _calm(mesh, nodes, result)
    except Violation as violation:
        result.violation = str(violation)
    result.void = tuple(fault for fault in faults if not world.fired[fault])
    told = Counter(type(event) for events in mesh.events.values() for _, event in events)
    result.suspicions, result.deaths, result.joins = told[MemberSuspected], told[MemberFailed], told[MemberJoined]
    result.steps = world.steps
    return result


def _calm(mesh: Mesh, nodes: Sequence[NodeId], result: Result) -> None:
    """Raises Violation where the mesh does not become whole, or does not stay so."""
    world, start = mesh.world, mesh.world.now
    if not world.run_until(mesh.complete, WHOLE_WITHIN_S):
        states = {
            node[-2:]: {other[-2:]: state.name for other, state in mesh.states(node).items()} for node in mesh.living()
        }
        raise world.violation(f"not whole within {WHOLE_WITHIN_S:g} s of the last fault: {states}")
    result.whole_after_s = world.now - start
    whole_at = world.now
    world.run(world.now + CALM_S)
    dead = {node[-2:]: [event.node[-2:] for event in mesh.told(node, MemberFailed, whole_at)] for node in nodes}
    if any(dead.values()):
        raise world.violation(f"called dead in the calm: {dead}")
    if not mesh.complete():
        raise world.violation(
            f"whole {result.whole_after_s:.2f} s after the last fault, and not any more {CALM_S:g} s later"
        )


def one_seed(seed: int, *, command: str = "") -> Result:
    """What `./run sim --membership` does with a seed: it draws the mesh's size, the faults, how often they come and how long they
    last. Half of the meshes are of two or three nodes, which have the fewest to ask."""
    random = Random(seed)
    count = random.choice((2, 2, 3, 3, 4, 5, 5, 9))
    chosen = {random.choice(("partition", "one-way partition", "cut")), random.choice(("crash", "freeze"))}
    faults = tuple(sorted({*chosen, *random.sample(STRIKES, random.randint(0, 6))}))
    every_s, lasts_s = random.choice(((1.0, 1.5), (2.0, 4.0), (3.0, 8.0)))
    return storm(
        seed,
        count,
        faults,
        command=command or f"./run sim --membership --seed {seed}",
        every_s=every_s,
        lasts_s=lasts_s,
    )
