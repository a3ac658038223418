"""A world of sans-IO cores under virtual time: one seed decides everything, so a failure repeats with one command.

The world keeps a heap of what happens next. It takes the earliest, moves its clock there, and lets the one host that it
concerns act: a message arrives, a timer is due, an fsync has ended. Then it does what an adapter does: it routes the core's
events, sends its messages into the network and arms its timer. After every such step the checks look at the host that acted.

It knows no protocol. A scenario gives it three functions: `start(world, host)` makes a core from what lies on the host's
disk; `on_event(world, host, event)` is the adapter's routing; each of `checks` raises AssertionError where a promise is
broken. Faults are in `tests.simulator.faults`; `fired` counts those that really had an effect. A run in which a planned
fault never fired is void: `require` says so.

    world = World(seed, start, on_event, command=f"./run sim --seed {seed}")
    for node in nodes:
        world.add(node)
    world.run(until=60.0)

Time is in true seconds from 0; a core sees its host's own clock.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable, Iterable
from random import Random
from typing import Any

from p2pnn.types import NodeId
from tests.simulator.clock import Clock
from tests.simulator.disk import Disk
from tests.simulator.host import BACKLOG_MAX, Core, Host
from tests.simulator.network import Conditions, Network

STEPS_MAX = 50_000_000
ROUNDING_S = 1e-6
"""The way there and back through a drifting clock loses some bits: a timer that is due within so much is due."""

TOLD = 60
"""Steps that a failure's report tells, the newest last."""

Start = Callable[["World", Host], Core]
OnEvent = Callable[["World", Host, Any], None]
Check = Callable[["World", Host], None]


class Violation(AssertionError):
    """A promise was broken, or a core raised. The message ends with the command that repeats it."""


