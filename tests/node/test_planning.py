"""What a plan is made of, asked of peers that may answer anything or nothing."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest

from p2pnn.errors import PlanError, StorageError
from p2pnn.node import planning as module
from p2pnn.node.links import Post
from p2pnn.node.planning import PROBE_BYTES, Planning, Report
from p2pnn.plan.profile import Link, Profile
from p2pnn.types import NodeId
from p2pnn.wire import messages as wire
from tests.node.nodes import NAMES, A, B, C, Recorder, profile, toy, until

pytestmark = pytest.mark.asyncio


class Bench:
    """Node A's planning, with a cached profile; the test answers for B."""

    def __init__(self, folder: Path, members: tuple[NodeId, ...] = (A, B)) -> None:
        self.outside = Recorder()
        self.cache = folder / "cache" / "profile"
        self.cache.parent.mkdir(parents=True)
        self.cache.write_bytes(msgspec.msgpack.encode(profile(cores=os.cpu_count() or 1)))
        self.answer: Callable[[int], bytes | None] = lambda request: None
        the_post = Post(A, "a", self, lambda node, message: None)
        self.planning = Planning(the_post, lambda: {node: NAMES[node] for node in members}, self.cache)

    def send(self, node: NodeId, message: wire.Message) -> None:
        self.outside.send(node, message)
        if isinstance(message, wire.ProfileRequest):
            data = self.answer(message.request)
            if data is not None:
                reply = wire.ProfileReply(message.request, data)
                asyncio.get_running_loop().call_soon(self.planning.receive, node, reply)

    async def send_body(self, node: NodeId, message: wire.Message, body: memoryview, priority: int = 0) -> None:
        await self.outside.send_body(node, message, body, priority)
        assert isinstance(message, wire.LinkProbe)
        asyncio.get_running_loop().call_soon(self.planning.receive, node, wire.LinkProbed(message.request))

    def start_body(
        self, node: NodeId, message: wire.Message, body: memoryview, priority: int = 0
    ) -> Coroutine[Any, Any, None] | None:
        return self.send_body(node, message, body, priority)

    def connected(self, node: NodeId) -> bool:
        return True

    def snapshot(self) -> tuple[()]:
        return ()


def report(found: Profile, **links: Link) -> bytes:
    return msgspec.msgpack.encode(Report(found, {NodeId(k): v for k, v in links.items()}))


async def test_all_members_that_answer_are_planned_over(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.answer = lambda request: report(profile(B, name="liar"), **{A: Link(1e9, 1e-4)})
    plan = await bench.planning.plan(toy(node_count=2)[0])
    assert [share.name for share in plan.nodes] in (["a", "b"], ["b", "a"])
    sizes = [len(body) for _, message, body in bench.outside.bodies if isinstance(message, wire.LinkProbe)]
    assert sorted(set(sizes)) == [8, PROBE_BYTES]
    probes = len(bench.outside.bodies)
    await bench.planning.plan(toy()[0])
    assert len(bench.outside.bodies) == probes  # links are remembered
    bench.planning.peer_lost(B, "it is gone")
    await bench.planning.plan(toy()[0])
    assert len(bench.outside.bodies) > probes
    await bench.planning.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"\xc1",
        b"\x91" * 50_000,
        report(profile(B, gemm_gflops=float("nan"))),
        report(profile(B, conv_gflops=-1.0)),
        report(profile(B, memory_bytes_max=0)),
        report(profile(B, overhead_s=1e9)),
        report(profile(B), x=Link(0.0, 1.0)),
        report(profile(B), x=Link(float("inf"), 1.0)),
    ],
    ids=["garbage", "nested", "nan", "negative", "no-memory", "slow", "no-bandwidth", "infinite"],
)
async def test_a_peer_whose_profile_is_nonsense_is_planned_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, answer: bytes
) -> None:
    bench = Bench(tmp_path)
    bench.answer = lambda request: answer
    plan = await bench.planning.plan(toy()[0])
    assert [share.node for share in plan.nodes] == [A]
    assert plan.reasons[-1].startswith("node b is left out: its profile")
    assert "no profile node=b reason=its profile" in caplog.text
    await bench.planning.close()


