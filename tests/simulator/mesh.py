"""Members in the simulated world: what the transport does between `cluster.Membership` and the network, in virtual time.

Each node has an address. Who dials one that answers gets a link, and both ends are told; a process that died refuses, a machine
that is off or cut off does not answer. A link breaks when a process at its end dies (reset), or when nothing passes for
`silent_s` (as the wire's deadline has it). Redials follow with growing delays. The network loses messages inside a link
where the world's conditions say so: harsher than TCP, which repeats them.
"""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import Any

from p2pnn.cluster import PRESETS, Description, Dial, Event, Forget, MemberFailed, Membership, MemberState
from p2pnn.types import Address, NodeId
from tests.simulator.host import Host
from tests.simulator.network import Conditions
from tests.simulator.world import World

TICK_S = 0.1
REFUSED = "refused: nothing listens there"
NO_ROUTE = "no route: no answer in time"


def node_id(number: int) -> NodeId:
    return NodeId(f"{number:032x}")


def number_of(node: NodeId) -> int:
    return int(node, 16)


def address_of(node: NodeId) -> Address:
    number = number_of(node)
    return Address(f"10.0.{number >> 8}.{number & 255}", 7700)


class Mesh:
    """joins: node number → those that it is told to join. silent_s: None lets dead links stay open.

    events: what each node's core told its owner, with the time; over all its boots. failed: all that was said to have failed.
    """

    def __init__(
        self,
        seed: int,
        preset: str = "loopback",
        conditions: Conditions | None = None,
        silent_s: float | None = 5.0,
        command: str = "",
    ) -> None:
        self.preset = PRESETS[preset]
        self.world = World(
            seed, self._start, self._on_event, command=command, conditions=conditions, on_broken=self._broken
        )
        self.joins: dict[NodeId, list[Address]] = {}
        self.events: dict[NodeId, list[tuple[float, Event]]] = {}
        self.failed: list[NodeId] = []
        self.links: dict[frozenset[NodeId], tuple[dict[NodeId, int], list[float]]] = {}
        self.off: set[NodeId] = set()
        self._silent_s = silent_s
        self._dialling: dict[NodeId, dict[Address, int]] = {}
        self._tenants: dict[Address, NodeId] = {}
        self._attempts: set[tuple[NodeId, int, Address]] = set()
        self._ticking = False

    # --- what a test does

    def add(self, number: int, *joins: int, up: bool = True) -> NodeId:
        node = node_id(number)
        self.joins[node] = [address_of(node_id(join)) for join in joins]
        self.events[node] = []
        self._tenants[address_of(node)] = node
        self.world.add(node, up=up)
        return node

    def full(self, count: int) -> list[NodeId]:
        """So many nodes, all linked and all members of each other, without the way there; settled for a while."""
        nodes = [self.add(number) for number in range(1, count + 1)]
        for at, one in enumerate(nodes):
            for other in nodes[:at]:
                self._connect(one, other)
        self.world.run(self.world.now + 5 * self.preset.gossip_interval_s)
        assert self.complete(), "a full mesh of links is no mesh of members"
        return nodes

    def kill(self, node: NodeId) -> None:
        """The process dies: its links are reset, and its port refuses."""
        self.world.crash(node)
        self._check_links()

    def power_off(self, node: NodeId) -> None:
        """The machine is gone: nothing answers any more, and nobody is told."""
        self.off.add(node)
        self.world.crash(node)
        if self._silent_s is not None:
            self._watch()

    def freeze(self, node: NodeId, seconds: float | None = None) -> None:
        self.world.freeze(node)
        self._watch()
        if seconds is not None:
            self.world.after(seconds, self.world.resume, node)

    def boot(self, node: NodeId) -> None:
        self.off.discard(node)
        self.world.boot(node)

    def partition(self, *sides: Iterable[NodeId]) -> None:
        self.world.network.partition(*sides)
        self._watch()

    def cut(self, source: NodeId, target: NodeId) -> None:
        self.world.network.cut(source, target)
        self._watch()

    def watch_links(self) -> None:
        """Look at all links every TICK_S from now on: for faults that the world strikes by itself."""
        self._watch()

    # --- what a test asks

    def core(self, node: NodeId) -> Membership:
        core = self.world.hosts[node].core
        assert isinstance(core, Membership)
        return core

    def living(self) -> list[NodeId]:
        return [node for node, host in self.world.hosts.items() if host.core is not None]

    def members(self, node: NodeId) -> set[NodeId]:
        """The members that a node has, without itself."""
        return {NodeId(member.node) for member in self.core(node).alive()}

    def states(self, node: NodeId) -> dict[NodeId, MemberState]:
        now = self.world.hosts[node].time(self.world.now)
        return {row.node: row.state for row in self.core(node).snapshot(now)}

    def complete(self, among: Iterable[NodeId] | None = None) -> bool:
        """Whether all living nodes, or these, have each other as living members with links."""
        nodes = set(self.living() if among is None else among)
        for node in nodes:
            if not nodes - {node} <= self.members(node):
                return False
            states = self.states(node)
            if any(states[other] is not MemberState.ALIVE for other in nodes - {node}):
                return False
        return True

    def told(self, node: NodeId, kind: type[Any], since: float = 0.0) -> list[Any]:
        return [event for at, event in self.events[node] if isinstance(event, kind) and at >= since]

    # --- the transport

    def _start(self, world: World, host: Host) -> Membership:
        node, now = host.node, host.time(world.now)
        self._dialling[node] = {}
        random = Random(f"{world.seed} {node} {host.boot}")
        core = Membership(node, f"n{number_of(node)}", str(host.boot), self.joins[node], now, random, self.preset)
        core.describe(Description("simulated"), now)
        return core

    def _on_event(self, world: World, host: Host, event: Event) -> None:
        self.events[host.node].append((world.now, event))
        match event:
            case MemberFailed(node):
                self.failed.append(node)
            case Dial(address):
                assert address not in self._dialling[host.node], "dialled twice"
                self._dialling[host.node][address] = 0
                self._plan_attempt(0.001, host.node, host.boot, address)
            case Forget(address):
                del self._dialling[host.node][address]

    def _plan_attempt(self, delay: float, node: NodeId, boot: int, address: Address) -> None:
        if (node, boot, address) not in self._attempts:
            self._attempts.add((node, boot, address))
            self.world.after(delay, lambda: self._attempt(node, boot, address))

    def _attempt(self, node: NodeId, boot: int, address: Address) -> None:
        self._attempts.discard((node, boot, address))
        host = self.world.hosts[node]
        if host.core is None or host.boot != boot or address not in self._dialling[node]:
            return
        target = self._tenants.get(address)
        if host.frozen:
            self._again(node, boot, address)
        elif target is None or target == node:
            self._fail(node, boot, address, "no such host", False)
        elif frozenset((node, target)) in self.links:
            self.world.act(node, lambda core, now: core.dial_reached(address, target, now))
        elif target in self.off or not (self._passes(node, target) and self._passes(target, node)):
            self._fail(node, boot, address, NO_ROUTE, False)
        elif self.world.hosts[target].core is None:
            self._fail(node, boot, address, REFUSED, True)
        elif self.world.hosts[target].frozen:
            self._fail(node, boot, address, "the handshake was not done within 5 s", False)
        else:
            self.world.act(node, lambda core, now: core.dial_reached(address, target, now))
            self._connect(node, target)

    def _fail(self, node: NodeId, boot: int, address: Address, reason: str, refused: bool) -> None:
        self.world.act(node, lambda core, now: core.dial_failed(address, reason, refused, now))
        self._again(node, boot, address)

    def _again(self, node: NodeId, boot: int, address: Address) -> None:
        if address in self._dialling[node]:
            tries = self._dialling[node][address] = self._dialling[node][address] + 1
            delay = min(0.1 * 2 ** min(tries, 6), 5.0) * (0.5 + self.world.random.random() / 2)
            self._plan_attempt(delay, node, boot, address)

    def _connect(self, one: NodeId, other: NodeId) -> None:
        hosts = {node: self.world.hosts[node] for node in (one, other)}
        self.world.network.break_link(one, other)  # what an older link has under way is lost
        self.links[frozenset((one, other))] = ({node: host.boot for node, host in hosts.items()}, [self.world.now])
        for here, there in ((one, other), (other, one)):
            where, name, boot = address_of(there), f"n{number_of(there)}", str(hosts[there].boot)
            if where in self._dialling[here]:
                self._dialling[here][where] = 0
            self.world.act(
                here,
                lambda core, now, there=there, where=where, name=name, boot=boot: core.link_up(
                    there, name, where.host, where.port, boot, now
                ),
            )

    def _broken(self, world: World, host: Host, peer: NodeId) -> None:
        """The world broke a link; called for both ends."""
        if self.links.pop(frozenset((host.node, peer)), None) is not None:
            for here, there in ((host.node, peer), (peer, host.node)):
                world.after(0.0, self._lose, here, there, world.hosts[here].boot, "connection reset")

    def _lose(self, here: NodeId, there: NodeId, boot: int, reason: str) -> None:
        host = self.world.hosts[here]
        if host.core is None or host.boot != boot:
            return
        self.world.touch(host, self._link_down, host, there, reason)
        where = address_of(there)
        if where in self._dialling[here]:
            self._plan_attempt(0.05, here, boot, where)

    def _link_down(self, host: Host, there: NodeId, reason: str) -> None:
        if host.core is not None:
            core: Any = host.core
            core.link_down(there, reason, False, host.time(self.world.now))

    def _watch(self) -> None:
        if not self._ticking:
            self._ticking = True
            self.world.after(TICK_S, self._tick)

    def _tick(self) -> None:
        self._check_links()
        self.world.after(TICK_S, self._tick)

    def _check_links(self) -> None:
        """Break the links of dead processes, and those on which nothing passed for too long."""
        now, hosts = self.world.now, self.world.hosts
        for pair, (boots, heard) in list(self.links.items()):
            one, other = pair
            dead = [n for n in pair if hosts[n].core is None or hosts[n].boot != boots[n]]
            reset = any(n not in self.off for n in dead)
            mute = bool(dead) or any(hosts[n].frozen for n in pair)
            if not mute and not (self._passes(one, other) and self._passes(other, one)):
                mute = True
            if not mute:
                heard[0] = now
            silent = self._silent_s is not None and now - heard[0] >= self._silent_s
            if reset or (mute and silent):
                del self.links[pair]
                self.world.network.break_link(one, other)
                reason = "connection reset" if reset else "nothing was received for 5 s, pings went unanswered"
                for here, there in ((one, other), (other, one)):
                    if here not in dead:
                        self._lose(here, there, boots[here], reason)

    def _passes(self, source: NodeId, target: NodeId) -> bool:
        network = self.world.network
        return not (network._closed or network._cut) or network.passes(source, target)
