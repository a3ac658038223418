"""Membership in a tiny simulated mesh: reliable links in memory, one seed, virtual time."""

from __future__ import annotations

from collections import deque
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnn.cluster import (
    Dial,
    Event,
    Forget,
    MemberFailed,
    MemberJoined,
    MemberLeft,
    Membership,
    MemberState,
    NameTaken,
)
from p2pnn.cluster.membership import Limits
from p2pnn.types import Address, NodeId
from p2pnn.wire.messages import Member, Message, Roster


def node_id(number: int) -> NodeId:
    return NodeId(f"{number:032x}")


def address(number: int) -> Address:
    return Address("127.0.0.1", 7000 + number)


class Mesh:
    """Nodes by number. What may happen next (a message, a dial) waits in one list; `random` picks from it."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.now = 0.0
        self.members: dict[int, Membership] = {}
        self.boots: dict[int, int] = {}
        self.events: dict[int, list[Event]] = {}
        self.dialling: dict[int, set[Address]] = {}
        self.links: set[frozenset[int]] = set()
        self.pipes: dict[tuple[int, int], deque[Message]] = {}
        self.one_way: set[tuple[int, int]] = set()  # (from, to): from cannot dial to

    def start(self, number: int, joins: list[int], name: str | None = None) -> None:
        self.boots[number] = self.boots.get(number, 0) + 1
        self.events[number] = []
        self.dialling[number] = set()
        self.members[number] = Membership(
            node_id(number), name or f"n{number}", [address(j) for j in joins], self.now, Random(number)
        )
        self._drain(number)

    def stop(self, number: int, left: bool = False) -> None:
        del self.members[number]
        for link in [link for link in self.links if number in link]:
            self._unlink(link, "connection reset", left)

    def run(self) -> None:
        """Until nothing can happen but failing dials and the timers that forget."""
        for _ in range(20_000):
            steps = [("message", pipe) for pipe, queue in self.pipes.items() if queue]
            steps += [
                ("dial", (source, target.port - 7000))
                for source in self.members
                for target in sorted(self.dialling[source])
                if self._useful(source, target.port - 7000)
            ]
            if steps:
                kind, (source, target) = self.random.choice(steps)
                if kind == "message":
                    message = self.pipes[source, target].popleft()
                    self.members[target].receive(node_id(source), message, self.now)
                    self._drain(target)
                else:
                    self._connect(source, target)
                continue
            soon = [t for m in self.members.values() if (t := m.get_timer()) is not None and t < self.now + 60]
            if not soon:
                return
            self.advance(min(soon) - self.now)
        raise AssertionError("the mesh does not settle")

    def advance(self, seconds: float) -> None:
        self.now += max(0.0, seconds)
        for number, member in self.members.items():
            if (timer := member.get_timer()) is not None and timer <= self.now:
                member.handle_timer(self.now)
                self._drain(number)

    def fail_dials(self) -> None:
        for source, member in self.members.items():
            for target in sorted(self.dialling[source]):
                if not self._useful(source, target.port - 7000) and not self._linked(source, target.port - 7000):
                    member.dial_failed(target, "refused", self.now)

    def alive(self, number: int) -> set[int]:
        return {int(member.node, 16) for member in self.members[number].alive()}

    def complete(self) -> bool:
        return all(self.alive(n) == set(self.members) - {n} for n in self.members)

    def _useful(self, source: int, target: int) -> bool:
        up = target in self.members and target != source and (source, target) not in self.one_way
        return up and not self._linked(source, target)

    def _linked(self, source: int, target: int) -> bool:
        return frozenset((source, target)) in self.links

    def _connect(self, source: int, target: int) -> None:
        self.links.add(frozenset((source, target)))
        self.pipes[source, target] = deque()
        self.pipes[target, source] = deque()
        self.members[source].dial_reached(address(target), node_id(target), self.now)
        for here, there in ((source, target), (target, source)):
            where, boot = address(there), str(self.boots[there])
            name = self.members[there]._name
            self.members[here].link_up(node_id(there), name, where.host, where.port, boot, self.now)
            self._drain(here)

    def _unlink(self, link: frozenset[int], reason: str, left: bool) -> None:
        self.links.discard(link)
        for gone in link:
            for here in link & set(self.members) - {gone}:
                self.pipes[here, gone].clear()
                self.pipes[gone, here].clear()
                self.members[here].link_down(node_id(gone), reason, left, self.now)
                self._drain(here)

    def _drain(self, number: int) -> None:
        member = self.members[number]
        while (event := member.next_event()) is not None:
            self.events[number].append(event)
            if isinstance(event, Dial):
                assert event.address not in self.dialling[number], "dialled twice"
                self.dialling[number].add(event.address)
            elif isinstance(event, Forget):
                self.dialling[number].remove(event.address)
        for target, message in member.messages_to_send(self.now):
            if self._linked(number, int(target, 16)):
                self.pipes[number, int(target, 16)].append(message)


def kinds(events: list[Event]) -> list[str]:
    return [type(event).__name__ for event in events if not isinstance(event, Dial | Forget)]


@given(st.integers(2, 8), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_any_tree_of_joins_in_any_order_becomes_a_full_mesh(count: int, random: Random) -> None:
    mesh = Mesh(random)
    order = list(range(1, count + 1))
    random.shuffle(order)
    for position, number in enumerate(order):
        mesh.start(number, [random.choice(order[:position])] if position else [])
        if random.random() < 0.3:
            mesh.run()
    mesh.run()
    assert mesh.complete()
    for number in order:
        joined = [e.member.node for e in mesh.events[number] if isinstance(e, MemberJoined)]
        assert sorted(joined) == sorted({node_id(n) for n in order} - {node_id(number)})


@given(st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_a_mesh_survives_stops_restarts_and_goodbyes(random: Random) -> None:
    mesh = Mesh(random)
    for number in range(1, 6):
        mesh.start(number, [number - 1] if number > 1 else [])
    mesh.run()
    for _ in range(6):
        number = random.randint(1, 5)
        if number in mesh.members:
            mesh.stop(number, left=random.random() < 0.5)
        else:
            others = sorted(mesh.members)
            mesh.start(number, [random.choice(others)] if others else [])
        if random.random() < 0.7:
            mesh.run()
    for number in sorted(set(range(1, 6)) - set(mesh.members)):
        others = sorted(mesh.members)
        mesh.start(number, [random.choice(others)] if others else [])
    mesh.run()
    assert mesh.complete()


def test_without_joins_nobody_is_found() -> None:
    mesh = Mesh(Random(1))
    mesh.start(1, [])
    mesh.start(2, [])
    mesh.run()
    assert not mesh.complete()


def test_a_one_way_network_is_joined_from_the_other_side_after_patience() -> None:
    mesh = Mesh(Random(1))
    mesh.one_way = {(2, 3)}  # the smaller id, whose turn it is, cannot
    mesh.start(1, [])
    mesh.start(2, [1])
    mesh.start(3, [1])
    mesh.run()
    assert mesh.complete()
    assert mesh.now >= Limits().patience_s


def test_a_restarted_node_fails_and_joins_again() -> None:
    mesh = Mesh(Random(1))
    mesh.start(1, [])
    mesh.start(2, [1])
    mesh.run()
    mesh.events[1].clear()
    other_boot = Member(node_id(2), "n2", "127.0.0.1", 7002, "other")
    mesh.members[1].link_up(NodeId(other_boot.node), "n2", "127.0.0.1", 7002, "other", 1.0)
    mesh._drain(1)
    assert mesh.events[1] == [MemberFailed(node_id(2), "it was restarted"), MemberJoined(other_boot)]


def test_a_failed_member_is_dialled_until_it_is_forgotten() -> None:
    mesh = Mesh(Random(1))
    for number in (1, 2, 3):
        mesh.start(number, [1] if number > 1 else [])
    mesh.run()
    mesh.events[2].clear()
    mesh.stop(3)
    mesh.run()
    mesh.fail_dials()
    assert kinds(mesh.events[2]) == ["MemberFailed"]
    assert address(3) in mesh.dialling[2]
    (row,) = [row for row in mesh.members[2].snapshot(mesh.now) if row.node == node_id(3)]
    assert (row.state, row.reason) == (MemberState.UNREACHABLE, "refused")
    mesh.advance(Limits().forget_after_s)
    assert address(3) not in mesh.dialling[2]
    assert [row.node for row in mesh.members[2].snapshot(mesh.now)] == [node_id(1)]


def test_a_goodbye_is_no_failure_and_a_late_roster_revives_nobody() -> None:
    mesh = Mesh(Random(1))
    for number in (1, 2, 3):
        mesh.start(number, [1] if number > 1 else [])
    mesh.run()
    late = Roster(mesh.members[1].alive())
    mesh.events[2].clear()
    mesh.stop(3, left=True)
    mesh.run()
    mesh.members[2].receive(node_id(1), late, mesh.now)
    mesh._drain(2)
    assert [e for e in mesh.events[2] if not isinstance(e, Dial | Forget)] == [MemberLeft(node_id(3))]
    assert address(3) not in mesh.dialling[2]
    (row,) = [row for row in mesh.members[2].snapshot(mesh.now) if row.node == node_id(3)]
    assert row.state is MemberState.LEFT
    mesh.start(3, [1])
    mesh.run()
    assert mesh.complete()


@pytest.mark.parametrize("reason", ["refused", "wrong cluster", "wrong version", "it is this node itself", "no route"])
def test_a_configured_address_that_fails_is_shown_with_its_reason(reason: str) -> None:
    membership = Membership(node_id(1), "a", [address(9)], 0.0, Random(1))
    (row,) = membership.snapshot(1.0)
    assert (row.state, row.node, row.since_s) == (MemberState.CONNECTING, "", 1.0)
    membership.dial_failed(address(9), reason, 2.0)
    membership.dial_failed(address(9), reason, 3.0)
    (row,) = membership.snapshot(4.0)
    assert (row.state, row.reason, row.address, row.since_s) == (MemberState.UNREACHABLE, reason, address(9), 2.0)
    membership.handle_timer(10_000.0)
    assert len(membership.snapshot(10_000.0)) == 1, "what a person configured is never forgotten"


def test_a_name_in_use_is_kept_with_a_warning() -> None:
    membership = Membership(node_id(1), "a", [], 0.0, Random(1))
    membership.link_up(node_id(2), "b", "127.0.0.1", 7002, "x", 0.0)
    membership.link_up(node_id(3), "b", "127.0.0.1", 7003, "x", 0.0)
    membership.link_up(node_id(4), "a", "127.0.0.1", 7004, "x", 0.0)
    events = []
    while (event := membership.next_event()) is not None:
        events.append(event)
    assert [e for e in events if isinstance(e, NameTaken)] == [
        NameTaken(node_id(3), "b", node_id(2)),
        NameTaken(node_id(4), "a", node_id(1)),
    ]
    assert len(membership.alive()) == 3


def test_a_node_that_moved_is_no_longer_dialled_where_it_was() -> None:
    membership = Membership(node_id(1), "a", [], 0.0, Random(1))
    membership.link_up(node_id(2), "b", "127.0.0.1", 7002, "x", 0.0)
    membership.link_down(node_id(2), "reset", False, 1.0)
    membership.link_up(node_id(2), "b", "127.0.0.1", 7009, "y", 2.0)
    events = []
    while (event := membership.next_event()) is not None:
        events.append(event)
    assert Dial(address(2)) in events
    assert Forget(address(2)) in events
    assert [row.address for row in membership.snapshot(2.0)] == [address(9)]


def test_a_new_node_at_an_address_takes_the_place_of_the_lost_one() -> None:
    membership = Membership(node_id(1), "a", [], 0.0, Random(1))
    membership.link_up(node_id(2), "b", "127.0.0.1", 7002, "x", 0.0)
    membership.link_down(node_id(2), "reset", False, 1.0)
    membership.dial_reached(address(2), node_id(5), 2.0)
    assert membership.snapshot(2.0)[0].reason == "another node answers at its address"
    membership.link_up(node_id(5), "b", "127.0.0.1", 7002, "y", 2.0)
    assert [row.node for row in membership.snapshot(2.0)] == [node_id(5)]


def test_hearsay_that_cannot_be_true_is_ignored_and_bounded() -> None:
    membership = Membership(node_id(1), "a", [], 0.0, Random(1), Limits(members_max=3))
    membership.link_up(node_id(2), "b", "10.0.0.2", 7002, "x", 0.0)
    bad = (
        Member("short", "x", "h", 1, ""),
        Member(node_id(3) + "\n", "x", "h", 1, ""),
        Member(node_id(3), "x", "", 1, ""),
        Member(node_id(3), "x", "h", 0, ""),
        Member(node_id(3), "x", "h", 65536, ""),
        Member(node_id(3), "x" * 256, "h", 1, ""),
        Member(node_id(1), "me", "h", 1, ""),
    )
    membership.receive(node_id(9), Roster((Member(node_id(3), "x", "h", 1, ""),)), 0.0)  # from a stranger
    membership.receive(node_id(2), Roster(bad), 0.0)
    assert [row.node for row in membership.snapshot(0.0)] == [node_id(2)]
    membership.receive(node_id(2), Roster(tuple(Member(node_id(n), "x", "h", n, "") for n in range(3, 99))), 0.0)
    assert len(membership.snapshot(0.0)) == 3


def test_a_loopback_address_is_told_as_the_tellers_machine() -> None:
    membership = Membership(node_id(1), "a", [], 0.0, Random(1))
    membership.link_up(node_id(2), "b", "10.0.0.2", 7002, "x", 0.0)
    membership.receive(node_id(2), Roster((Member(node_id(3), "c", "127.0.0.1", 7003, ""),)), 0.0)
    assert {row.address.host for row in membership.snapshot(0.0)} == {"10.0.0.2"}