async def test_a_profile_in_anothers_name_counts_for_its_sender(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.answer = lambda request: report(profile(A, name="a", gemm_gflops=900.0, conv_gflops=900.0))
    plan = await bench.planning.plan(toy(nodes=("b",))[0])
    assert [share.node for share in plan.nodes] == [B]
    await bench.planning.close()


async def test_a_peer_that_is_lost_or_silent_does_not_hold_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(tmp_path)
    plan = asyncio.ensure_future(bench.planning.plan(toy()[0]))
    await until(lambda: bench.outside.of(wire.ProfileRequest))
    bench.planning.peer_lost(B, "connection reset")
    assert [share.node for share in (await plan).nodes] == [A]
    assert "connection reset" in caplog.text
    monkeypatch.setattr(module, "ANSWER_TIMEOUT_S", 0.05)
    assert [share.node for share in (await bench.planning.plan(toy()[0])).nodes] == [A]
    assert "no answer within" in caplog.text
    await bench.planning.close()


async def test_nobody_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_TIMEOUT_S", 0.05)
    bench = Bench(tmp_path, (B,))
    with pytest.raises(PlanError, match="no node has answered"):
        await bench.planning.plan(toy()[0])


async def test_answers_that_were_not_asked_for_are_ignored(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    plan = asyncio.ensure_future(bench.planning.plan(toy()[0]))
    await until(lambda: bench.outside.of(wire.ProfileRequest))
    request = bench.outside.of(wire.ProfileRequest)[0].request
    good = report(profile(B, gemm_gflops=1.0))
    bench.planning.receive(C, wire.ProfileReply(request, b"from C"))
    bench.planning.receive(B, wire.ProfileReply(request + 99, b"to nothing"))
    bench.planning.receive(B, wire.ProfileReply(request, good))
    bench.planning.receive(B, wire.ProfileReply(request, b"twice"))
    assert (await plan).nodes
    await bench.planning.close()


async def test_a_request_is_answered_with_this_nodes_profile_and_a_flood_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REPLIES_MAX", 2)
    bench = Bench(tmp_path)
    for number in range(5):
        bench.planning.receive(B, wire.ProfileRequest(number))
    await until(lambda: len(bench.outside.of(wire.ProfileReply)) == 2)
    found = msgspec.msgpack.decode(bench.outside.of(wire.ProfileReply)[0].profile, type=Report)
    assert (found.profile.node, found.profile.name) == (A, "a")
    assert set(found.links) == {B}
    bench.planning.receive(B, wire.ProfileRequest(9))
    await until(lambda: len(bench.outside.of(wire.ProfileReply)) == 3)
    await bench.planning.close()


async def test_probes_go_into_one_buffer_and_larger_ones_are_dropped(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    probe = wire.LinkProbe(3)
    room = bench.planning.body_for(B, probe, PROBE_BYTES)
    assert room is not None
    assert len(room) == PROBE_BYTES
    assert bench.planning.body_for(B, probe, PROBE_BYTES + 1) is None
    bench.planning.body(B, probe)
    assert bench.outside.of(wire.LinkProbed) == [wire.LinkProbed(3)]


@pytest.mark.parametrize("spoil", ["old", "other-machine", "garbage", "absent"])
async def test_a_cache_that_does_not_hold_is_measured_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: str
) -> None:
    bench = Bench(tmp_path)
    if spoil == "old":
        past = time.time() - 2 * module.PROFILE_AGE_S
        os.utime(bench.cache, (past, past))
    elif spoil == "other-machine":
        bench.cache.write_bytes(msgspec.msgpack.encode(profile(cores=1000)))
    elif spoil == "garbage":
        bench.cache.write_bytes(b"\xc1")
    else:
        bench.cache.unlink()
        bench.cache.parent.rmdir()
    measured = tmp_path / "measured"
    measured.write_bytes(msgspec.msgpack.encode(profile(gemm_gflops=77.0, cores=os.cpu_count() or 1)))
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\ncat {measured}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    assert bench.planning.known is None
    assert (await bench.planning.profile()).gemm_gflops == 77.0
    assert bench.planning.known is not None
    assert msgspec.msgpack.decode(bench.cache.read_bytes(), type=Profile).gemm_gflops == 77.0


async def test_a_measurement_that_fails_is_one_sentence_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path)
    cached = bench.cache.read_bytes()
    bench.cache.unlink()
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(StorageError, match="measuring this node failed with exit status 1"):
        await bench.planning.profile()
    bench.cache.write_bytes(cached)
    assert (await bench.planning.profile()).node == A


async def test_daemons_that_share_a_cache_measure_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    benches = [Bench(tmp_path / str(number)) for number in range(3)]
    measured, counts = tmp_path / "measured", tmp_path / "counts"
    measured.write_bytes(msgspec.msgpack.encode(profile(gemm_gflops=77.0, cores=os.cpu_count() or 1)))
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\necho once >> {counts}\ncat {measured}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    for bench in benches:
        bench.planning._cache = tmp_path / "shared" / "profile"
    found = await asyncio.gather(*(bench.planning.profile() for bench in benches))
    assert [one.gemm_gflops for one in found] == [77.0] * 3
    assert counts.read_text() == "once\n"


@pytest.mark.parametrize("already", [True, False])
async def test_nobody_waits_for_who_is_suspected_to_be_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, already: bool
) -> None:
    monkeypatch.setattr(module, "SUSPECTS_S", 0.05)
    monkeypatch.setattr(module, "ANSWER_TIMEOUT_S", 3600.0)
    bench = Bench(tmp_path)  # B says nothing
    bench.planning._links[B] = (asyncio.get_running_loop().time(), Link(1e9, 1e-4))
    if already:
        bench.planning.suspected.add(B)
    planning = asyncio.ensure_future(bench.planning.plan(toy()[0]))
    await until(lambda: bench.outside.of(wire.ProfileRequest))
    bench.planning.suspected.add(B)
    async with asyncio.timeout(10):
        plan = await planning
    assert [share.name for share in plan.nodes] == ["a"]
    assert "node b is left out: it has not answered, and may be dead" in plan.reasons
    assert bench.planning._answers == {}
    await bench.planning.close()


async def test_older_gossip_does_not_undo_what_a_member_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path)
    bench.planning.asked_to_drain(B)
    bench.planning.draining.discard(B)  # as told by gossip from before
    assert set(bench.planning.usable()) == {A}
    monkeypatch.setattr(module, "GOSSIP_S", -1.0)
    bench.planning.asked_to_drain(B)
    assert set(bench.planning.usable()) == {A, B}, "from then on gossip says it"
    bench.planning.draining.add(B)
    assert set(bench.planning.usable()) == {A}
    await bench.planning.close()
