"""The adapter of membership: what links tell becomes members, dials and messages."""

from __future__ import annotations

import asyncio
import time
from typing import Any, cast

import pytest

from p2pnn.cluster import Description, MemberState
from p2pnn.node.links import Post
from p2pnn.node.members import Members, about
from p2pnn.transport import PeerIdentity, Transport
from p2pnn.types import Address, NodeId
from p2pnn.wire.messages import Ack, Fact, Gossip, Life, Member, Message, Probe, Roster
from tests.node.nodes import A, B, C, Recorder, until

pytestmark = pytest.mark.asyncio

JOIN = Address("127.0.0.1", 7001)


class Dialler:
    def __init__(self) -> None:
        self.dialled: list[Address] = []
        self.forgotten: list[Address] = []

    def dial(self, address: Address) -> None:
        self.dialled.append(address)

    def forget(self, address: Address) -> None:
        self.forgotten.append(address)


class Bench:
    """Node `here`. `changes` and `doubts` are what its owner was told; probes are answered while `answering`."""

    def __init__(self, here: NodeId = A) -> None:
        self.outside = Recorder()
        self.dialler = Dialler()
        self.changes: list[tuple[Any, ...]] = []
        self.doubts: list[tuple[str, NodeId]] = []
        self.described: list[tuple[NodeId, Description, float]] = []
        self.slowness: list[float] = []
        self.answering = True
        self.said = Description("p2pnn 1", load=0)
        send = self.outside.send

        def answer(node: NodeId, message: Message) -> None:
            send(node, message)
            if isinstance(message, Probe) and self.answering:
                asyncio.get_running_loop().call_soon(self.members.receive, node, Ack(message.sequence))

        self.outside.send = answer  # type: ignore[method-assign]
        self.members = Members(
            Post(here, "here", self.outside, lambda node, message: None),
            "boot",
            (JOIN,),
            cast(Transport, self.dialler),
            self,
            lambda: self.said,
        )
        self.members.start()

    def member_usable(self, node: NodeId, name: str) -> None:
        self.changes.append(("usable", node, name))

    def member_lost(self, node: NodeId, reason: str) -> None:
        self.changes.append(("lost", node, reason))

    def member_suspected(self, node: NodeId) -> None:
        self.doubts.append(("suspected", node))

    def member_refuted(self, node: NodeId, name: str) -> None:
        self.doubts.append(("refuted", node))

    def member_failed(self, node: NodeId, reason: str) -> None:
        self.changes.append(("failed", node, reason))

    def member_described(self, node: NodeId, about: Description, uptime_s: float) -> None:
        if node != A:
            self.described.append((node, about, uptime_s))

    def slowness_changed(self, factor: float) -> None:
        self.slowness.append(factor)


def peer(node: NodeId, name: str, port: int, boot: str = "1") -> PeerIdentity:
    return PeerIdentity(node, name, Address("127.0.0.1", port), boot)


def says(node: NodeId, name: str, incarnation: int, boot: str = "1") -> Gossip:
    """What a node says of itself."""
    return Gossip((Fact(node, name, "", 0, boot, incarnation, Life.ALIVE),))


async def test_links_make_members_and_each_is_told_of_this_node() -> None:
    bench = Bench()
    assert bench.dialler.dialled == [JOIN]
    bench.members.dial_reached(JOIN, B)
    bench.members.link_up(B, peer(B, "b", 7001))
    assert bench.changes == [("usable", B, "b")]
    assert bench.members.names() == {A: "here", B: "b"}
    (greeting, *_) = bench.outside.of(Gossip, B)
    assert [(fact.node, fact.software) for fact in greeting.facts] == [(A, "p2pnn 1")]
    bench.members.receive(B, Roster((Member(C, "c", "127.0.0.1", 7002, "1"),)))
    assert bench.dialler.dialled[-1] == Address("127.0.0.1", 7002)
    assert C not in bench.members.names()  # hearsay makes no member
    bench.members.close()


