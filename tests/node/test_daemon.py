"""Whole daemons in one loop: they join, run a job, lose each other, and route nothing to the wrong part."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from p2pnn.cluster import (
    Event,
    LinkRestored,
    MemberFailed,
    MemberLeft,
    MemberRefuted,
    MemberSuspected,
)
from p2pnn.errors import NotAllowedError, UsageError
from p2pnn.job.spec import DataParallel
from p2pnn.node.daemon import Daemon, resident_bytes
from p2pnn.types import Address, NodeId
from p2pnn.wire import messages as wire
from tests.node.nodes import B, C, config, daemons, stored, toy, until

pytestmark = pytest.mark.asyncio


async def test_two_daemons_run_a_job_together_and_both_remember_it(tmp_path: Path) -> None:
    async with daemons(tmp_path, "a", "b") as (a, b):
        spec, blobs = toy(nodes=("a", "b"))
        job = await a.jobs.submit(stored(spec, blobs, a.storage.blobs))
        events = [event async for event in a.jobs.events(job, 0)]
        assert events[-1]["state"] == "done", events[-1]
        kinds = [event["kind"] for event in events]
        assert kinds.index("plan") < kinds.index("epoch") < kinds.index("evaluation") < kinds.index("result")
        await until(lambda: b.jobs.get(job).state == "done")
        assert b.jobs.get(job).bits == a.jobs.get(job).bits
        await until(lambda: (a.place.job, b.place.job) == (None, None))
        assert a.place.executor_pids == b.place.executor_pids == {}


async def test_what_a_daemon_that_is_stopped_had_goes_on_at_the_others(tmp_path: Path) -> None:
    async with daemons(tmp_path, "a", "b") as (a, b):
        spec, blobs = toy(nodes=("b",), epochs=30)
        job = await b.jobs.submit(stored(spec, blobs, b.storage.blobs))
        await until(lambda: a.jobs.records.get(job) and a.jobs.get(job).state == "running")
        await b.close("node b was stopped")
        assert b.place.executor_pids == {}
        assert list(a.members.names().values()) == ["a"]
        await until(lambda: a.jobs.get(job).state == "done")
        told = [event["text"] async for event in a.jobs.events(job, 0) if event["kind"] == "recovered"]
        assert "node b is lost" in told[0]
        assert "over a after" in told[0]


async def test_a_broken_link_ends_the_start_over_it_and_no_member_and_the_job_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with daemons(tmp_path, "a", "b") as (a, b):
        spec, blobs = toy(nodes=("a", "b"), epochs=500)
        job = await a.jobs.submit(stored(spec, blobs, a.storage.blobs))
        await until(lambda: a.jobs.get(job).state == "running")
        a.transport._peers[b.node].control.close(wire.CloseReason.FAILED, "a test broke it")
        await until(lambda: a.jobs.get(job).state == "recovering")
        assert a.jobs.get(job).reason == "node b is lost (its link broke (a test broke it))"
        await until(lambda: len(a.members.names()) == len(b.members.names()) == 2)
        await until(lambda: a.jobs.get(job).state == "running")
        assert {share.name for share in a.jobs.get(job).plan.nodes} == {"a", "b"}  # type: ignore[union-attr]
        await a.jobs.ask(job, "cancel")
        await until(lambda: b.place.job is None)
        await until(lambda: [row.state for row in (*a.members.snapshot(), *b.members.snapshot())] == ["alive", "alive"])
        assert "member gone" not in caplog.text


async def test_messages_for_nobody_are_dropped_and_nothing_is_routed_after_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with daemons(tmp_path, "a") as (a,):
        a.message(B, wire.Ping(1))
        assert "message without a receiver type=Ping" in caplog.text
        for body in (wire.Tensor("toy-1", 1, 0, 0), wire.BlobPiece(1, "0" * 64, 0, 1), wire.Ping(1)):
            assert a.body_for(B, body, 100) is None
            a.body(B, body) if not isinstance(body, wire.Ping) else None
        await a.close("over")
        a.message(B, wire.Reserve("toy-1", 1))
        assert a.place.job is None


async def test_every_message_of_the_wire_that_a_peer_may_send_has_a_receiver(tmp_path: Path) -> None:
    links = {wire.Hello, wire.Welcome, wire.Close, wire.Ping, wire.Pong}
    secured = {wire.Petition, wire.Ruling, wire.AuthorityWanted, wire.AuthorityKey, wire.AuthorityHeld}
    strangers = {wire.Offer, wire.Join, wire.Joined}
    async with daemons(tmp_path, "a") as (a,):
        bodiless = {kind for kind in wire.AnyMessage.__args__ if not kind.BODY}
        assert bodiless - links - strangers - secured == set(a._routes)


async def test_an_address_that_others_reach_and_a_port_in_use_are_refused_and_the_folder_is_free_again(
    tmp_path: Path,
) -> None:
    with pytest.raises(NotAllowedError, match="without credentials"):
        await Daemon(config(tmp_path, listen=Address("0.0.0.0", 0))).start()
    async with daemons(tmp_path, "b") as (b,):
        with pytest.raises(UsageError, match=str(b.address.port)):
            await Daemon(config(tmp_path, listen=b.address)).start()
    async with daemons(tmp_path, "a") as (a,):
        assert a.address.port > 0


async def test_garbage_of_a_member_costs_the_job_nothing(tmp_path: Path) -> None:
    async with daemons(tmp_path, "a", "b", "c") as (a, _, c):
        spec, blobs = toy(nodes=("a", "b"), epochs=30)
        job = await a.jobs.submit(stored(spec, blobs, a.storage.blobs))
        await until(lambda: a.jobs.get(job).state == "running")
        liar = c.transport
        for message in (
            wire.Command(job, 1, b"\xc1"),
            wire.JobFailed(job, 1, "I say so"),
            wire.Report(job, 1, b"\xc1"),
            wire.Release(job, 9),
            wire.Prepare(job, 1, "0" * 64, b"", b"", (c.node,), 0, ()),
            wire.Record(job, 1, 10**9, b"\x91" * 5000),
            wire.Retired(job, 1, 0, 10**12),
            wire.Squares(job, 1, 0, 0, ()),
            wire.Kept(job, 1),
            wire.ProfileReply(1, b"\xc1"),
            wire.LinkProbed(1),
            wire.Roster(()),
            wire.Gossip((wire.Fact(c.node, "c", "127.0.0.1", 1, "x", 10**9, wire.Life.SUSPECT, c.node, "I say so"),)),
            wire.Ack(10**9),
            wire.Nack(10**9),
            wire.ProbeRequest(1, "0" * 32),
            wire.Pull(),
            wire.Testimony(a.node, 1),
        ):
            liar.send(a.node, message)
        for body in (wire.Tensor(job, 1, 0, 0), wire.BlobPiece(1, "0" * 64, 0, 10)):
            await liar.send_body(a.node, body, memoryview(bytes(1000)))
        last = [event async for event in a.jobs.events(job, 0)][-1]
        assert last["state"] == "done", last
        assert NodeId(c.node) in a.members.names()


@pytest.mark.parametrize(
    "event",
    [MemberRefuted(B), MemberFailed(B, "no probe was answered"), MemberLeft(B)],
    ids=lambda event: type(event).__name__,
)
async def test_who_is_suspected_is_known_to_who_plans_until_it_is_over(tmp_path: Path, event: Event) -> None:
    async with daemons(tmp_path, "a") as (a,):
        for suspect in (B, C):
            a.members._route(MemberSuspected(suspect, a.node, "it answers no probe"))
        assert a.planning.suspected == {B, C}
        a.members._route(LinkRestored(wire.Member(B, "b", "127.0.0.1", 1, "boot")))
        assert a.planning.suspected == {B, C}, "a link alone refutes nothing: whoever is asked may still not answer"
        a.members._route(event)
        assert a.planning.suspected == {C}


async def test_memory_is_told() -> None:
    assert 1 << 20 < resident_bytes() < 1 << 33
    await asyncio.sleep(0)


async def test_a_table_of_jobs_that_cannot_be_read_ends_nothing_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with daemons(tmp_path, "a") as (a,):
        await until(lambda: a.charter.coordinates)
        fenced: list[int] = []
        monkeypatch.setattr(a.place, "decided", lambda _, decided: fenced.append(decided))
        charter = a.charter.committed
        assert charter is not None
        for work in (b"", b"\xc1"):
            a.charter_committed(charter.successor(work=work))
        assert len(fenced) == 1


async def test_what_a_member_without_a_part_in_it_pushes_and_sends_disturbs_no_data_parallel_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with daemons(tmp_path, "a", "b", "c") as (a, b, c):
        spec, blobs = toy(nodes=("a",), epochs=20)
        job = await a.jobs.submit(stored(spec, blobs, a.storage.blobs))
        await until(lambda: a.jobs.get(job).state == "done")
        bits = a.jobs.get(job).bits
        data = DataParallel("sync", workers=2, shards=1)
        spec, blobs = toy(parallel="data", data=data, nodes=("a", "b"), epochs=20)
        job = await a.jobs.submit(stored(spec, blobs, a.storage.blobs))
        await until(lambda: a.jobs.get(job).state == "running")
        body = memoryview(bytes(1000))

        async def harm() -> None:
            """As a worker and as a shard that it is not, and of other sizes."""
            generation = a.jobs.get(job).generation
            for node in (a.node, b.node):
                for number in range(2):
                    await c.transport.send_body(node, wire.Push(job, 0, generation, number, 1, 0, 1000), body)
                    values = wire.Values(job, generation, 0, number, 1, 0, 9, 9, True, 0)
                    await c.transport.send_body(node, values, body)
                    c.transport.send(node, wire.Pushed(job, 0, generation, number, 99))
                    c.transport.send(node, wire.Mark(job, generation, 0, number, 99))
                    c.transport.send(node, wire.Fetch(job, generation, 0, number, 99))

        for _ in range(30):
            await harm()
        await until(lambda: a.jobs.get(job).state in ("done", "failed"))
        assert (a.jobs.get(job).state, a.jobs.get(job).bits) == ("done", bits), a.jobs.get(job).reason
        for kind in ("push refused", "values refused"):
            lines = [record.getMessage() for record in caplog.records if kind in record.getMessage()]
            assert lines
            assert all(f"node={c.node[:8]}" in line for line in lines)
        assert len(c.members.names()) == 3, "and nobody is cut off for what a race could have sent"