class World:
    """command: what a person types to see this run again. on_broken(world, host, peer): a link broke under a living host.

    through: what every message passes on its way, as an encoder and decoder.
    """

    def __init__(
        self,
        seed: int,
        start: Start,
        on_event: OnEvent | None = None,
        *,
        checks: Iterable[Check] = (),
        command: str = "",
        conditions: Conditions | None = None,
        on_broken: Callable[[World, Host, NodeId], None] | None = None,
        through: Callable[[Any], Any] | None = None,
        tell: int = TOLD,
    ) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.now = 0.0
        self.fired: Counter[str] = Counter()
        self.network = Network(self.random, self.fired, conditions)
        self.hosts: dict[NodeId, Host] = {}
        self.checks: list[Check] = list(checks)
        self.command = command
        self.steps = 0
        self.on_broken = on_broken
        self.through = through
        self._start = start
        self._on_event = on_event
        self._heap: list[tuple[float, int, Callable[..., Any], tuple[Any, ...]]] = []
        self._count = 0
        self._told: deque[tuple[float, str, NodeId, NodeId | None, Any]] = deque(maxlen=tell)

    # --- hosts

    def add(self, node: NodeId, *, clock: Clock | None = None, disk: Disk | None = None, up: bool = True) -> Host:
        """A new host; its node starts now unless `up` is false."""
        assert node not in self.hosts, f"{node} is there already"
        host = self.hosts[node] = Host(node, clock or Clock(), disk or Disk())
        if up:
            self.boot(node)
        return host

    def boot(self, node: NodeId) -> None:
        """Start the node of a host that is down; nothing where it runs."""
        host = self.hosts[node]
        if host.core is None:
            host.boot += 1
            self._tell("start", node, host.boot)
            host.frozen = False
            host.core = self._guard(self._start, self, host)
            self._settle(host)

    def crash(self, node: NodeId) -> None:
        """Power off: the core is gone, and what its disk had not synced may be."""
        host = self.hosts[node]
        if host.core is not None:
            self._tell("crash", node, None)
            host.core, host.frozen, host.armed = None, False, None
            host.boot += 1
            host.synced_at = 0.0
            host.backlog.clear()
            host.disk.power_lost(self)

    def freeze(self, node: NodeId) -> None:
        """SIGSTOP: nothing happens there, messages wait, time goes on."""
        if self.hosts[node].core is not None:
            self._tell("freeze", node, None)
            self.hosts[node].frozen = True

    def resume(self, node: NodeId) -> None:
        """SIGCONT: what waited is done, in its order, before or after the timers that are due meanwhile."""
        host = self.hosts[node]
        if not host.frozen:
            return
        self._tell("resume", node, len(host.backlog))
        host.frozen = False
        if self.random.random() < 0.5:
            self._due(host, host.armed)
        backlog, host.backlog = host.backlog, []
        for do, arguments in backlog:
            self.touch(host, do, *arguments)
        if host.core is not None and host.armed is not None:
            self.at(max(self.now, host.armed), self._due, host, host.armed)

    def break_link(self, one: NodeId, other: NodeId) -> None:
        """The link between two nodes is reset: what is under way is lost, and both are told."""
        self.network.break_link(one, other)
        for node, peer in ((one, other), (other, one)):
            host = self.hosts[node]
            if host.core is not None and self.on_broken is not None:
                self.touch(host, self.on_broken, self, host, peer)

    def act(self, node: NodeId, do: Callable[..., Any], *arguments: Any) -> Any:
        """Let somebody at a node call its core, as `do(core, now of its clock, *arguments)`; None where it is not running."""
        host = self.hosts[node]
        if not host.alive:
            return None
        return self.touch(host, do, host.core, host.time(self.now), *arguments)

    # --- time

    def at(self, time: float, do: Callable[..., Any], *arguments: Any) -> None:
        """Have `do(*arguments)` called at a true time; of equal times the one that was asked for first."""
        self._count += 1
        heapq.heappush(self._heap, (time, self._count, do, arguments))

    def after(self, seconds: float, do: Callable[..., Any], *arguments: Any) -> None:
        self.at(self.now + seconds, do, *arguments)

    def run(self, until: float) -> None:
        """Let everything happen up to a true time. Raises Violation."""
        heap, pop, steps = self._heap, heapq.heappop, self.steps
        while heap and heap[0][0] <= until:
            self.now, _, do, arguments = pop(heap)
            self.steps += 1
            do(*arguments)
            if self.steps - steps > STEPS_MAX:
                raise self.violation(f"more than {STEPS_MAX} steps: something here feeds itself")
        self.now = max(self.now, until)

    def run_until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Run until the condition holds after a step; whether it did within so much virtual time."""
        end = self.now + timeout_s
        while not condition():
            if not self._heap or self._heap[0][0] > end:
                self.now = end
                return False
            self.step()
        return True

    def step(self) -> None:
        """The next thing happens."""
        self.now, _, do, arguments = heapq.heappop(self._heap)
        self.steps += 1
        assert self.steps < STEPS_MAX, f"{self.steps} steps: something here feeds itself; repeat: {self.command}"
        do(*arguments)

    # --- what happened

    def violation(self, what: object) -> Violation:
        """What to raise where a promise is broken: the reason, the last steps, and the command that repeats it."""
        told = "\n".join(
            f"  {time:10.4f} {verb:8} {node[:8]} {'' if source is None else source[:8] + ': '}{what}"
            for time, verb, node, source, what in self._told
        )
        return Violation(
            f"{what}\n{told}\nat {self.now:.4f} s of virtual time, step {self.steps}, seed {self.seed}"
            f"\nfaults fired: {dict(self.fired)}\nrepeat: {self.command or f'the same test with seed {self.seed}'}"
        )

    def require(self, faults: Iterable[str]) -> None:
        """Raise Violation where one of these faults never fired: such a run shows nothing."""
        missing = [fault for fault in faults if not self.fired[fault]]
        if missing:
            raise self.violation(f"void run: {', '.join(missing)} never fired")

    # --- inside

    def touch(self, host: Host, do: Callable[..., Any], *arguments: Any) -> Any:
        """Let a host act: at once, or when it goes on if it is frozen. Then send, route, arm and check."""
        if host.core is None:
            return None
        if host.frozen:
            if len(host.backlog) < BACKLOG_MAX:
                host.backlog.append((do, arguments))
            return None
        try:
            result = do(*arguments)
        except Violation:
            raise
        except Exception as error:
            raise self.violation(f"{type(error).__name__}: {error}") from error
        self._settle(host)
        return result

    def _settle(self, host: Host) -> None:
        """The three beats of every adapter, then the checks."""
        core = host.core
        assert core is not None
        try:
            while (event := core.next_event()) is not None:
                self._tell("event", host.node, event)
                if self._on_event is not None:
                    self._on_event(self, host, event)
                if host.core is not core:
                    return  # the scenario crashed it
            for target, message in core.messages_to_send(host.time(self.now)):
                self._send(host, target, message)
            timer = core.get_timer()
            for check in self.checks:
                check(self, host)
        except Violation:
            raise
        except Exception as error:
            raise self.violation(f"{type(error).__name__}: {error}") from error
        if timer is None:
            host.armed = None
        else:
            self._arm(host, timer)

    def _arm(self, host: Host, timer: float) -> None:
        """Have `_due` called then, or before: one that comes early looks again, which is cheaper than to move it."""
        due = max(host.clock.true(timer), self.now)
        armed = host.armed
        if armed is None or due < armed:
            host.armed = due
            self.at(due, self._due, host, due)

    def _send(self, host: Host, target: NodeId, message: Any) -> None:
        source = host.node
        if self.through is not None:
            message = self.through(message)
        if target == source:
            self.after(0.0, self._deliver, source, target, message, 0)
            return
        network = self.network
        if network.fragile and (pair := frozenset((source, target))) in network.fragile:
            network.fragile.discard(pair)
            self.after(network.conditions.delay_s * self.random.random(), self.break_link, source, target)
        epoch = network.epoch(source, target)
        for arrival in network.arrivals(source, target, self.now):
            self.at(arrival, self._deliver, source, target, message, epoch)

    def _deliver(self, source: NodeId, target: NodeId, message: Any, epoch: int) -> None:
        host = self.hosts.get(target)
        if host is None or host.core is None:
            return
        network = self.network
        if epoch != network.epoch(source, target):
            self.fired["broken link"] += 1
            return
        if source != target and network.is_cut and not network.passes(source, target):
            return
        network.delivered += 1
        self._told.append((self.now, "receive", target, source, message))
        self.touch(host, self._receive, host, source, message)

    def _receive(self, host: Host, source: NodeId, message: Any) -> None:
        if host.core is not None:
            host.core.receive(source, message, host.time(self.now))

    def _due(self, host: Host, armed: float | None) -> None:
        """A timer of the host; stale where it was re-armed since."""
        if host.frozen or host.core is None or armed is None or host.armed != armed or armed > self.now:
            return
        host.armed = None
        timer = host.core.get_timer()
        if timer is None:
            return
        if host.time(self.now) < timer - ROUNDING_S:  # the clock's rate has changed since
            self._arm(host, timer)
        else:
            self.touch(host, host.core.handle_timer, host.time(self.now, timer))

    def _guard(self, do: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return do(*arguments)
        except Violation:
            raise
        except Exception as error:
            raise self.violation(f"{type(error).__name__}: {error}") from error

    def _tell(self, verb: str, node: NodeId, what: Any) -> None:
        self._told.append((self.now, verb, node, None, what))
