"""Membership: one node told by hand, and small meshes in the simulated world, with one seed each."""

from __future__ import annotations

import dataclasses
from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnn.cluster import (
    Description,
    Dial,
    Event,
    Forget,
    Limits,
    LinkLost,
    LinkRestored,
    MemberDescribed,
    MemberFailed,
    MemberJoined,
    MemberLeft,
    MemberRefuted,
    Membership,
    MemberSnapshot,
    MemberState,
    MemberSuspected,
    NameTaken,
)
from p2pnn.types import Address, NodeId
from p2pnn.wire.messages import Fact, Gossip, Life, Member, Roster
from tests.simulator.mesh import Mesh, address_of, node_id

DEADLINE_S = 20.0


def address(number: int) -> Address:
    return Address("127.0.0.1", 7000 + number)


class Bench:
    """Node `number`, fed by hand."""

    def __init__(self, number: int = 1, *joins: Address, name: str = "a", limits: Limits | None = None) -> None:
        self.node = node_id(number)
        self.core = Membership(self.node, name, "b", joins, 0.0, Random(1), limits=limits)
        self.described: list[MemberDescribed] = []

    def events(self, *but: type[Event]) -> list[Event]:
        found = []
        while (event := self.core.next_event()) is not None:
            found.append(event)
        self.described += [event for event in found if isinstance(event, MemberDescribed)]
        return [event for event in found if not isinstance(event, (*but, MemberDescribed))]

    def link(self, number: int, name: str = "", boot: str = "x", now: float = 0.0, port: int = 0) -> None:
        where = address(number)
        self.core.link_up(node_id(number), name or f"n{number}", where.host, port or where.port, boot, now)

    def row(self, number: int, now: float = 0.0) -> MemberSnapshot:
        (row,) = [row for row in self.core.snapshot(now) if row.node == node_id(number)]
        return row


def told(number: int, life: Life = Life.ALIVE, incarnation: int = 1, by: str = "", boot: str = "x") -> Fact:
    where = address(number)
    return Fact(node_id(number), f"n{number}", where.host, where.port, boot, incarnation, life, by, "why")


def member(number: int, boot: str = "x") -> Member:
    where = address(number)
    return Member(node_id(number), f"n{number}", where.host, where.port, boot)


# --- one node


def test_a_link_makes_a_member_and_hearsay_does_not() -> None:
    bench = Bench()
    bench.link(2)
    assert bench.events() == [MemberJoined(member(2))]
    bench.core.receive(node_id(2), Gossip((told(3),)), 1.0)
    assert bench.events() == [Dial(address(3))]
    assert bench.core.alive() == (member(2),)
    assert bench.row(3).state is MemberState.CONNECTING
    bench.core.dial_failed(address(3), "no route", False, 2.0)
    assert (bench.row(3).state, bench.row(3).reason) == (MemberState.UNREACHABLE, "no route")
    bench.link(3, now=3.0)
    assert MemberJoined(member(3)) in bench.events()


def test_a_broken_link_makes_a_suspect_and_no_failure_and_its_return_is_told() -> None:
    bench = Bench()
    bench.link(2)
    bench.events()
    bench.core.link_down(node_id(2), "connection reset", False, 1.0)
    bench.core.link_down(node_id(2), "again", False, 1.5)
    assert bench.events(Dial) == [
        LinkLost(node_id(2), "connection reset"),
        MemberSuspected(node_id(2), node_id(1), "connection reset"),
    ]
    row = bench.row(2, now=4.0)
    assert (row.state, row.reason, row.since_s, row.by) == (MemberState.SUSPECT, "connection reset", 3.0, ("a",))
    assert bench.core.alive() == ()
    bench.link(2, now=2.0)
    assert bench.events(Forget) == [LinkRestored(member(2))]
    bench.core.receive(node_id(2), Gossip((told(2, incarnation=2),)), 2.1)
    assert bench.events() == [MemberRefuted(node_id(2))]
    assert bench.row(2).state is MemberState.ALIVE


def test_a_restarted_node_fails_and_joins_again_when_it_has_superseded_its_former_self() -> None:
    bench = Bench()
    bench.link(2)
    bench.core.receive(node_id(2), Gossip((told(2, incarnation=5),)), 0.5)
    bench.core.link_down(node_id(2), "it was restarted", False, 1.0)
    bench.events()
    bench.link(2, boot="y", now=1.0)
    assert bench.events(Dial, Forget) == [MemberFailed(node_id(2), "it was restarted")]
    bench.core.receive(node_id(2), Gossip((told(2, incarnation=1, boot="y"),)), 1.1)
    assert bench.events() == [], "it has not heard yet what is said of it"
    bench.core.receive(node_id(2), Gossip((told(2, incarnation=6, boot="y"),)), 1.2)
    assert bench.events() == [MemberJoined(member(2, boot="y"))]


