"""A machine with one node: its core (or none while it is down), its clock, its disk, and what waits while it is stopped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from p2pnn.types import NodeId
from tests.simulator.clock import Clock
from tests.simulator.disk import Disk

BACKLOG_MAX = 10_000
"""Messages that wait for a stopped process; beyond, they are lost, as full socket buffers would have it."""


class Core(Protocol):
    """The verbs that every core has; `now` is the node's own clock."""

    def receive(self, source: NodeId, message: Any, now: float) -> None: ...

    def get_timer(self) -> float | None: ...

    def handle_timer(self, now: float) -> None: ...

    def messages_to_send(self, now: float) -> list[tuple[NodeId, Any]]: ...

    def next_event(self) -> Any: ...


class Host:
    """core: None while the process is dead. boot: counts its starts. frozen: stopped by SIGSTOP.

    notes: for the scenario's own use, kept over restarts.
    """

    def __init__(self, node: NodeId, clock: Clock, disk: Disk) -> None:
        self.node = node
        self.clock = clock
        self.disk = disk
        self.core: Core | None = None
        self.boot = 0
        self.frozen = False
        self.backlog: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []
        self.armed: float | None = None
        self.synced_at = 0.0
        self.notes: dict[str, Any] = {}
        self._latest = float("-inf")

    def time(self, true_s: float, at_least: float = float("-inf")) -> float:
        """What its clock shows; never less than before, nor than `at_least`: a rounded bit is no reason to go back."""
        clock = self.clock
        now = clock.offset_s + clock.rate * true_s
        if now < at_least:
            now = at_least
        if now > self._latest:
            self._latest = now
        return self._latest

    @property
    def alive(self) -> bool:
        """Whether it runs now: neither dead nor stopped."""
        return self.core is not None and not self.frozen

    def __repr__(self) -> str:
        state = "dead" if self.core is None else "frozen" if self.frozen else "alive"
        return f"Host({self.node[:8]}, boot {self.boot}, {state})"
