"""A node's disk: one value, replaced whole, and durable only when its fsync has ended, which is an event that comes later.

What was written and not yet synced when the power goes may be found afterwards or not: the dice say, as a real disk's cache
would. A failed fsync leaves the old value, and sometimes the new one, unsaid. With `lies` the disk says "synced" at once and
loses what it has not written yet: that is a program without fsync, for ablations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.simulator.host import Host
    from tests.simulator.world import World


class Disk:
    """content: what a start would read now; None before the first write.

    delay_s: of one fsync, times 0.5 to 1.5. failing: every fsync ends in an error.
    """

    def __init__(self, delay_s: float = 0.002) -> None:
        self.content: Any = None
        self.delay_s = delay_s
        self.failing = False
        self.lies = False
        self._unsynced: list[Any] = []

    def write(self, world: World, host: Host, value: Any, done: Callable[[bool], None]) -> None:
        """Begin to replace the content. done(True) or done(False) is called when the fsync has ended, if the process lives.

        Writes end in the order in which they began.
        """
        boot = host.boot
        self._unsynced.append(value)
        delay_s = self.delay_s * (0.5 + world.random.random())
        if self.lies:
            world.after(0.0, self._answer, world, host, boot, done, True)
            delay_s += 0.05
        at = max(world.now + delay_s, host.synced_at)
        host.synced_at = at
        world.at(at, self._synced, world, host, boot, value, done)

    def power_lost(self, world: World) -> None:
        """The process and the cache are gone: of the unsynced writes a random number, oldest first, are on the disk."""
        if self._unsynced:
            world.fired["torn write"] += 1
            reached = 0 if self.lies else world.random.randint(0, len(self._unsynced))
            if reached and not self.failing:
                self.content = self._unsynced[reached - 1]
            self._unsynced.clear()

    def wipe(self) -> None:
        """Another disk, empty."""
        self.content = None
        self._unsynced.clear()

    def _synced(self, world: World, host: Host, boot: int, value: Any, done: Callable[[bool], None]) -> None:
        if host.boot != boot:
            return
        self._unsynced.pop(0)
        if self.failing:
            world.fired["disk failure"] += 1
        if not self.failing or world.random.random() < 0.3:  # the rename was done, and only the folder's fsync failed
            self.content = value
        if not self.lies:
            self._answer(world, host, boot, done, not self.failing)

    @staticmethod
    def _answer(world: World, host: Host, boot: int, done: Callable[[bool], None], kept: bool) -> None:
        """A frozen process learns of it when it goes on."""
        if host.boot == boot and host.core is not None:
            world.touch(host, done, kept)