def test_a_goodbye_is_no_failure_and_late_words_revive_nobody() -> None:
    bench = Bench()
    for number in (2, 3):
        bench.link(number)
    bench.events()
    bench.core.link_down(node_id(3), "it was stopped", True, 1.0)
    assert bench.events() == [MemberLeft(node_id(3))]
    bench.core.receive(node_id(2), Roster((member(3),)), 2.0)
    bench.core.receive(node_id(2), Gossip((told(3, incarnation=0),)), 2.0)
    assert bench.events() == []
    assert bench.row(3).state is MemberState.LEFT
    bench.core.receive(node_id(2), Gossip((told(3, incarnation=2, boot="y"),)), 3.0)
    assert bench.events() == [Dial(address(3))], "it was started again, says somebody"


def test_what_others_say_of_a_member_is_shown_with_who_says_so() -> None:
    bench = Bench()
    for number in (2, 3, 4):
        bench.link(number)
    bench.events()
    bench.core.receive(node_id(2), Gossip((told(3, Life.SUSPECT, by=node_id(2)),)), 1.0)
    bench.core.receive(node_id(4), Gossip((told(3, Life.SUSPECT, by=node_id(4)),)), 1.0)
    assert bench.events() == [MemberSuspected(node_id(3), node_id(2), "why")]
    assert bench.row(3, now=2.5).by == ("n2", "n4")
    assert bench.row(3, now=2.5).since_s == 1.5
    bench.core.receive(node_id(2), Gossip((told(3, Life.DEAD, by=node_id(2)),)), 3.0)
    assert bench.events() == [MemberFailed(node_id(3), "why")]
    assert (bench.row(3).state, bench.row(3).reason, bench.row(3).by) == (MemberState.DEAD, "why", ("n2",))


def test_a_link_that_only_this_node_lacks_is_shown_so() -> None:
    bench = Bench()
    for number in (2, 3):
        bench.link(number)
    bench.core.link_down(node_id(3), "connection reset", False, 1.0)
    bench.core.receive(node_id(2), Gossip((told(3, incarnation=4),)), 1.5)
    row = bench.row(3)
    assert (row.state, row.reason) == (MemberState.UNREACHABLE, "connection reset; others reach it")
    assert MemberRefuted(node_id(3)) in bench.events()
    assert [one.node for one in bench.core.alive()] == [node_id(2)]


def test_a_dead_member_is_dialled_until_it_is_forgotten() -> None:
    bench = Bench()
    for number in (2, 3):
        bench.link(number)
    bench.core.link_down(node_id(3), "connection reset", False, 1.0)
    for at in (1.05, 1.2):
        bench.core.dial_failed(address(3), "refused: nothing listens there", True, at)
    assert MemberFailed in map(type, bench.events())
    assert bench.row(3).state is MemberState.DEAD
    bench.core.handle_timer(1.2 + Limits().forget_after_s - 1)
    assert bench.row(3)
    bench.events()
    bench.core.handle_timer(1.3 + Limits().forget_after_s)
    assert Forget(address(3)) in bench.events()
    assert node_id(3) not in {row.node for row in bench.core.snapshot(0.0)}


def test_who_was_never_reached_is_forgotten_too() -> None:
    bench = Bench()
    bench.link(2)
    bench.core.receive(node_id(2), Gossip((told(3),)), 1.0)
    bench.core.handle_timer(1.1 + Limits().forget_after_s)
    assert [event for event in bench.events() if isinstance(event, Forget)] == [Forget(address(3))]


@pytest.mark.parametrize("reason", ["refused", "wrong cluster", "wrong version", "it is this node itself", "no route"])
def test_a_configured_address_that_fails_is_shown_with_its_reason(reason: str) -> None:
    bench = Bench(1, address(9))
    (row,) = bench.core.snapshot(1.0)
    assert (row.state, row.node, row.since_s) == (MemberState.CONNECTING, "", 1.0)
    bench.core.dial_failed(address(9), reason, False, 2.0)
    bench.core.dial_failed(address(9), reason, False, 3.0)
    (row,) = bench.core.snapshot(4.0)
    assert (row.state, row.reason, row.address, row.since_s) == (MemberState.UNREACHABLE, reason, address(9), 2.0)
    bench.core.handle_timer(10_000.0)
    assert len(bench.core.snapshot(10_000.0)) == 1, "what a person configured is never forgotten"