async def test_a_broken_link_loses_what_was_on_its_way_and_no_member(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    bench.members.link_up(B, peer(B, "b", 7001))
    bench.members.link_down(B, "connection reset", False)
    bench.members.link_down(B, "again", False)
    assert bench.changes[1:] == [("lost", B, "its link broke (connection reset)")]
    assert list(bench.members.names()) == [A]
    assert {s.name: s.state for s in bench.members.snapshot()}["b"] == MemberState.SUSPECT
    assert "member suspected" in caplog.text
    bench.members.link_up(B, peer(B, "b", 7001))
    assert bench.changes[2:] == [("usable", B, "b")]
    bench.members.receive(B, says(B, "b", 2))
    assert {s.name: s.state for s in bench.members.snapshot()}["b"] == MemberState.ALIVE
    assert bench.doubts == [("suspected", B), ("refuted", B)]
    bench.members.close()


async def test_a_process_that_refuses_redials_has_failed() -> None:
    bench = Bench()
    bench.members.link_up(B, peer(B, "b", 7001))
    bench.members.link_down(B, "connection reset", False)

    def given_up() -> bool:
        bench.members.dial_failed(Address("127.0.0.1", 7001), "refused: nothing listens there", True)
        return len(bench.changes) >= 3

    await until(given_up)
    assert [change[0] for change in bench.changes] == ["usable", "lost", "failed"]
    assert "no process listens there" in bench.changes[-1][2]
    bench.members.close()


async def test_a_goodbye_and_a_restart_are_told() -> None:
    bench = Bench()
    bench.members.link_up(B, peer(B, "b", 7001))
    bench.members.link_down(B, "it was restarted", False)
    bench.members.link_up(B, peer(B, "b", 7001, boot="2"))
    bench.members.receive(B, says(B, "b", 9, boot="2"))
    bench.members.link_down(B, "", True)
    assert bench.changes == [
        ("usable", B, "b"),
        ("lost", B, "its link broke (it was restarted)"),
        ("failed", B, "it was restarted"),
        ("usable", B, "b"),
        ("lost", B, "it was stopped"),
        ("failed", B, "it was stopped"),
    ]
    bench.members.close()


async def test_who_answers_no_probe_is_lost_and_failed_although_its_link_is_open() -> None:
    bench = Bench()
    bench.answering = False
    bench.members.link_up(B, peer(B, "b", 7001))
    await until(lambda: len(bench.changes) == 3)
    assert bench.changes[1:] == [("lost", B, "it answers no probe"), ("failed", B, "it answers no probe")]
    assert {s.name: s.state for s in bench.members.snapshot()}["b"] == MemberState.DEAD
    bench.answering = True
    bench.members.receive(B, says(B, "b", 2))
    assert bench.changes[3:] == [("usable", B, "b")]
    bench.members.close()


async def test_a_change_of_what_this_node_says_of_itself_is_told() -> None:
    bench = Bench()
    bench.members.link_up(B, peer(B, "b", 7001))
    bench.said = Description("p2pnn 1", load=2, gflops=41, memory_mib=2048)

    def told() -> set[int]:
        messages = [*bench.outside.of(Gossip, B), *bench.outside.of(Probe, B)]
        return {fact.load for message in messages for fact in message.facts if fact.node == A}

    await until(lambda: 2 in told())
    assert about(bench.said) == {
        "software": "p2pnn 1",
        "versions": [1, 1],
        "load": 2,
        "draining": False,
        "profile": {"gflops": 41, "memory_bytes": 2 << 30},
    }
    bench.members.close()


async def test_the_timer_dials_a_peer_that_should_have_dialled_us() -> None:
    bench = Bench(C)
    bench.members.link_up(B, peer(B, "b", 7001))
    bench.members.receive(B, Roster((Member(A, "a", "127.0.0.1", 7009, "1"),)))  # the smaller id dials
    assert Address("127.0.0.1", 7009) not in bench.dialler.dialled
    await until(lambda: Address("127.0.0.1", 7009) in bench.dialler.dialled)
    bench.members.close()


async def test_an_address_that_cannot_be_reached_shows_why(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    bench.members.dial_failed(JOIN, "connection refused", True)
    assert [(s.address, s.reason) for s in bench.members.snapshot()] == [(JOIN, "connection refused")]
    bench.members.link_up(B, peer(B, "here", 7002))
    assert "name taken twice" in caplog.text
    bench.members.close()


async def test_a_join_that_fails_is_told_once_for_each_reason(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    for reason in ("refused", "refused", "another cluster"):
        bench.members.dial_failed(JOIN, reason, False)
    bench.members.dial_failed(Address("127.0.0.1", 1), "refused", True)  # not configured: heard of from others
    told = [record for record in caplog.records if "cannot join" in record.message]
    assert [record.levelname for record in told] == ["WARNING", "WARNING"]
    assert "--listen" in told[0].message
    assert "another cluster" in told[1].message
    bench.members.close()


async def test_what_members_say_of_themselves_and_how_slow_this_node_is_reach_the_owner() -> None:
    bench = Bench()
    bench.members.link_up(B, peer(B, "b", 7001))
    assert bench.members.cluster_of(B) is None
    fact = Fact(B, "b", "", 0, "1", 3, Life.ALIVE, cluster="home", charter_term=2, revision=7, uptime_s=90)
    bench.members.receive(B, Gossip((fact,)))
    [(node, about, uptime_s)] = bench.described
    assert (node, about.cluster, about.charter) == (B, "home", (2, 7))
    assert uptime_s >= 90
    assert bench.members.cluster_of(B) == "home"
    bench.answering = False
    await until(lambda: bench.slowness)
    assert bench.slowness[0] > 1, "a probe that nobody answered may be this node's own fault"
    bench.members.close()


async def test_a_loop_that_comes_late_is_told_of_in_powers_of_two() -> None:
    bench = Bench()
    assert bench.members.lag_ms == 0
    bench.members.link_up(B, peer(B, "b", 7001))
    end = time.monotonic() + 0.4
    while time.monotonic() < end:
        pass  # what holds a loop up is work
    await until(lambda: bench.members.lag_ms)
    assert bench.members.lag_ms in (128, 256, 512, 1024, 2048, 4096)
    bench.members.close()
