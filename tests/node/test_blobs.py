"""Blobs between peers that are joined in memory."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from p2pnn.data.blobs import BlobStore, BlobWriter, blob_id
from p2pnn.errors import StorageError
from p2pnn.node import blobs as module
from p2pnn.node.blobs import BlobExchange
from p2pnn.node.links import Post
from p2pnn.transport import LinkSnapshot
from p2pnn.types import BlobId, NodeId
from p2pnn.wire.messages import BlobMissing, BlobPiece, BlobRequest, Keep, Kept, Message

A, B, C, D = (NodeId(c) for c in "abcd")


class Wire:
    """Delivers messages between exchanges by the loop; `tamper` changes bodies on the way."""

    def __init__(self, here: NodeId, nodes: dict[NodeId, BlobExchange]) -> None:
        self.here = here
        self.nodes = nodes
        self.tamper = self.is_cut = False
        self.kept: asyncio.Queue[Kept] = asyncio.Queue()

    def start_body(
        self, node: NodeId, message: Message, body: memoryview, priority: int = 0
    ) -> Coroutine[Any, Any, None] | None:
        return self.send_body(node, message, body, priority)

    def connected(self, node: NodeId) -> bool:
        return node in self.nodes and not self.is_cut

    def snapshot(self) -> tuple[LinkSnapshot, ...]:
        return ()

    def send(self, node: NodeId, message: Message) -> None:
        asyncio.get_running_loop().call_soon(self._deliver, node, message)

    async def send_body(self, node: NodeId, message: Message, body: memoryview, priority: int = 0) -> None:
        assert isinstance(message, BlobPiece)
        await asyncio.sleep(0)
        room = self.nodes[node].body_for(self.here, message, len(body))
        if room is None:
            return
        room[:] = body
        if self.tamper and len(room):
            room[0] ^= 1
        self.nodes[node].received(self.here, message)

    def _deliver(self, node: NodeId, message: Message) -> None:
        target = self.nodes[node]
        match message:
            case BlobRequest():
                target.requested(self.here, message)
            case BlobMissing():
                target.missing(self.here, message)
            case Keep():
                target.keep(self.here, message)
            case Kept():
                self.kept.put_nowait(message)


def make_nodes(tmp_path: Path, names: list[NodeId]) -> tuple[dict[NodeId, BlobExchange], dict[NodeId, Wire]]:
    nodes: dict[NodeId, BlobExchange] = {}
    wires = {}
    for name in names:
        wires[name] = Wire(name, nodes)
        post = Post(name, name, wires[name], lambda node, message: None)
        nodes[name] = BlobExchange(BlobStore(tmp_path / name), post, lambda: list(nodes))
    return nodes, wires


@pytest.mark.asyncio
@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 7 << 20])
async def test_a_blob_of_any_size_is_fetched_whole(tmp_path: Path, size: int) -> None:
    nodes, _ = make_nodes(tmp_path, [A, B])
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    blob = nodes[A].blobs.put(data)
    async with asyncio.timeout(10):
        await asyncio.gather(*(nodes[B].fetch(blob) for _ in range(3)))
    assert nodes[B].blobs.read(blob, 0, size) == data


@pytest.mark.asyncio
async def test_a_peer_without_it_or_with_wrong_bytes_is_passed_over(tmp_path: Path) -> None:
    nodes, wires = make_nodes(tmp_path, [A, B, C])
    blob = nodes[A].blobs.put(b"x" * 3_000_000)
    nodes[B].blobs.put(b"x" * 3_000_000)
    wires[A].tamper = True
    async with asyncio.timeout(10):
        await nodes[C].fetch(blob, [A])
    assert nodes[C].blobs.has(blob)
    wires[B].tamper = True
    nodes[C].blobs.remove(blob)
    with pytest.raises(
        StorageError, match=r"was not fetched; node a did not give it: .*has the hash.*; node b did not"
    ):
        await nodes[C].fetch(blob)
    assert not nodes[C].blobs.has(blob)
    assert not any((tmp_path / "c/temporary").iterdir())


@pytest.mark.asyncio
async def test_a_blob_that_nobody_has_is_told_with_what_to_do_and_without_their_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes, wires = make_nodes(tmp_path, [A, B, C, D])
    blob = nodes[A].blobs.put(b"x" * 10)
    nodes[A].blobs.path(blob).write_bytes(b"")  # whoever reads it finds it shorter than it was said to be
    monkeypatch.setattr(nodes[A].blobs, "size", lambda blob: 10)
    to_do = "start the node that has it (`p2pnn cluster show` tells who is away)"
    for asked, sentence in (
        (blob_id(b"nowhere"), f"is on none of a, b, c: {to_do}"),
        (
            blob,
            "was not fetched; is on none of b, c; node a did not give it: it cannot read its copy, and its log says why",
        ),
    ):
        with pytest.raises(StorageError) as caught:
            await nodes[D].fetch(asked)
        assert str(caught.value) == f"blob {asked[:12]}… {sentence}"
        assert str(tmp_path) not in str(caught.value)
    wires[D].is_cut = True
    with pytest.raises(StorageError, match=f"is not here, and no other node can be reached: {re.escape(to_do)}"):
        await nodes[D].fetch(blob)


@pytest.mark.asyncio
async def test_a_lost_peer_ends_the_wait(tmp_path: Path) -> None:
    nodes, wires = make_nodes(tmp_path, [A, B])
    blob = nodes[A].blobs.put(b"y" * 100)
    asked = asyncio.Event()
    wires[B].send = lambda node, message: asked.set()  # type: ignore[method-assign]
    fetch = asyncio.ensure_future(nodes[B].fetch(blob))
    await asked.wait()
    nodes[B].peer_lost(A, "connection reset")
    with pytest.raises(StorageError, match="connection reset"):
        await fetch


@pytest.mark.asyncio
async def test_pieces_nobody_asked_for_get_no_room(tmp_path: Path) -> None:
    nodes, _ = make_nodes(tmp_path, [A])
    piece = BlobPiece(1, "0" * 64, 0, 10)
    assert nodes[A].body_for(B, piece, 10) is None


@pytest.mark.asyncio
async def test_keep_answers_with_the_outcome(tmp_path: Path) -> None:
    nodes, wires = make_nodes(tmp_path, [A, B])
    blob = nodes[A].blobs.put(b"z")
    nodes[B].keep(A, Keep("j", 1, (blob,), A))
    nodes[B].keep(A, Keep("j", 2, (blob_id(b"nowhere"),), A))
    nodes[B].keep(A, Keep("j", 3, ("../../etc/passwd",), A))
    async with asyncio.timeout(5):
        outcomes = {k.request: k.error for k in [await wires[B].kept.get() for _ in range(3)]}
    assert outcomes[1] == ""
    assert outcomes[2] == (
        f"blob {blob_id(b'nowhere')[:12]}… is on none of a: start the node that has it (`p2pnn cluster show` tells who is away)"
    )
    assert "is not a blob's name" in outcomes[3]


@pytest.mark.asyncio
async def test_one_peer_cannot_make_a_node_serve_without_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SERVED_MAX", 2)
    nodes, wires = make_nodes(tmp_path, [A, B])
    blob = nodes[A].blobs.put(b"z")
    busy: list[BlobMissing] = []
    wires[A].send = lambda node, message: busy.append(message)  # type: ignore[method-assign, assignment, arg-type]
    for number in range(5):
        nodes[A].requested(B, BlobRequest(number, BlobId(blob), 0, 1))
    assert [m.text for m in busy] == ["busy; ask again later"] * 3
    await nodes[A].close()


@pytest.mark.asyncio
async def test_no_more_is_taken_than_the_asker_the_disk_or_the_quota_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes, wires = make_nodes(tmp_path, [A, B])
    blob = nodes[A].blobs.put(bytes(2_000_000))
    with pytest.raises(StorageError, match="it has 2,000,000 bytes; at most 1,999,999 are taken"):
        await nodes[B].fetch(blob, size_max=1_999_999)
    monkeypatch.setattr(nodes[B].blobs, "room", lambda: 5)
    nodes[B].keep(A, Keep("j", 1, (blob,), A))
    assert "it has 2,000,000 bytes; at most 5 are taken" in (await wires[B].kept.get()).error
    monkeypatch.setattr(nodes[B].blobs, "_quota", 1_000_000)
    with pytest.raises(StorageError, match="holds 0 of 1,000,000 bytes"):
        await nodes[B].fetch(blob, size_max=2_000_000)
    assert list(nodes[B].blobs.list()) == []
    assert not any((tmp_path / "b/temporary").iterdir())


@pytest.mark.asyncio
async def test_a_cancelled_fetch_waits_for_its_thread_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes, _ = make_nodes(tmp_path, [A, B])
    blob = nodes[A].blobs.put(b"x" * 1000)
    entered, go = threading.Event(), threading.Event()
    open_at_the_end: list[bool] = []

    def slow(writer: BlobWriter) -> None:
        entered.set()
        go.wait(10)
        open_at_the_end.append(writer._descriptor >= 0)

    monkeypatch.setattr(BlobWriter, "finish", slow)
    fetch = asyncio.ensure_future(nodes[B].fetch(blob))
    await asyncio.to_thread(entered.wait, 10)
    fetch.cancel()
    await asyncio.sleep(0)
    assert not fetch.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await fetch
    assert open_at_the_end == [True]
    assert not any((tmp_path / "b/temporary").iterdir())


@pytest.mark.asyncio
async def test_a_fetch_goes_on_when_its_first_asker_goes_away(tmp_path: Path) -> None:
    nodes, wires = make_nodes(tmp_path, [A, B])
    blob = nodes[A].blobs.put(b"x" * 1000)
    asked = asyncio.Event()
    send = wires[B].send
    wires[B].send = lambda node, message: asked.set()  # type: ignore[method-assign]
    first = asyncio.ensure_future(nodes[B].fetch(blob))
    await asked.wait()
    wires[B].send = send  # type: ignore[method-assign]
    looking = nodes[B].blobs.has
    looked = asyncio.Event()
    loop = asyncio.get_running_loop()
    nodes[B].blobs.has = lambda blob: (loop.call_soon_threadsafe(looked.set), looking(blob))[1]  # type: ignore[method-assign]
    second = asyncio.ensure_future(nodes[B].fetch(blob))
    await looked.wait()
    first.cancel()
    async with asyncio.timeout(10):
        await second
    assert first.cancelled()
    assert nodes[B].blobs.has(blob)


@pytest.mark.asyncio
async def test_a_peer_that_is_lost_and_comes_back_is_counted_right(tmp_path: Path) -> None:
    nodes, _ = make_nodes(tmp_path, [A, B])
    blob = nodes[A].blobs.put(b"z")
    nodes[A].requested(B, BlobRequest(1, blob, 0, 1))
    nodes[A].peer_lost(B, "reset")
    nodes[A].requested(B, BlobRequest(2, blob, 0, 1))
    assert nodes[A]._served == {B: 2}
    await nodes[A]._tasks.drain()
    assert nodes[A]._served == {}


@pytest.mark.asyncio
async def test_whether_a_blob_is_anywhere_is_asked_without_fetching_it(tmp_path: Path) -> None:
    nodes, _ = make_nodes(tmp_path, [A, B, C])
    blob = nodes[A].blobs.put(b"x" * 3_000_000)
    async with asyncio.timeout(5):
        assert await nodes[A].is_anywhere(blob)
        assert await nodes[C].is_anywhere(blob)
        assert not await nodes[C].is_anywhere(blob_id(b"nowhere"))
    assert not nodes[C].blobs.has(blob)
    assert not nodes[B].blobs.has(blob)


@pytest.mark.asyncio
async def test_a_member_that_hangs_does_not_delay_what_another_knows(tmp_path: Path) -> None:
    nodes, _ = make_nodes(tmp_path, [A, B, C])
    blob = nodes[C].blobs.put(b"x")
    nodes[B].requested = lambda node, message: None  # type: ignore[method-assign]
    async with asyncio.timeout(5):
        assert await nodes[A].is_elsewhere(blob)
        assert not await nodes[A].is_elsewhere(blob, {B, C})
    assert nodes[A]._asked == {}