def test_a_name_in_use_is_kept_with_a_warning() -> None:
    bench = Bench()
    bench.link(2, name="b")
    bench.link(3, name="b")
    bench.link(4, name="a")
    assert [e for e in bench.events() if isinstance(e, NameTaken)] == [
        NameTaken(node_id(3), "b", node_id(2)),
        NameTaken(node_id(4), "a", node_id(1)),
    ]
    assert len(bench.core.alive()) == 3


def test_a_node_that_moved_is_no_longer_dialled_where_it_was() -> None:
    bench = Bench()
    bench.link(2)
    bench.core.link_down(node_id(2), "reset", False, 1.0)
    bench.link(2, boot="y", now=2.0, port=7009)
    events = bench.events()
    assert Dial(address(2)) in events
    assert Forget(address(2)) in events
    assert [row.address for row in bench.core.snapshot(2.0)] == [address(9)]


def test_a_new_node_at_an_address_takes_the_place_of_the_lost_one() -> None:
    bench = Bench()
    bench.link(2)
    bench.core.link_down(node_id(2), "reset", False, 1.0)
    bench.core.dial_reached(address(2), node_id(5), 2.0)
    bench.events()
    bench.core.link_up(node_id(5), "b", "127.0.0.1", 7002, "y", 2.0)
    assert MemberFailed(node_id(2), "another node listens at its address") in bench.events()
    assert [row.node for row in bench.core.snapshot(2.0)] == [node_id(5)]


@pytest.mark.parametrize("life", [Life.ALIVE, Life.SUSPECT])
def test_one_whose_address_another_node_has_is_not_heard_of_again(life: Life) -> None:
    """Who has not yet noticed goes on telling of it for a while, and then that it is dead: nothing that a person need see."""
    bench = Bench()
    bench.link(2)
    bench.link(3)
    bench.core.link_down(node_id(2), "reset", False, 1.0)
    bench.core.link_up(node_id(5), "b", "127.0.0.1", 7002, "y", 2.0)
    bench.core.receive(node_id(3), Gossip((told(2, life, by=node_id(3)),)), 2.1)
    bench.core.receive(node_id(3), Gossip((told(2, Life.DEAD, by=node_id(3)),)), 2.2)
    assert {row.node for row in bench.core.snapshot(3.0)} == {node_id(3), node_id(5)}


def test_a_lost_node_whose_link_was_open_when_another_came_to_its_address_gives_way_when_it_breaks() -> None:
    bench = Bench()
    bench.link(2)
    bench.core.link_up(node_id(5), "b", "127.0.0.1", 7002, "y", 1.0)
    assert {row.node for row in bench.core.snapshot(1.0)} == {node_id(2), node_id(5)}
    bench.events()
    bench.core.link_down(node_id(2), "reset", False, 2.0)
    assert MemberFailed(node_id(2), "another node listens at its address") in bench.events()
    assert [row.node for row in bench.core.snapshot(2.0)] == [node_id(5)]


def test_hearsay_is_bounded() -> None:
    bench = Bench(limits=Limits(members_max=3))
    bench.link(2)
    bench.core.receive(node_id(9), Gossip((told(3),)), 0.0)  # from a stranger
    bench.core.receive(node_id(2), Gossip((told(1),)), 0.0)  # about itself
    assert [row.node for row in bench.core.snapshot(0.0)] == [node_id(2)]
    for number in range(3, 99):
        bench.core.receive(node_id(2), Gossip((told(number),)), 0.0)
    assert len(bench.core.snapshot(0.0)) == 3


def test_a_loopback_address_is_told_as_the_tellers_machine() -> None:
    bench = Bench()
    bench.core.link_up(node_id(2), "b", "10.0.0.2", 7002, "x", 0.0)
    bench.core.receive(node_id(2), Gossip((told(3),)), 0.0)
    assert {row.address.host for row in bench.core.snapshot(0.0)} == {"10.0.0.2"}


# --- small meshes


@given(st.integers(2, 8), st.integers(0, 2**32))
@settings(max_examples=25)
def test_any_tree_of_joins_in_any_order_becomes_a_full_mesh(count: int, seed: int) -> None:
    mesh, random = Mesh(seed), Random(seed)
    order = list(range(1, count + 1))
    random.shuffle(order)
    for position, number in enumerate(order):
        mesh.add(number, *([random.choice(order[:position])] if position else []))
        if random.random() < 0.3:
            mesh.world.run(mesh.world.now + random.random())
    assert mesh.world.run_until(mesh.complete, DEADLINE_S), {n: mesh.states(n) for n in mesh.living()}
    for node in mesh.living():
        joined = [event.member.node for event in mesh.told(node, MemberJoined)]
        assert sorted(joined) == sorted(set(mesh.living()) - {node})


