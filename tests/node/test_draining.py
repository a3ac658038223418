"""What a draining node does, in its order, and when it does not; with real nodes it is in integration/test_draining."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from p2pnn.cluster.petitions import Change
from p2pnn.data.blobs import BlobStore
from p2pnn.errors import NotAllowedError, TimedOutError
from p2pnn.job.records import JobRecord
from p2pnn.node import draining as module
from p2pnn.node.asking import AskAgain
from p2pnn.node.blobs import BlobExchange
from p2pnn.node.coordinator import Coordinator
from p2pnn.node.draining import Draining
from p2pnn.node.keeping import Keeping
from p2pnn.node.links import Post
from p2pnn.types import BlobId, JobId, NodeId
from p2pnn.wire import messages as wire
from tests.node.nodes import DEADLINE_S, JOB, A, B, C, Recorder, daemons, stored, toy, until

pytestmark = pytest.mark.asyncio


class FakeCharter:
    """Node A coordinates until it has handed over; `heir` None: nobody takes over."""

    def __init__(self) -> None:
        self.coordinator: Any = A
        self.heir: Any = C
        self.asked = 0

    def propose_members(self, change: Change) -> None:
        assert change.hand_over
        self.asked += 1
        if self.heir is not None:
            self.coordinator = self.heir


class FakeAsking:
    def __init__(self) -> None:
        self.asked: list[tuple[Any, str]] = []

    async def inquire(self, node: Any, name: str, question: Any, timeout_s: float) -> wire.Answered:
        self.asked.append((node, question.verb))
        return wire.Answered(0, "")


class Others(Recorder):
    """The nodes B and C. holds: the blobs that each has; full: what it says once it has as many as `room`; silent: who answers
    no Keep, of which `unheard` is called."""

    def __init__(self) -> None:
        super().__init__()
        self.holds: dict[NodeId, set[str]] = {B: set(), C: set()}
        self.full: dict[NodeId, str] = {}
        self.room = 0
        self.silent: set[NodeId] = set()
        self.unheard: Callable[[], object] = lambda: None
        self.blobs: BlobExchange
        self.keeping: Keeping

    def send(self, node: NodeId, message: wire.Message) -> None:
        super().send(node, message)
        if isinstance(message, wire.BlobRequest):
            asyncio.get_running_loop().call_soon(self._show, node, message)
        elif isinstance(message, wire.Keep) and node in self.silent:
            self.unheard()
        elif isinstance(message, wire.Keep):
            asyncio.get_running_loop().call_soon(self.keep, node, message)

    def keep(self, node: NodeId, message: wire.Keep) -> None:
        error = self.full.get(node, "") if len(self.holds[node]) >= self.room else ""
        if not error:
            self.holds[node] |= set(message.blobs)
        self.keeping.kept(node, wire.Kept(message.job, message.request, error))

    def _show(self, node: NodeId, message: wire.BlobRequest) -> None:
        """One byte of a blob, or that it is not here."""
        if message.blob not in self.holds[node]:
            self.blobs.missing(node, wire.BlobMissing(message.request, message.blob))
            return
        piece = wire.BlobPiece(message.request, message.blob, message.offset, 10)
        assert self.blobs.body_for(node, piece, message.length) is not None
        self.blobs.received(node, piece)


class Bench:
    """Node A drains. leaving: who drains, as all know."""

    def __init__(self, folder: Path) -> None:
        self.others = Others()
        self.post = Post(A, "a", self.others, lambda node, message: None)
        self.members = {A: "a", B: "b", C: "c"}
        self.leaving = {A}
        self.exchange = BlobExchange(BlobStore(folder / "blobs"), self.post, lambda: self.members)
        self.keeping = Keeping(self.post, tuple)
        self.others.blobs, self.others.keeping = self.exchange, self.keeping
        self.charter = FakeCharter()
        self.asking = FakeAsking()
        self.records: dict[JobId, JobRecord] = {}
        self.job: str | None = None
        self.told: list[bool] = []
        self.left = asyncio.Event()
        self.removals, self.undecided, self.out = 0, False, False
        self.heard = asyncio.Event()
        coordinator = Coordinator(self.post, self.charter, self.asking, lambda: self.members, lambda: True)  # type: ignore[arg-type]
        parts = {"coordinator": coordinator, "records": self.records, "keeping": self.keeping}
        jobs: Any = type("Jobs", (), parts)()
        goes = (lambda: self.members, self.usable, self.told.append, self.leave, lambda: self.out)
        self.draining = Draining(self.post, self.charter, jobs, self, self.exchange, *goes)  # type: ignore[arg-type]
        self.draining.when_drained = self.left.set

    def usable(self) -> dict[NodeId, str]:
        return {node: name for node, name in self.members.items() if node not in self.leaving}

    async def leave(self) -> None:
        """Once nothing is left here that others need."""
        self.removals += 1
        assert self.charter.coordinator == C
        assert self.job is None
        await self.heard.wait()
        if self.undecided:
            raise TimedOutError("the cluster decided nothing")

    def knows_a_job(self) -> set[BlobId]:
        """Its blobs, all of which lie here."""
        spec, blobs = toy()
        name = stored(spec, blobs, self.exchange.blobs)
        self.records[JOB] = JobRecord(JOB, "toy", "train", name, "paused", A, "a", 1)
        return {name, *blobs}

    async def drain(self, **more: bool) -> list[str]:
        async with asyncio.timeout(DEADLINE_S):
            found = []
            async for words in self.draining.drain(**({"force": False} | more)):
                found.append(words)
                if "remove it" in words:
                    self.heard.set()
            return found


async def test_it_hands_over_has_its_jobs_moved_and_leaves(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.job = "toy-1"
    waiting = asyncio.ensure_future(bench.drain())
    await until(lambda: bench.asking.asked)
    assert bench.charter.asked == 1
    assert bench.asking.asked == [(C, "drain")]
    assert bench.draining.active
    assert not bench.left.is_set()
    bench.job = None
    words = await waiting
    assert words == ["another node to coordinate the cluster", "job toy-1, until it runs elsewhere"]
    await bench.left.wait()
    assert bench.told == [True]


async def test_without_an_heir_it_stays_and_works_on_unless_forced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HANDOVER_S", 0.05)
    bench = Bench(tmp_path)
    bench.charter.heir = None
    with pytest.raises(NotAllowedError, match=r"no other node took over .* with --force it is drained nevertheless"):
        await bench.drain()
    assert bench.told == [True, False]
    assert not bench.draining.active
    await bench.drain(force=True)
    await bench.left.wait()


async def test_it_leaves_the_cluster_last_and_only_where_it_shall(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    blobs = bench.knows_a_job()
    words = await bench.drain(leave=True)
    assert words[-1] == "the other members to remove it from the cluster"
    assert (bench.removals, bench.draining.has_left) == (1, True)
    assert bench.others.holds[B] == blobs
    await bench.left.wait()
    (tmp_path / "2").mkdir()
    stays = Bench(tmp_path / "2")
    await stays.drain()
    assert (stays.removals, stays.draining.has_left) == (0, False)


async def test_one_that_was_removed_before_is_free_to_go(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.knows_a_job()
    bench.records[JOB] = msgspec.structs.replace(bench.records[JOB], state="running")
    bench.members, bench.charter.coordinator, bench.out = {A: "a"}, C, True
    with pytest.raises(NotAllowedError, match="node a is alone"):
        await bench.drain()
    await bench.drain(leave=True)
    await bench.left.wait()


async def test_where_the_cluster_does_not_remove_it_it_works_on_and_is_asked_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.undecided = True
    with pytest.raises(
        NotAllowedError, match="the cluster decided nothing; with --force it stops nevertheless, and stays a member"
    ):
        await bench.drain(leave=True)
    assert bench.told == [True, False]
    assert not bench.left.is_set()
    await bench.drain(leave=True, force=True)
    await bench.left.wait()
    assert (bench.removals, bench.draining.has_left) == (2, False)
    (tmp_path / "2").mkdir()
    again = Bench(tmp_path / "2")
    again.undecided = True
    with pytest.raises(NotAllowedError):
        await again.drain(leave=True)
    again.undecided = False
    await again.drain(leave=True)
    assert again.draining.has_left


async def test_one_that_is_elected_again_hands_over_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.job = "toy-1"
    waiting = asyncio.ensure_future(bench.drain())
    inquire = bench.asking.inquire

    async def lost(*args: Any) -> wire.Answered:
        bench.asking.inquire = inquire  # type: ignore[method-assign]
        bench.charter.coordinator = A
        raise AskAgain("node c was lost before it answered")

    bench.asking.inquire = lost  # type: ignore[method-assign]
    await until(lambda: bench.asking.asked)
    assert (bench.charter.asked, bench.asking.asked) == (2, [(C, "drain")])
    bench.job = None
    await waiting


async def test_the_coordinator_is_asked_again_while_a_job_has_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AGAIN_S", 0.01)
    monkeypatch.setattr(module, "LOOK_S", 0.001)
    bench = Bench(tmp_path)
    bench.job = "toy-1"
    waiting = asyncio.ensure_future(bench.drain())
    await until(lambda: len(bench.asking.asked) > 1)
    bench.job = "late-1"
    asked = len(bench.asking.asked)
    await until(lambda: len(bench.asking.asked) > asked)
    assert not waiting.done()
    bench.job = None
    assert (await waiting)[1:] == ["job toy-1, until it runs elsewhere", "job late-1, until it runs elsewhere"]


async def test_what_only_this_node_holds_is_copied_and_nothing_else(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    blobs = bench.knows_a_job()
    there = min(blobs)
    bench.others.holds[C] = {there}
    assert (await bench.drain())[-1] == f"node b to copy what only this node holds (1 of {len(blobs) - 1:,})"
    assert bench.others.holds == {B: blobs - {there}, C: {there}}


async def test_what_only_draining_nodes_hold_is_copied_too_and_to_none_of_them(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.leaving = {A, B}
    blobs = bench.knows_a_job()
    bench.others.holds[B] = set(blobs)
    await bench.drain()
    assert bench.others.holds[C] == blobs
    assert bench.others.of(wire.Keep, B) == []


async def test_where_a_node_takes_only_a_part_the_next_one_takes_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "COPIED_MAX", 1)
    bench = Bench(tmp_path)
    blobs = bench.knows_a_job()
    bench.others.full[B], bench.others.room = "the disk is full", 1
    await bench.drain()
    assert len(bench.others.holds[B]) == 1
    assert bench.others.holds[C] == blobs - bench.others.holds[B]
    await bench.left.wait()


async def test_a_node_that_does_not_copy_in_time_is_left_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "COPY_S", 0.01)
    bench = Bench(tmp_path)
    blobs = bench.knows_a_job()
    bench.others.silent.add(B)
    bench.others.unheard = lambda: monkeypatch.setattr(module, "COPY_S", 600.0)  # for the next
    await bench.drain()
    assert bench.others.holds == {B: set(), C: blobs}
    assert bench.keeping._asked == {}, "nobody waits for it any more"


async def test_where_no_node_can_copy_it_stays_and_says_why_of_each(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.knows_a_job()
    bench.others.full = {B: "the disk is full", C: "it is read-only"}
    with pytest.raises(NotAllowedError) as failed:
        await bench.drain()
    assert "holds (node b: the disk is full; node c: it is read-only)" in str(failed.value)
    assert bench.told == [True, False]
    assert not bench.left.is_set()


async def test_forced_it_goes_on_with_what_comes_behind_a_step_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "HANDOVER_S", 0.05)
    bench = Bench(tmp_path)
    blobs = bench.knows_a_job()
    bench.charter.heir = None
    await bench.drain(force=True)
    await bench.left.wait()
    assert bench.others.holds[B] == blobs
    assert caplog.text.count("drained by force reason=no other node took over the coordination") == 2


async def test_a_second_caller_may_add_force(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.knows_a_job()
    bench.others.silent.add(B)
    bench.others.full[C] = "the disk is full"
    first = asyncio.ensure_future(bench.drain())
    await until(lambda: bench.others.of(wire.Keep, B))
    second = asyncio.ensure_future(bench.drain(force=True))
    await until(lambda: bench.draining._force)
    bench.others.full[B] = "the disk is full"
    bench.others.keep(B, bench.others.of(wire.Keep, B)[0])
    await asyncio.gather(first, second)
    await bench.left.wait()
    assert bench.told == [True]


async def test_who_asks_may_go_away_and_ask_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.job = "toy-1"
    words = bench.draining.drain(force=False)
    await anext(words)
    await words.aclose()
    await until(lambda: bench.asking.asked)
    again = asyncio.ensure_future(bench.drain())
    bench.job = None
    await again
    await bench.left.wait()
    assert len(bench.asking.asked) == 1, "the same draining"


async def test_a_draining_node_says_so_to_all_and_is_planned_on_by_nobody(tmp_path: Path) -> None:
    async with daemons(tmp_path, "a", "b") as (a, b):
        await until(lambda: a.charter.coordinator == a.node and len(a.charter.voters()) == 1)
        spec, blobs = toy()
        stored(spec, blobs, a.storage.blobs)
        waiting = b.draining.drain(force=False)
        async for _ in waiting:
            pass
        assert a.node in a.planning.usable()
        assert b.node not in a.planning.usable()
        assert {share.name for share in (await a.planning.plan(spec)).nodes} == {"a"}
        await until(lambda: any(row.about.draining for row in a.members.snapshot()))
