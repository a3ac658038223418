"""What a draining node does, in its order, and when it does not; with real nodes it is in integration/test_draining."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from p2pnn.cluster.petitions import Change
from p2pnn.errors import NotAllowedError
from p2pnn.node import draining as module
from p2pnn.node.asking import AskAgain
from p2pnn.node.coordinator import Coordinator
from p2pnn.node.draining import Draining
from p2pnn.wire import messages as wire
from tests.node.nodes import A, B, C, daemons, exchange, post, stored, toy, until

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


class Bench:
    def __init__(self, folder: Path) -> None:
        self.post, self.outside = post(A)
        self.exchange = exchange(folder, self.post)
        self.charter = FakeCharter()
        self.asking = FakeAsking()
        self.members = {A: "a", B: "b", C: "c"}
        self.job: str | None = None
        self.told: list[bool] = []
        self.left = asyncio.Event()
        coordinator = Coordinator(self.post, self.charter, self.asking, lambda: self.members, lambda: True)  # type: ignore[arg-type]
        jobs: Any = type("Jobs", (), {"coordinator": coordinator, "records": {}})()
        self.draining = Draining(
            self.post, self.charter, jobs, self, self.exchange, lambda: self.members, lambda: self.members, self.told.append  # type: ignore[arg-type]
        )  # fmt: skip
        self.draining.when_drained = self.left.set

    async def drain(self, **more: bool) -> list[str]:
        return [words async for words in self.draining.drain(**({"force": False} | more))]


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
