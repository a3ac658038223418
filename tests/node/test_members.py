"""The adapter of membership: what links tell becomes members, dials and messages."""

from __future__ import annotations

from typing import Any, cast

import pytest

from p2pnn.cluster import MemberState
from p2pnn.node.links import Post
from p2pnn.node.members import Members
from p2pnn.transport import PeerIdentity, Transport
from p2pnn.types import Address, NodeId
from p2pnn.wire.messages import Member, Roster
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
    def __init__(self, here: NodeId = A) -> None:
        self.outside = Recorder()
        self.dialler = Dialler()
        self.changes: list[tuple[Any, ...]] = []
        self.members = Members(
            Post(here, "here", self.outside, lambda node, message: None),
            (JOIN,),
            cast(Transport, self.dialler),
            lambda node, name: self.changes.append(("joined", node, name)),
            lambda node, reason: self.changes.append(("gone", node, reason)),
        )
        self.members.start()


def peer(node: NodeId, name: str, port: int, boot: str = "1") -> PeerIdentity:
    return PeerIdentity(node, name, Address("127.0.0.1", port), boot)


async def test_links_make_members_and_everybody_is_told() -> None:
    bench = Bench()
    assert bench.dialler.dialled == [JOIN]
    bench.members.dial_reached(JOIN, B)
    bench.members.link_up(B, peer(B, "b", 7001))
    assert bench.changes == [("joined", B, "b")]
    assert bench.members.names() == {A: "here", B: "b"}
    assert [m.node for m in bench.outside.of(Roster, B)[-1].members] == [B]
    bench.members.receive(B, Roster((Member(C, "c", "127.0.0.1", 7002, "1"),)))
    assert bench.dialler.dialled[-1] == Address("127.0.0.1", 7002)
    assert C not in bench.members.names()  # hearsay makes no member
    bench.members.link_down(B, "connection reset", False)
    bench.members.link_down(B, "again", False)
    assert bench.changes[1:] == [("gone", B, "connection reset")]
    assert list(bench.members.names()) == [A]
    assert {s.name: s.state for s in bench.members.snapshot()}["b"] == MemberState.UNREACHABLE
    bench.members.close()


async def test_a_goodbye_and_a_restart_are_told() -> None:
    bench = Bench()
    bench.members.link_up(B, peer(B, "b", 7001))
    bench.members.link_up(B, peer(B, "b", 7001, boot="2"))
    bench.members.link_down(B, "", True)
    assert bench.changes == [
        ("joined", B, "b"),
        ("gone", B, "it was restarted"),
        ("joined", B, "b"),
        ("gone", B, "it was stopped"),
    ]
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
    bench.members.dial_failed(JOIN, "connection refused")
    assert [(s.address, s.reason) for s in bench.members.snapshot()] == [(JOIN, "connection refused")]
    bench.members.link_up(B, peer(B, "here", 7002))
    assert "name taken twice" in caplog.text
    bench.members.close()


async def test_a_join_that_fails_is_told_once_for_each_reason(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    for reason in ("refused", "refused", "another cluster"):
        bench.members.dial_failed(JOIN, reason)
    bench.members.dial_failed(Address("127.0.0.1", 1), "refused")  # not configured: heard of from others
    told = [record for record in caplog.records if "cannot join" in record.message]
    assert [record.levelname for record in told] == ["WARNING", "WARNING"]
    assert "--listen" in told[0].message
    assert "another cluster" in told[1].message
    bench.members.close()
