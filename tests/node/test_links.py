"""Posting to peers and to this node."""

from __future__ import annotations

import asyncio

import pytest

from p2pnn.node.links import Post, Priority
from p2pnn.types import NodeId
from p2pnn.wire.messages import Message, Ping
from tests.node.nodes import A, B, Recorder


@pytest.mark.asyncio
async def test_a_message_to_this_node_comes_by_the_loop_like_one_of_a_peer() -> None:
    outside = Recorder()
    got: list[tuple[NodeId, Message]] = []
    post = Post(A, "a", outside, lambda node, message: got.append((node, message)))
    post.send(A, Ping(1))
    post.send(B, Ping(2))
    assert got == []
    await asyncio.sleep(0)
    assert got == [(A, Ping(1))]
    assert outside.sent == [(B, Ping(2))]


@pytest.mark.asyncio
async def test_what_goes_to_a_lost_peer_is_dropped() -> None:
    outside = Recorder()
    outside.peers.clear()
    post = Post(A, "a", outside, lambda node, message: None)
    post.send(B, Ping(1))
    assert outside.sent == []
    assert post.reachable(A)
    assert not post.reachable(B)


@pytest.mark.asyncio
async def test_queued_counts_the_control_link_only() -> None:
    outside = Recorder()
    outside.waiting = 7
    assert Post(A, "a", outside, lambda node, message: None).queued(B) == 7


@pytest.mark.asyncio
async def test_nodes_are_called_by_their_names_while_they_are_connected() -> None:
    outside = Recorder()
    post = Post(A, "a", outside, lambda node, message: None)
    assert post.name_of(B) == "b"
    outside.peers.clear()
    assert post.name_of(B) == "bbbbbbbb"


@pytest.mark.parametrize("count", [1, 2, 3, 4, 100])
def test_parts_of_a_push_go_as_they_are_needed_behind_tensors_and_the_last_with_checkpoints(count: int) -> None:
    found = [Priority.of_push(rank, count) for rank in range(count)]
    assert found == sorted(found)
    assert Priority.TENSOR < found[0] <= found[-1] == Priority.BLOB == Priority.VALUES
    assert (found[0] == Priority.PUSH) == (count >= 4)
