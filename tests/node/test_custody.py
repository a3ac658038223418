"""The authority's key: with the voters, soon with nobody else, and never lost on the way."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from p2pnn.cluster.charter import Charter, CharterMember
from p2pnn.identity.authority import Authority
from p2pnn.identity.keys import NodeKey
from p2pnn.node.credentials import Credentials
from p2pnn.node.custody import Custody
from p2pnn.node.tasks import Tasks
from p2pnn.types import NodeId
from p2pnn.wire.messages import AuthorityHeld, AuthorityKey, AuthorityWanted
from tests.node.nodes import A, B, C, Recorder, post, until

pytestmark = pytest.mark.asyncio
AUTHORITY = Authority.found(time.time())
PEM = AuthorityKey(AUTHORITY.pem)
D = NodeId("d" * 32)


def charter(voters: Sequence[NodeId]) -> Charter:
    members = tuple(CharterMember(node, node * 2, node[0]) for node in (A, B, C))
    return Charter(1, "c", 1, 1, tuple(voters), members)


def custody(folder: Path, held: bool, *voters: NodeId) -> tuple[Custody, Credentials, Recorder, Any]:
    """Of node A."""
    folder.mkdir(exist_ok=True)
    key = NodeKey.generate()
    credentials = Credentials(folder, key)
    credentials.take(AUTHORITY.issue(key.public, time.time()), AUTHORITY.certificate)
    if held:
        credentials.hold_ca(AUTHORITY.pem)
    one, outside = post(A)
    decided = SimpleNamespace(committed=charter(voters))
    return (
        Custody(one, cast(Any, decided), credentials, lambda: [B, C], Tasks()),
        credentials,
        outside,
        decided,
    )


async def test_who_is_no_voter_any_more_keeps_the_key_until_a_voter_has_it(tmp_path: Path) -> None:
    """Of two nodes the founder is drained: the other one votes, and has not been given the key yet."""
    one, credentials, outside, _ = custody(tmp_path, True, B)
    for _ in range(3):
        one.tend()
    assert credentials.ca is not None
    assert outside.of(AuthorityKey, B) == [PEM] * 3
    one.receive(C, AuthorityHeld())  # which does not vote
    one.tend()
    assert credentials.ca is not None
    one.receive(B, AuthorityHeld())
    one.tend()
    assert credentials.ca is None
    assert not (tmp_path / "authority.pem").exists()


async def test_what_was_said_before_this_node_voted_again_counts_no_more(tmp_path: Path) -> None:
    one, credentials, _, decided = custody(tmp_path, True, B)
    one.receive(B, AuthorityHeld())
    decided.committed = charter([A, B])
    one.committed(decided.committed)
    decided.committed = charter([B])
    one.tend()
    assert credentials.ca is not None


async def test_a_new_voter_asks_all_members_at_once_and_says_when_it_has_the_key(tmp_path: Path) -> None:
    one, credentials, outside, decided = custody(tmp_path, False, A)
    one.committed(decided.committed)
    assert {node for node, message in outside.sent if isinstance(message, AuthorityWanted)} == {B, C}
    one.receive(B, PEM)
    await until(lambda: outside.of(AuthorityHeld, B))
    assert credentials.ca is not None
    assert (tmp_path / "authority.pem").exists()
    one.receive(C, PEM)
    assert outside.of(AuthorityHeld, C), "it has it already, so C may delete its own"


async def test_the_key_of_another_cluster_is_not_kept_and_nothing_is_said(tmp_path: Path) -> None:
    one, credentials, outside, _ = custody(tmp_path, False, A)
    one.receive(B, AuthorityKey(Authority.found(time.time()).pem))
    await one._tasks.drain()
    assert credentials.ca is None
    assert not outside.of(AuthorityHeld)


async def test_only_voters_get_the_key_and_only_from_members_they_take_it(tmp_path: Path) -> None:
    one, _, outside, decided = custody(tmp_path, True, B)
    for node in (B, C, D):
        one.receive(node, AuthorityWanted())
    assert [node for node, message in outside.sent if message == PEM] == [B]
    decided.committed = None
    one.receive(B, AuthorityWanted())
    assert len(outside.of(AuthorityKey)) == 1, "a charter that is not committed gives nobody a right to it"
    one, credentials, outside, _ = custody(tmp_path / "2", False, B)
    one.receive(B, PEM)  # this node does not vote
    one, credentials, outside, _ = custody(tmp_path / "3", False, A)
    one.receive(D, PEM)
    await one._tasks.drain()
    assert credentials.ca is None