@given(st.integers(0, 2**32))
@settings(max_examples=25)
def test_a_mesh_survives_kills_restarts_and_broken_links(seed: int) -> None:
    mesh, random = Mesh(seed), Random(seed)
    nodes = [mesh.add(number, *([number - 1] if number > 1 else [])) for number in range(1, 6)]
    assert mesh.world.run_until(mesh.complete, DEADLINE_S)
    for _ in range(6):
        node = random.choice(nodes)
        if random.random() < 0.3:
            mesh.world.break_link(*random.sample(nodes, 2))
        elif mesh.world.hosts[node].core is None:
            mesh.boot(node)
        else:
            mesh.kill(node)
        mesh.world.run(mesh.world.now + 3 * random.random())
    for node in nodes:
        mesh.boot(node)
    assert mesh.world.run_until(mesh.complete, DEADLINE_S), {n: mesh.states(n) for n in mesh.living()}


def test_without_joins_nobody_is_found() -> None:
    mesh = Mesh(1)
    mesh.add(1)
    mesh.add(2)
    assert not mesh.world.run_until(mesh.complete, DEADLINE_S)


def test_a_one_way_network_is_joined_from_the_other_side_after_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smaller id, whose turn it is, cannot dial the larger: a firewall that lets only one direction open links."""
    mesh = Mesh(1)
    attempt = mesh._attempt

    def firewall(node: NodeId, boot: int, target: Address) -> None:
        if (node, target) == (node_id(2), address_of(node_id(3))):
            mesh._fail(node, boot, target, "no route", False)
        else:
            attempt(node, boot, target)

    monkeypatch.setattr(mesh, "_attempt", firewall)
    mesh.add(1)
    mesh.add(2, 1)
    mesh.add(3, 1)
    assert mesh.world.run_until(mesh.complete, DEADLINE_S)
    assert mesh.world.now >= Limits().patience_s


@pytest.mark.parametrize("count", [2, 3, 4, 7])
def test_a_killed_process_is_gone_within_half_a_second_and_its_restart_joins(count: int) -> None:
    mesh = Mesh(count)
    nodes = mesh.full(count)
    killed, begin = nodes[-1], mesh.world.now
    mesh.kill(killed)
    others = nodes[:-1]
    assert mesh.world.run_until(lambda: all(mesh.told(n, MemberFailed, begin) for n in others), 2.0)
    assert mesh.world.now - begin < (0.5 if count <= 3 else 1.0)
    assert {mesh.states(n)[killed] for n in others} == {MemberState.DEAD}
    mesh.boot(killed)
    assert mesh.world.run_until(mesh.complete, 10.0)
    assert all(len(mesh.told(n, MemberFailed, begin)) == 1 for n in others)


def test_a_broken_link_between_two_that_live_is_no_failure() -> None:
    mesh = Mesh(5)
    one, two, three = mesh.full(3)
    begin = mesh.world.now
    mesh.world.break_link(one, two)
    mesh.world.run(begin + 10.0)
    assert mesh.complete()
    assert not mesh.told(one, MemberFailed) + mesh.told(two, MemberFailed) + mesh.told(three, MemberFailed)
    assert len(mesh.told(one, LinkLost, begin)) == len(mesh.told(one, LinkRestored, begin)) == 1
    assert mesh.told(one, MemberRefuted, begin)


def test_what_a_member_says_of_itself_is_told_when_it_is_new() -> None:
    bench = Bench()
    bench.link(2)
    bench.events()
    assert bench.described == [], "its Hello says nothing"
    said = msgspec.structs.replace(
        told(2, incarnation=4, boot="x"), cluster="home", charter_term=3, revision=9, uptime_s=50
    )
    bench.core.receive(node_id(2), Gossip((said,)), 10.0)
    bench.core.receive(node_id(2), Gossip((msgspec.structs.replace(said, incarnation=5, uptime_s=50),)), 20.0)
    bench.core.receive(
        node_id(2), Gossip((msgspec.structs.replace(said, incarnation=6, lag_ms=128, uptime_s=55),)), 30.0
    )
    bench.events()
    about = Description(cluster="home", charter=(3, 9))
    assert bench.described == [
        MemberDescribed(node_id(2), about, 50.0),
        MemberDescribed(node_id(2), dataclasses.replace(about, lag_ms=128), 70.0),
    ], "it runs for as long as the oldest news says"
