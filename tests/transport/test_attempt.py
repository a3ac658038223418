"""One attempt to open a link: its stages, and why it failed."""

from __future__ import annotations

import asyncio
import socket

import pytest

from p2pnn.transport.admission import Ours
from p2pnn.transport.attempt import Attempt, furthest, needs_a_person, trouble_of
from p2pnn.transport.link import Link
from p2pnn.types import Address
from p2pnn.wire.events import Closed
from p2pnn.wire.messages import CloseReason, LinkKind
from tests.transport.harness import SHORT, Node, condition, on_both_loops


def attempt_at(address: Address, node: Node) -> Attempt:
    transport = node.transport
    return Attempt(
        address,
        lambda: Link(transport, transport._identity.hello(LinkKind.CONTROL, "", 0), SHORT),
        SHORT,
        secured=False,
    )


@on_both_loops
async def test_an_address_that_accepts_and_says_nothing_is_too_slow() -> None:
    with socket.create_server(("127.0.0.1", 0)) as tarpit:
        attempt = attempt_at(Address(*tarpit.getsockname()), Node(1))
        outcome = await attempt.run()
        assert isinstance(outcome, Closed)
        assert outcome.reason == CloseReason.TOO_SLOW
        await asyncio.wait_for(attempt.link.lost, 5)


@on_both_loops
async def test_an_attempt_is_abandoned_at_either_stage() -> None:
    with socket.create_server(("127.0.0.1", 0)) as tarpit:
        address = Address(*tarpit.getsockname())
        early, late = attempt_at(address, Node(1)), attempt_at(address, Node(1))
        runs = [asyncio.ensure_future(attempt.run()) for attempt in (early, late)]
        await asyncio.sleep(0)
        assert furthest([early, late]) is Ours.CONNECTING
        early.abandon("no need")
        await condition(lambda: late.greeting)
        assert furthest([early, late]) is Ours.GREETING
        late.abandon("no need")
        assert furthest([early, late]) is Ours.NONE
        outcomes = [await run for run in runs]
        assert outcomes[0] == ""
        assert isinstance(outcomes[1], Closed)
        assert outcomes[1].reason == CloseReason.REPLACED
        assert early.link is None
        await asyncio.wait_for(late.link.lost, 5)


@on_both_loops
async def test_a_cancelled_attempt_leaves_no_link() -> None:
    with socket.create_server(("127.0.0.1", 0)) as tarpit:
        node = Node(1)
        attempt = attempt_at(Address(*tarpit.getsockname()), node)
        run = asyncio.ensure_future(attempt.run())
        await condition(lambda: attempt.greeting)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        await asyncio.wait_for(attempt.link.lost, 5)
        assert not node.transport._links


@on_both_loops
async def test_an_address_where_nobody_listens_refuses_and_one_that_says_nothing_does_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as tarpit:
        address = Address(*tarpit.getsockname())
        silent = attempt_at(address, Node(1))
        await silent.run()
        assert not silent.refused
        await asyncio.wait_for(silent.link.lost, 5)
    closed = attempt_at(address, Node(1))
    assert await closed.run() == "refused: nothing listens there"
    assert closed.refused


@pytest.mark.parametrize(
    ("outcome", "trouble", "person"),
    [
        ("refused: nothing listens there", "refused: nothing listens there", False),
        (Closed(CloseReason.SELF, "a node dialled itself", True), "it is this node itself", True),
        (Closed(CloseReason.WRONG_CLUSTER, "it is another", True), "wrong cluster: it is another", True),
        (Closed(CloseReason.VERSION, "", True), "wrong version", True),
        (Closed(CloseReason.FAILED, "connection reset", False), "connection reset", False),
        (Closed(77, "", True), "closed with reason 77", False),
    ],
)
def test_why_an_attempt_failed(outcome: Closed | str, trouble: str, person: bool) -> None:
    assert trouble_of(outcome) == trouble
    assert needs_a_person(outcome) == person


@on_both_loops
async def test_without_keys_no_connection_leaves_this_machine() -> None:
    """By address or by name, whoever named it: a person, or a peer's gossip."""
    node = Node(1)
    for address in (Address("192.0.2.1", 7700), Address("2001:db8::1", 7700), Address("::ffff:192.0.2.1", 7700)):
        attempt = attempt_at(address, node)
        outcome = await attempt.run()
        assert isinstance(outcome, str)
        assert "a plain node, without keys, dials this machine only" in outcome
        assert attempt.endpoint == address
        assert not attempt.refused
