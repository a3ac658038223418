"""The door: members by their whole fingerprint, removed ones told so, guests few."""

from __future__ import annotations

from typing import Any

import pytest

from p2pnn.cluster.charter import Charter, CharterMember
from p2pnn.identity.keys import NodeKey
from p2pnn.node import door as module
from p2pnn.node.door import ClusterDoor
from p2pnn.node.tasks import Tasks
from p2pnn.transport.admission import Refuse
from p2pnn.wire.messages import CloseReason, Offer

pytestmark = pytest.mark.asyncio
MEMBER, STRANGER, OUT, VOUCHER = (NodeKey.generate().public for _ in range(4))
CHARTER = Charter(
    1,
    "c",
    1,
    1,
    (MEMBER.node,),
    (CharterMember(MEMBER.node, MEMBER.fingerprint, "a"),),
    removed=(OUT.node,),
)


def door(charter: Charter | None, offer: Offer | None = None) -> ClusterDoor:
    async def ask(petition: object) -> bytes:
        return b""

    return ClusterDoor(
        lambda: charter, lambda node: node == VOUCHER.node, lambda: offer, ask, Tasks(), lambda words: None
    )


def reason(refused: Refuse | None) -> CloseReason | None:
    return refused.reason if refused is not None else None


async def test_members_come_in_and_nobody_else() -> None:
    one = door(CHARTER)
    assert [reason(one.admits(key)) for key in (MEMBER, STRANGER, OUT)] == [
        None,
        CloseReason.NOT_MEMBER,
        CloseReason.REMOVED,
    ]
    assert [one.name_of(key) for key in (MEMBER, STRANGER)] == ["a", ""]


async def test_a_key_that_shares_a_members_id_is_not_that_member() -> None:
    """The id is half of the fingerprint; the charter has all of it."""
    twin = CharterMember(MEMBER.node, MEMBER.node + "0" * 32, "a")
    assert reason(door(Charter(1, "c", 1, 1, (MEMBER.node,), (twin,))).admits(MEMBER)) is CloseReason.NOT_MEMBER


async def test_before_a_node_has_a_charter_only_who_admitted_it_comes_in() -> None:
    """Who was removed has a certificate too, and could send such a node a charter of its own."""
    one = door(None)
    assert [reason(one.admits(key)) for key in (VOUCHER, STRANGER, OUT)] == [
        None,
        CloseReason.NOT_MEMBER,
        CloseReason.NOT_MEMBER,
    ]
    assert reason(door(CHARTER).admits(VOUCHER)) is CloseReason.NOT_MEMBER


class Stream:
    """Of a guest: records that it was aborted."""

    def __init__(self) -> None:
        self.aborted = False
        self.user: Any = None

    def hand_to(self, user: Any) -> None:
        self.user = user

    def write(self, *views: bytes) -> bool:
        return True

    def abort(self) -> None:
        self.aborted = True
        if self.user is not None:
            self.user.connection_lost(None)


async def test_guests_are_few_and_few_of_one_address() -> None:
    one = door(CHARTER, Offer(b"authority"))
    streams = [Stream() for _ in range(module.GUESTS_PER_HOST_MAX + 1)]
    for stream in streams:
        one.guest(stream, "192.0.2.1")  # type: ignore[arg-type]
    assert [stream.aborted for stream in streams] == [False] * module.GUESTS_PER_HOST_MAX + [True]
    others = [Stream() for _ in range(module.GUESTS_MAX)]
    for number, stream in enumerate(others):
        one.guest(stream, f"192.0.3.{number}")  # type: ignore[arg-type]
    assert sum(not stream.aborted for stream in (*streams, *others)) == module.GUESTS_MAX
    for stream in (*streams, *others):
        stream.abort()
    again = Stream()
    one.guest(again, "192.0.2.1")  # type: ignore[arg-type]
    assert not again.aborted, "who has left makes room"
    again.abort()


async def test_all_guests_are_dismissed_when_their_host_leaves() -> None:
    one = door(CHARTER, Offer(b"authority"))
    streams = [Stream(), Stream()]
    for stream in streams:
        one.guest(stream, "192.0.2.1")  # type: ignore[arg-type]
    one.dismiss()
    assert all(stream.aborted for stream in streams)


async def test_a_node_that_is_joining_itself_offers_nothing() -> None:
    stream = Stream()
    door(None, None).guest(stream, "192.0.2.1")  # type: ignore[arg-type]
    assert stream.aborted
