"""What goes wrong, when and for how long: a storm of faults that the seed draws, and the calm after it.

A storm strikes again and again until its end, each time with one of the faults that it was given, at a random host (or at
the one that `aim` names: a leader is the most rewarding target), for a random while. Then everything that can be mended is
mended: links are whole, stopped processes go on, dead ones start, disks work. So a run has a phase in which only safety can
be asked for, and one in which liveness can.

A fault counts in `world.fired` when it had an effect: a partition when it stopped a message, a crash when a process died.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from p2pnn.types import NodeId
from tests.simulator.host import Host

if TYPE_CHECKING:
    from tests.simulator.world import World

Undo = Callable[[], None]
Fault = Callable[["World", Host], Undo]


def crash(world: World, host: Host) -> Undo:
    """The process dies and starts again later, with what its disk had synced."""
    if host.core is not None:
        world.fired["crash"] += 1
        world.crash(host.node)
    return lambda: world.boot(host.node)


def power_cut(world: World, host: Host) -> Undo:
    """All processes die at once."""
    down = [other.node for other in world.hosts.values() if other.core is not None]
    world.fired["power cut"] += 1
    for node in down:
        world.crash(node)

    def start_all() -> None:
        for node in down:
            world.boot(node)

    return start_all


def freeze(world: World, host: Host) -> Undo:
    """SIGSTOP, and SIGCONT later."""
    if host.alive:
        world.fired["freeze"] += 1
        world.freeze(host.node)
    return lambda: world.resume(host.node)


def partition(world: World, host: Host) -> Undo:
    """A random set of nodes, `host` among it, is cut off from the rest, both ways."""
    world.network.partition(_side(world, host))
    return world.network.heal


def one_way_partition(world: World, host: Host) -> Undo:
    """Nothing from a random set of nodes arrives outside of it."""
    world.network.partition_one_way(_side(world, host))
    return world.network.heal


def cut(world: World, host: Host) -> Undo:
    """Some single directions of links are closed."""
    others = [node for node in world.hosts if node != host.node]
    for other in world.random.sample(others, world.random.randint(1, len(others))) if others else ():
        pair = (host.node, other) if world.random.random() < 0.5 else (other, host.node)
        world.network.cut(*pair)
    return world.network.heal


def broken_link(world: World, host: Host) -> Undo:
    """The links of a node to some others are reset, each while a message is under way on it, which is lost."""
    others = [node for node in world.hosts if node != host.node]
    chosen = world.random.sample(others, world.random.randint(1, len(others))) if others else []
    pairs = {frozenset((host.node, other)) for other in chosen}
    world.network.fragile |= pairs

    def undo() -> None:
        world.network.fragile -= pairs

    return undo


def _worse(**changes: float) -> Fault:
    """A fault that makes all links worse in one respect."""

    def strike(world: World, host: Host) -> Undo:
        (name, most), before = next(iter(changes.items())), world.network.conditions
        world.network.conditions = replace(before, **{name: most * world.random.uniform(0.1, 1.0)})

        def undo() -> None:
            world.network.conditions = replace(world.network.conditions, **{name: getattr(before, name)})

        return undo

    return strike


def slow_network(world: World, host: Host) -> Undo:
    """Delays up to those of a bad radio link."""
    before = world.network.conditions
    world.fired["slow network"] += 1
    slow_s = 0.2 * world.random.random()
    world.network.conditions = replace(before, delay_s=before.delay_s + slow_s / 4, jitter_s=before.jitter_s + slow_s)

    def undo() -> None:
        now = world.network.conditions
        world.network.conditions = replace(now, delay_s=before.delay_s, jitter_s=before.jitter_s)

    return undo


def slow_disk(world: World, host: Host) -> Undo:
    """Each fsync takes up to two seconds."""
    before, host.disk.delay_s = host.disk.delay_s, 2.0 * world.random.random()
    world.fired["slow disk"] += 1

    def undo() -> None:
        host.disk.delay_s = before

    return undo


def disk_failure(world: World, host: Host) -> Undo:
    """Every fsync fails; counts when one did."""
    host.disk.failing = True

    def undo() -> None:
        host.disk.failing = False

    return undo


def drift(world: World, host: Host) -> Undo:
    """The clock runs up to a third too fast or too slow."""
    world.fired["drift"] += 1
    host.clock.set_rate(2 ** world.random.uniform(-0.4, 0.4), world.now)
    _rearm(world, host)
    return _nothing


FAULTS: dict[str, Fault] = {
    "crash": crash,
    "power cut": power_cut,
    "freeze": freeze,
    "partition": partition,
    "one-way partition": one_way_partition,
    "cut": cut,
    "broken link": broken_link,
    "loss": _worse(loss=0.5),
    "duplication": _worse(duplication=0.5),
    "reordering": _worse(reordering=1.0),
    "slow network": slow_network,
    "slow disk": slow_disk,
    "disk failure": disk_failure,
    "drift": drift,
}
"""Name, as `world.fired` counts it → what strikes."""

ALONE: frozenset[str] = frozenset({"crash", "power cut", "freeze", "slow disk", "disk failure", "drift"})
"""Those that can strike a host without any other."""


class Storm:
    """Strikes by `faults`, names of FAULTS (or of `table`), from now until a true time, by each until it fired, and then by any;
    then the calm.

    every_s: the mean time between strikes; they come faster where so many faults would not find room. lasts_s: the mean time
    until one is undone, a third of it at least. aim: the preferred target now, or None; it is taken every second time.
    patience_s: how much longer it goes on at most while a fault has not fired yet. table: other faults than FAULTS. over: whether
    the calm has begun.
    """

    def __init__(
        self,
        world: World,
        faults: Sequence[str],
        until: float,
        *,
        every_s: float = 1.0,
        lasts_s: float = 1.5,
        aim: Callable[[], NodeId | None] | None = None,
        patience_s: float = 0.0,
        table: Mapping[str, Fault] | None = None,
    ) -> None:
        self._table = FAULTS if table is None else table
        self.over = False
        self.faults = tuple(faults)
        self.until = until
        self.struck: list[tuple[float, str, NodeId]] = []
        self._world = world
        self._every_s = min(every_s, (until - world.now) / (2 * len(faults) + 1))
        self._lasts_s = lasts_s
        self._aim = aim
        self._latest = until + patience_s
        self._calm_conditions = world.network.conditions
        self._calm_disks = {node: host.disk.delay_s for node, host in world.hosts.items()}
        self._undo: list[Undo] = []
        self._unused = world.random.sample(self.faults, len(self.faults))
        if self.faults:
            self._next()
        world.at(until, self._finish)

    def _finish(self) -> None:
        """The end, unless a fault had no effect yet."""
        missing = [name for name in self.faults if not self._world.fired[name]]
        if not missing or self.until >= self._latest:
            self.calm()
            return
        self.until = min(self.until + 2 * self._lasts_s, self._latest)
        self._unused += [name for name in missing if name not in self._unused]
        self._world.at(self.until, self._finish)
        self._next()

    def calm(self) -> None:
        """Mend everything now: the last fault is over."""
        world = self._world
        self.over = True
        world.network.heal()
        world.network.fragile.clear()
        for undo in self._undo:
            undo()
        self._undo.clear()
        world.network.conditions = self._calm_conditions  # overlapping faults may have mended each other's half
        for node, host in list(world.hosts.items()):
            host.disk.failing = False
            host.disk.delay_s = self._calm_disks.get(node, host.disk.delay_s)
            world.resume(node)

    def _next(self) -> None:
        at = self._world.now + self._world.random.expovariate(1 / self._every_s)
        if at < self.until:
            self._world.at(at, self._strike)

    def _strike(self) -> None:
        world, random = self._world, self._world.random
        name = self._unused.pop() if self._unused else random.choice(self.faults)
        host = world.hosts[self._target()]
        self.struck.append((world.now, name, host.node))
        undo = self._table[name](world, host)
        self._undo.append(undo)
        over = world.now + max(self._lasts_s / 3, random.expovariate(1 / self._lasts_s))
        world.at(over, self._end, name, undo)
        self._next()

    def _end(self, name: str, undo: Undo) -> None:
        if undo in self._undo:
            self._undo.remove(undo)
            undo()
            if not self._world.fired[name] and name not in self._unused:
                self._unused.append(name)  # nothing was there to be hit: once more

    def _target(self) -> NodeId:
        """Somebody who runs, if anybody does: most faults need that to have an effect."""
        world = self._world
        aimed = self._aim() if self._aim is not None and world.random.random() < 0.5 else None
        if aimed is not None:
            return aimed
        running = [node for node, host in world.hosts.items() if host.core is not None]
        return world.random.choice(running or list(world.hosts))


def _side(world: World, host: Host) -> list[NodeId]:
    """A random part of the hosts, `host` among it and never all."""
    others = [node for node in world.hosts if node != host.node]
    return [host.node, *world.random.sample(others, world.random.randint(0, max(0, len(others) - 1)))]


def _rearm(world: World, host: Host) -> None:
    """Its timer is due at another true time now."""
    if host.core is not None and not host.frozen:
        world.touch(host, _nothing)


def _nothing() -> None:
    """What is over by itself needs no undoing."""
