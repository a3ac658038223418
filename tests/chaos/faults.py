"""What happens to a node, how long it lasts, and how it ends. Each fault is a few lines, in the words of `tests.chaos.mesh`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.chaos import cables, disk
from tests.chaos.mesh import Mesh

DEAD_S = 8.0
"""In what time a silent member counts as dead: the preset `loopback`."""

Do = Callable[[Mesh, str], Awaitable[str]]


@dataclass(frozen=True)
class Fault:
    """begin and end return what they did, for the report; end is called `lasts_s` after begin, 0 for when all else is seen.

    gone_s: when the others know that the victim is not there: 0 at once, None never, for they need not. lost: what the victim
    had in memory is lost. unheard: nobody hears the victim. unreachable: the victim cannot serve while it lasts.
    alone: where the fault parts the mesh, how many are on the victim's side. cabled: the nodes live in network namespaces.
    """

    begin: Do
    end: Do
    lasts_s: float = 0.0
    gone_s: float | None = 0.0
    alone: int = 0
    everybody: bool = False
    silent: bool = False
    cabled: bool = False
    needs: Callable[[], str] = lambda: ""


async def kill(m: Mesh, victim: str) -> str:
    m.kill(victim)
    return ""


async def start_again(m: Mesh, victim: str) -> str:
    await m.start(victim, cold=True)
    return ""


async def stop(m: Mesh, victim: str) -> str:
    m.stop(victim)
    return ""


async def go_on(m: Mesh, victim: str) -> str:
    m.go_on(victim)
    return ""


async def cut(m: Mesh, victim: str) -> str:
    m.isolate(victim)
    return ""


async def unplug(m: Mesh, victim: str) -> str:
    the_cables(m).pull(victim)
    return ""


async def plug_in(m: Mesh, victim: str) -> str:
    the_cables(m).plug_in(victim)
    return ""


async def mute(m: Mesh, victim: str) -> str:
    m.isolate(victim, one_way=True)
    return ""


async def deafen(m: Mesh, victim: str) -> str:
    for other in m.nodes:
        if other != victim:
            m.cut(other, victim, one_way=True)
    return ""


async def heal(m: Mesh, victim: str) -> str:
    m.heal_all()
    return f"{sum(way.held for way in m.switch.ways.values())} things waited"


async def reset(m: Mesh, victim: str) -> str:
    return f"{m.reset(victim)} connections reset"


async def slow(m: Mesh, victim: str) -> str:
    m.slow(victim, delay_s=0.05, bytes_per_s=1e6)
    return ""


async def fill(m: Mesh, victim: str) -> str:
    return f"{m.disks[victim].fill()} bytes taken"


async def free(m: Mesh, victim: str) -> str:
    m.disks[victim].free()
    return ""


async def part(m: Mesh, victim: str) -> str:
    """The victim and one that nothing depends on, on one side; all others on the other."""
    side = {victim, spare(m, victim)}
    m.partition(side, set(m.nodes) - side)
    return f"{''.join(sorted(side))} apart"


async def power_cut(m: Mesh, victim: str) -> str:
    m.kill(*m.nodes)
    return ""


async def power_back(m: Mesh, victim: str) -> str:
    await asyncio.gather(*(m.start(name, cold=True) for name in m.nodes))
    return ""


def spare(m: Mesh, victim: str) -> str:
    """Who else is cut off with the victim: the last node, or the one before."""
    return next(name for name in reversed(m.nodes) if name != victim)


def the_cables(m: Mesh) -> cables.Cables:
    assert m.cables is not None, "the nodes of this mesh have no cables"
    return m.cables


async def nothing(m: Mesh, victim: str) -> str:
    return ""


FAULTS: dict[str, Fault] = {
    "kill": Fault(kill, start_again),
    "restart": Fault(kill, start_again, lasts_s=0.01),
    "stop-1": Fault(stop, go_on, lasts_s=1.0, gone_s=None, silent=True),
    "stop-5": Fault(stop, go_on, lasts_s=5.0, gone_s=DEAD_S, silent=True),
    "stop-30": Fault(stop, go_on, lasts_s=30.0, gone_s=DEAD_S, silent=True),
    "cut": Fault(cut, heal, lasts_s=15.0, gone_s=DEAD_S, alone=1, silent=True),
    "unplug": Fault(
        unplug, plug_in, lasts_s=15.0, gone_s=DEAD_S, alone=1, silent=True, cabled=True, needs=cables.missing
    ),
    "mute": Fault(mute, heal, lasts_s=15.0, gone_s=DEAD_S, alone=1, silent=True),
    "deaf": Fault(deafen, heal, lasts_s=15.0, gone_s=DEAD_S, alone=1, silent=True),
    "reset": Fault(reset, nothing, gone_s=None),
    "slow": Fault(slow, heal, lasts_s=8.0, gone_s=None),
    "full-disk": Fault(fill, free, lasts_s=5.0, gone_s=None, needs=disk.missing),
    "partition": Fault(part, heal, lasts_s=15.0, gone_s=DEAD_S, alone=2, silent=True),
    "power-cut": Fault(power_cut, power_back, lasts_s=0.5, everybody=True),
}
