"""What tests of the node's parts share: a transport that only records, a small job, and daemons in the test's own loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from p2pnn import nn
from p2pnn.cluster.charter import Charter, CharterMember, Version, found
from p2pnn.config import NodeConfig
from p2pnn.data.blobs import BlobStore
from p2pnn.errors import CharterError, PeerGone, ProposalRefused
from p2pnn.job.plan import NodeShare, Plan, Replica, ShardHome
from p2pnn.job.spec import DataParallel, JobSpec
from p2pnn.node.blobs import BlobExchange
from p2pnn.node.daemon import Daemon
from p2pnn.node.links import Post
from p2pnn.plan.profile import Profile
from p2pnn.transport import LinkSnapshot
from p2pnn.types import Address, BlobId, JobId, NodeId
from p2pnn.wire.messages import LinkKind, Message
from tests.integration.mesh import make_job

A, B, C = (NodeId(c * 32) for c in "abc")
NAMES = {A: "a", B: "b", C: "c"}
JOB = JobId("toy-1")
DEADLINE_S = 20.0


class OnItsWay:
    """A body that has not left; see `node.links.Leaving`."""

    def __init__(self, recorder: Recorder, message: Message, rest: Coroutine[Any, Any, None]) -> None:
        self._recorder, self._message, self._rest = recorder, message, rest
        self._recalled = asyncio.Event()

    def __await__(self) -> Generator[Any, None, None]:
        return self._wait().__await__()

    async def _wait(self) -> None:
        both = [asyncio.ensure_future(work) for work in (self._rest, self._recalled.wait())]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not self._recalled.is_set():
                await both[0]
        finally:
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)

    def recall(self) -> None:
        self._recorder.recalled.append(self._message)
        self._recalled.set()


class Recorder:
    """The outside of a node: keeps what is sent. peers: who is connected; queued: what waits on each control link."""

    def __init__(self) -> None:
        self.sent: list[tuple[NodeId, Message]] = []
        self.bodies: list[tuple[NodeId, Message, bytes]] = []
        self.peers: set[NodeId] = {A, B, C}
        self.waiting = 0
        self.hold: asyncio.Event | None = None
        self.recalled: list[Message] = []
        self.on_body: Callable[[NodeId, Message], None] = lambda node, message: None

    def send(self, node: NodeId, message: Message) -> None:
        if node not in self.peers:
            raise PeerGone("it is not connected")
        self.sent.append((node, message))

    async def send_body(self, node: NodeId, message: Message, body: memoryview, priority: int = 0) -> None:
        if node not in self.peers:
            raise PeerGone("it is not connected")
        self.bodies.append((node, message, bytes(body)))
        self.on_body(node, message)
        if self.hold is not None:
            await self.hold.wait()

    def start_body(self, node: NodeId, message: Message, body: memoryview, priority: int = 0) -> OnItsWay | None:
        """As the transport does: a body that leaves at once needs no waiting."""
        if self.hold is not None or node not in self.peers:
            return OnItsWay(self, message, self.send_body(node, message, body, priority))
        self.bodies.append((node, message, bytes(body)))
        self.on_body(node, message)
        return None

    def connected(self, node: NodeId) -> bool:
        return node in self.peers

    def snapshot(self) -> tuple[LinkSnapshot, ...]:
        address = Address("127.0.0.1", 1)
        links = [(node, kind) for node in sorted(self.peers) for kind in LinkKind]
        return tuple(
            LinkSnapshot(node, NAMES[node], kind, address, True, None, self.waiting, 0, 0) for node, kind in links
        )

    def of(self, kind: type[Message], node: NodeId | None = None) -> list[Any]:
        return [m for n, m in self.sent if isinstance(m, kind) and node in (None, n)]


def post(here: NodeId = A) -> tuple[Post, Recorder]:
    """A post whose messages to its own node are recorded like those to others."""
    outside = Recorder()
    return Post(here, NAMES[here], outside, lambda node, message: outside.sent.append((node, message))), outside


def exchange(folder: Path, the_post: Post) -> BlobExchange:
    return BlobExchange(BlobStore(folder / "blobs"), the_post, list)


class FakeCluster:
    """A charter as jobs see it: what is proposed holds in the loop's next turn, under the generations 1, 2, 3, …

    coordinator: whoever the test elects (`elect`), at first this node. voting: the voters. refuses: how many proposals are
    refused from now on. work_bytes_max: a larger table is too large for the charter. delays: what is proposed holds when the
    test says so (`commit`).
    """

    def __init__(self, node: NodeId) -> None:
        self.node = node
        self.coordinator: NodeId | None = node
        self.term = 1
        self.voting: tuple[NodeId, ...] = (node,)
        self.refuses = 0
        self.alarm = ""
        self.work_bytes_max = 1 << 18
        self.delays = False
        self.proposed: list[Charter] = []
        self.charter = msgspec.structs.replace(found("test", CharterMember(node, "", NAMES[node])), revision=0)
        self.committed: Callable[[Charter], None] = lambda charter: None
        self.changed: Callable[[NodeId | None], None] = lambda coordinator: None

    @property
    def coordinates(self) -> bool:
        return self.coordinator == self.node

    def voters(self) -> tuple[NodeId, ...]:
        return self.voting

    def propose_work(self, make: Callable[[int], bytes]) -> Version:
        if not self.coordinates or self.proposed:
            raise ProposalRefused("this node does not lead, or a change is under way")
        if self.refuses:
            self.refuses -= 1
            raise ProposalRefused("a member is being admitted")
        version = Version(self.charter.term, self.charter.revision + 1)
        work = make(version.generation)
        if len(work) > self.work_bytes_max:
            raise CharterError("the charter would be too large")
        self.proposed.append(msgspec.structs.replace(self.charter, revision=version.revision, work=work))
        if not self.delays:
            asyncio.get_running_loop().call_soon(self.commit)
        return version

    def commit(self) -> None:
        """What was proposed holds; without a proposal, what held before is said again."""
        if self.proposed:
            self.charter = self.proposed.pop()
        self.committed(self.charter)

    def elect(self, node: NodeId | None, work: bytes | None = None) -> None:
        """Another coordinator, whose first charter holds at once. work: what that one has decided until then."""
        self.coordinator, self.term = node, self.term + 1
        self.proposed.clear()
        self.changed(node)
        if node is not None:
            kept = self.charter.work if work is None else work
            self.charter = msgspec.structs.replace(self.charter, revision=self.charter.revision + 1, work=kept)
            self.committed(self.charter)


def perceptron() -> nn.Model:
    x = nn.Input("x", (6,))
    label = nn.Input("label", (), dtype="int64")
    h = nn.relu(nn.Linear(5, name="one")(x))
    logits = nn.Linear(3, name="two")(h)
    return nn.Model(
        outputs={"class": nn.argmax(logits)},
        loss=nn.cross_entropy(logits, label),
        metrics={"accuracy": nn.accuracy(logits, label)},
    )


def toy(rows: int = 120, **settings: Any) -> tuple[JobSpec, dict[BlobId, bytes]]:
    """A job of a second, and its chunks."""
    dice = np.random.default_rng(5)
    label = dice.integers(0, 3, rows)
    x = (dice.normal(size=(3, 6))[label] + 0.3 * dice.normal(size=(rows, 6))).astype(np.float32)
    return make_job(perceptron(), {"x": x, "label": label.astype(np.int64)}, **settings)


def stored(spec: JobSpec, blobs: dict[BlobId, bytes], store: BlobStore) -> BlobId:
    """Put a job into a store; the name of its spec."""
    for data in blobs.values():
        store.put(data)
    return store.put(msgspec.msgpack.encode(spec))


def plan_of(spec: JobSpec, nodes: list[NodeId], cut: int = 2) -> Plan:
    """The first `cut` ops on the first node, the others on the last; two frames."""
    shares = tuple(NodeShare(n, NAMES[n], "", 0, 0, 0, 0.1) for n in nodes)
    ops = len(spec.graph.ops)
    return Plan(shares, tuple(0 if i < cut else len(nodes) - 1 for i in range(ops)), 2, 1.0, 1.0, reasons=("first",))


def toy_of_data(**settings: Any) -> tuple[JobSpec, dict[BlobId, bytes]]:
    """The same job, data-parallel."""
    return toy(parallel="data", **({"data": DataParallel()} | settings))


def plan_of_data(spec: JobSpec, nodes: Sequence[NodeId], workers: Sequence[int], homes: Sequence[int]) -> Plan:
    """workers: which nodes compute, each for a replica; homes: where each shard lies."""
    shares = tuple(NodeShare(n, NAMES[n], "", 0, 0, 0, 0.1) for n in nodes)
    replicas, shards = tuple(Replica((n,)) for n in workers), tuple(ShardHome((n,)) for n in homes)
    return Plan(shares, (0,) * len(spec.graph.ops), 2, 1.0, 1.0, reasons=("first",), replicas=replicas, shards=shards)


def profile(node: NodeId = A, **changes: Any) -> Profile:
    found = Profile(node, NAMES.get(node, "x"), 20.0, 10.0, 5e9, 1e-5, 1 << 30, fingerprint="f")
    return msgspec.structs.replace(found, **changes)


def config(folder: Path, name: str = "a", **changes: Any) -> NodeConfig:
    """A daemon on a free port, with a profile that needs no measuring."""
    folder.mkdir(parents=True, exist_ok=True)
    cache = folder / "profile"
    import os

    cache.write_bytes(msgspec.msgpack.encode(profile(cores=os.cpu_count() or 1)))
    fields: dict[str, Any] = {
        "name": name,
        "state_dir": folder / name,
        "listen": Address("127.0.0.1", 0),
        "join": (),
        "socket": folder / f"{name}.sock",
        "cluster": "test",
        "profile_cache": cache,
    }
    return NodeConfig(**(fields | changes))


@contextlib.asynccontextmanager
async def daemons(folder: Path, *names: str) -> AsyncIterator[list[Daemon]]:
    """Daemons that see each other, in this loop."""
    found: list[Daemon] = []
    try:
        for name in names:
            joins = (found[0].address,) if found else ()
            found.append(Daemon(config(folder, name, join=joins)))
            await found[-1].start()
        await until(lambda: all(len(d.members.names()) == len(names) for d in found))
        yield found
    finally:
        for daemon in found:
            await daemon.close("the test is over")


async def until(condition: Callable[[], object]) -> None:
    """Wait, by turns of the loop, until it holds."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)
