"""The world itself: one seed repeats everything, each fault has its effect, and a void or broken run says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from p2pnn.types import NodeId
from tests.simulator.clock import Clock
from tests.simulator.faults import FAULTS, Storm
from tests.simulator.host import Host
from tests.simulator.network import Conditions
from tests.simulator.world import Violation, World

A, B, C = NodeId("a"), NodeId("b"), NodeId("c")


class Gossip:
    """A core that counts: every 100 ms it tells its highest number, plus one, to the others; it stores what it hears."""

    def __init__(self, node: NodeId, peers: list[NodeId], now: float, kept: int) -> None:
        self.node, self.peers, self.number, self.kept = node, peers, kept, kept
        self.heard: list[tuple[float, NodeId, int]] = []
        self.times = [now]
        self.due = now + 0.1
        self.outbox: list[tuple[NodeId, Any]] = []
        self.events: list[int] = []

    def receive(self, source: NodeId, message: Any, now: float) -> None:
        self.times.append(now)
        self.heard.append((now, source, message))
        if message > self.number:
            self.number = message
            self.events.append(message)

    def get_timer(self) -> float | None:
        return self.due

    def handle_timer(self, now: float) -> None:
        assert now >= self.due
        self.times.append(now)
        self.due = now + 0.1
        self.outbox += [(peer, self.number + 1) for peer in self.peers if peer != self.node]

    def messages_to_send(self, now: float) -> list[tuple[NodeId, Any]]:
        outbox, self.outbox = self.outbox, []
        return outbox

    def next_event(self) -> int | None:
        return self.events.pop(0) if self.events else None


def world_of(seed: int, nodes: tuple[NodeId, ...] = (A, B, C), **options: Any) -> World:
    def start(world: World, host: Host) -> Gossip:
        return Gossip(host.node, list(nodes), host.clock.local(world.now), host.disk.content or 0)

    def on_event(world: World, host: Host, number: int) -> None:
        def done(kept: bool) -> None:
            if kept and isinstance(host.core, Gossip):
                host.core.kept = max(host.core.kept, number)

        host.disk.write(world, host, number, done)

    world = World(seed, start, on_event, **options)
    for node in nodes:
        world.add(node, clock=Clock(world.random.uniform(0, 1000), world.random.uniform(0.99, 1.01)))
    return world


def core(world: World, node: NodeId) -> Gossip:
    found = world.hosts[node].core
    assert isinstance(found, Gossip)
    return found


def test_one_seed_is_one_run() -> None:
    def history(seed: int) -> tuple[object, ...]:
        world = world_of(seed)
        Storm(world, list(FAULTS), 20.0)
        world.run(30.0)
        return world.steps, world.network.delivered, dict(world.fired), core(world, A).heard

    assert history(1) == history(1)
    assert history(1) != history(2)


def test_a_storm_fires_every_fault_and_leaves_all_whole() -> None:
    world = world_of(4)
    storm = Storm(world, list(FAULTS), 120.0, every_s=0.5)
    world.run(120.0)
    world.require(FAULTS)
    assert {name for _, name, _ in storm.struck} == set(FAULTS)
    world.fired.clear()
    world.run(125.0)
    assert all(host.alive for host in world.hosts.values())
    assert {"loss", "partition", "cut", "disk failure"}.isdisjoint(world.fired)
    assert len({core(world, node).number for node in (A, B, C)}) <= 2, "they hear of each other again"


def test_no_clock_ever_goes_back() -> None:
    world = world_of(5)
    Storm(world, ["drift", "freeze", "slow network"], 60.0)
    world.run(60.0)
    for node in (A, B, C):
        assert core(world, node).times == sorted(core(world, node).times)


def test_a_partition_stops_both_ways_and_a_one_way_partition_one() -> None:
    world = world_of(6, (A, B))
    world.network.partition([A], [B])
    world.run(5.0)
    assert not core(world, A).heard
    assert not core(world, B).heard
    world.network.partition_one_way([A])
    world.run(10.0)
    assert core(world, A).heard
    assert not core(world, B).heard
    world.network.heal()
    world.run(11.0)
    assert core(world, B).heard
    world.require(["partition", "one-way partition"])


def test_links_keep_order_unless_told_otherwise() -> None:
    def numbers(conditions: Conditions) -> list[int]:
        world = world_of(7, (A, B), conditions=conditions)
        for number in range(200):
            world.at(1 + number / 1e6, world.act, A, lambda one, now, n=number: one.outbox.append((B, n - 1000)))
        world.run(1.05)
        return [number for _, source, number in core(world, B).heard if number < 0]

    assert numbers(Conditions(jitter_s=0.001)) == list(range(-1000, -800))
    mixed = numbers(Conditions(jitter_s=0.001, reordering=0.5))
    assert mixed != sorted(mixed)


def test_a_frozen_node_hears_everything_when_it_goes_on() -> None:
    world = world_of(8, (A, B))
    world.run(1.0)
    before = len(core(world, B).heard)
    world.freeze(B)
    world.run(3.0)
    assert len(core(world, B).heard) == before
    world.resume(B)
    heard = core(world, B).heard[before:]
    assert len(heard) >= 15
    assert len({now for now, _, _ in heard}) == 1, "all at the moment when it goes on"
    world.run(4.0)
    assert core(world, B).due > world.hosts[B].clock.local(4.0) - 0.2


def test_a_crash_forgets_what_was_not_synced() -> None:
    world = world_of(9, (A, B))
    world.run(5.0)
    assert world.hosts[A].disk.content == core(world, A).kept > 0
    world.hosts[A].disk.delay_s = 1e9
    world.run(6.0)
    number, kept = core(world, A).number, world.hosts[A].disk.content
    assert number > kept
    world.crash(A)
    world.run(7.0)
    world.boot(A)
    assert kept <= core(world, A).number <= number
    assert world.fired["torn write"]


def test_a_disk_that_lies_loses_what_it_said_it_had() -> None:
    world = world_of(10, (A, B))
    world.hosts[A].disk.lies = True
    world.hosts[A].disk.delay_s = 10.0
    world.run(5.0)
    assert core(world, A).kept > 0
    world.crash(A)
    world.boot(A)
    assert core(world, A).number == 0


@pytest.mark.parametrize("how", ["check", "core", "void"])
def test_what_goes_wrong_names_the_command_that_repeats_it(how: str) -> None:
    def check(world: World, host: Host) -> None:
        assert how != "check" or world.now < 1, "one second is enough"

    world = world_of(11, checks=[check], command="./run sim --seed 11")

    def break_core(one: Gossip, now: float) -> None:
        raise KeyError("broken")

    if how == "core":
        world.at(1.0, world.act, A, break_core)
    run: Callable[[], None] = (lambda: world.require(["crash"])) if how == "void" else (lambda: world.run(2.0))
    with pytest.raises(Violation, match=r"(?s)seed 11.*repeat: \./run sim --seed 11$"):
        run()


def test_thousands_of_nodes() -> None:
    nodes = tuple(NodeId(f"{number}") for number in range(2000))

    def start(world: World, host: Host) -> Gossip:
        return Gossip(host.node, [nodes[(int(host.node) + 1) % len(nodes)]], 0.0, 0)

    world = World(12, start)
    for node in nodes:
        world.add(node)
    world.run(1.0)
    assert world.network.delivered >= 9 * len(nodes)
