"""A worker's end: what leaves its arena, and which values come into it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from p2pnn.executor import commands
from p2pnn.job import assignment, script
from p2pnn.job.plan import ShardHome
from p2pnn.replication.leases import Wish
from p2pnn.types import NodeId
from p2pnn.wire import messages as wire
from tests.node.data_bench import DataBench, fake_executors
from tests.node.nodes import JOB, A, B, C, until

pytestmark = pytest.mark.asyncio
STRANGER = NodeId("d" * 32)


@pytest.fixture(autouse=True)
def fake_executor(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_executors(monkeypatch)


async def test_a_push_leaves_from_the_arena_and_its_memory_is_free_when_it_has_left(tmp_path: Path) -> None:
    bench = DataBench(tmp_path)
    await bench.begin()
    start = bench.prepares[0].landings
    bench.compute.memory[start : start + 4] = b"abcd"
    part = commands.PushPart(11, 1, 3, 0, start, 4, 8, 7, True, 5, 2, 6)
    bench.outside.hold = asyncio.Event()
    bench.compute.say(part)
    await until(lambda: bench.outside.bodies)
    [(node, message, body)] = bench.outside.bodies
    shard = bench.worked.sharding.shards[1]
    assert (node, body) == (C, b"abcd")
    assert message == wire.Push(JOB, 1, 1, 1, 3, 0, shard.byte_count, 0, 8, 7, True, 5, 6)
    assert bench.compute.sent == []
    bench.outside.hold.set()
    await until(lambda: bench.compute.sent)
    assert bench.compute.sent == [commands.Left(11)]


async def test_fetches_go_to_their_shard_and_marks_to_all(tmp_path: Path) -> None:
    bench = DataBench(tmp_path)
    await bench.begin()
    bench.both_ready()
    bench.command(script.Train(1, 4))
    bench.compute.say(commands.FetchValues(1, 4, 2, 9))
    bench.compute.say(commands.SendMark(9))
    await until(lambda: bench.outside.of(wire.Mark, B))
    assert bench.outside.of(wire.Fetch) == [wire.Fetch(JOB, 1, 1, 1, 4, 2, 9)]
    assert bench.outside.of(wire.Fetch, C)
    assert bench.outside.of(wire.Mark, B) == [wire.Mark(JOB, 1, 0, 1, 9)]
    assert bench.outside.of(wire.Mark, C) == [wire.Mark(JOB, 1, 1, 1, 9)]


async def test_no_shard_is_asked_before_the_first_command_says_that_all_nodes_are_prepared(tmp_path: Path) -> None:
    bench = DataBench(tmp_path)
    await bench.begin()
    bench.both_ready()
    for request in (1, 2):
        bench.compute.say(commands.FetchValues(1, request, 0, 0))
    bench.compute.say(commands.FetchValues(0, 1, 0, 0))
    assert bench.outside.of(wire.Fetch) == []
    bench.command(script.Train(1, 4))
    await until(lambda: bench.outside.of(wire.Fetch, B))
    assert bench.outside.of(wire.Fetch, C) == [wire.Fetch(JOB, 1, 1, 1, 2)]
    bench.command(script.Train(2, 8))
    assert len(bench.outside.of(wire.Fetch, C)) == 1


async def test_values_are_received_into_a_lent_place_once(tmp_path: Path) -> None:
    bench = DataBench(tmp_path)
    await bench.begin()
    values, nbytes = bench.values(), bench.value_bytes()
    bench.compute.say(commands.Lend(1))
    place = bench.place.body_for(C, values, nbytes)
    assert place is not None
    place[:4] = b"abcd"
    offset = bench.prepares[0].landings + bench.worked.landings[1][0] - bench.worked.start
    assert bench.compute.memory[offset : offset + 4] == b"abcd"
    assert bench.compute.sent == []
    bench.place.body(C, values)
    told = commands.Answered(1, 3, 0, 0, "LATE", 9, True, 8, 7, True, 4, True, nbytes)
    assert bench.compute.sent == [told]
    # Nobody has lent it again: the values are dropped, and the executor has the answer without them.
    assert bench.place.body_for(C, values, nbytes) is None
    assert bench.compute.sent[1:] == [commands.Answered(1, 3, 0, 0, "LATE", 9, True, 8, 7, True, 4, False, 0)]


async def test_values_that_no_honest_shard_sends_are_dropped_and_their_sender_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench = DataBench(tmp_path, pull="int8")
    await bench.begin()
    nbytes = bench.value_bytes()
    for shard in (0, 1):
        bench.compute.say(commands.Lend(shard))
    wrong = [
        (A, bench.values(), nbytes),  # not the shard's primary
        (STRANGER, bench.values(), nbytes),
        (C, bench.values(shard=0), nbytes),
        (C, bench.values(shard=7), nbytes),
        (C, bench.values(worker=0), nbytes),
        (C, bench.values(), nbytes + 4),
        (C, bench.values(), 0),
        (C, bench.values(whole=False), nbytes),
    ]
    for count, (node, message, size) in enumerate(wrong, 1):
        assert bench.place.body_for(node, message, size) is None
        lines = [record.getMessage() for record in caplog.records if "values refused" in record.getMessage()]
        assert len(lines) == count, "one line each"
        assert f"node={ {A: 'a', C: 'c'}.get(node, 'dddddddd') } " in lines[-1]
    assert bench.compute.sent == []
    assert bench.place.body_for(C, bench.values(whole=False), bench.value_bytes(whole=False)) is not None
    # Of another start nothing is even looked at.
    assert bench.place.body_for(B, wire.Values(JOB, 2, 0, 1, 3, 0, 8, 7, True, 4), bench.value_bytes(0)) is None


async def test_values_of_a_new_primary_are_received_when_those_of_the_last_come_no_more(tmp_path: Path) -> None:
    bench = DataBench(tmp_path)
    bench.plan = msgspec.structs.replace(bench.plan, shards=(ShardHome((1, 0)), ShardHome((2, 0))))
    await bench.begin()
    bench.both_ready()
    bench.command(script.Train(1, 4))
    values, nbytes = bench.values(), bench.value_bytes()
    for _ in range(2):
        bench.compute.say(commands.Lend(1))
    assert bench.place.body_for(C, values, nbytes) is not None
    held = assignment.initial(bench.plan, 1)
    after = assignment.without(held, bench.plan, bench.spec, 2)
    assert after is not None
    told = assignment.encode(assignment.committed(held, after, 9))
    bench.place.receive(A, wire.Assigned(JOB, 1, told, 1))
    bench.compute.sent.clear()
    assert bench.place.body_for(C, values, nbytes) is None, "it has no say any more"
    assert bench.compute.sent == []
    # The last one's may still be coming in, so there is no place yet, but the answer counts.
    assert bench.place.body_for(A, values, nbytes) is None
    assert bench.compute.sent == [commands.Answered(1, 3, 0, 0, "LATE", 9, True, 8, 7, True, 4, False, 0)]
    bench.place.link_lost(C)
    assert bench.place.body_for(A, values, nbytes) is not None
    bench.place.body(A, values)
    assert bench.compute.sent[1:] == [commands.Answered(1, 3, 0, 0, "LATE", 9, True, 8, 7, True, 4, True, nbytes)]


async def test_an_answer_without_values_is_taken_from_its_shard_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench = DataBench(tmp_path)
    await bench.begin()
    bench.place.receive(C, wire.Pushed(JOB, 1, 1, 1, 3, refusal="LATE", request=2, log_number=9))
    assert bench.compute.sent == [commands.Answered(1, 3, 2, 0, "LATE", 9, False)]
    strange = ((STRANGER, 1, 1, 1), (STRANGER, 9, 1, 1))  # a member of the cluster that is none of the plan
    wrong = ((A, 1, 1, 1), (C, 0, 1, 1), (C, 1, 0, 1), (C, 9, 1, 1), *strange, (C, 1, 1, 2))
    for node, shard, worker, generation in wrong:
        bench.place.receive(node, wire.Pushed(JOB, shard, generation, worker, 3))
    assert len(bench.compute.sent) == 1
    assert caplog.text.count("values refused") == 6


async def test_a_wish_for_batches_goes_to_shard_0_and_what_is_leased_is_taken_from_it_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench = DataBench(tmp_path)
    await bench.begin()
    bench.both_ready()
    bench.command(script.Train(1, 4))
    bench.compute.say(commands.WishLeases(Wish(3, ((2, 4),), 5, 6, 10, 8, 2, True)))
    bench.compute.say(commands.SendRest(5))
    await until(lambda: bench.outside.of(wire.Rest, B))
    assert bench.outside.of(wire.LeaseWish) == [wire.LeaseWish(JOB, 1, 0, 1, 3, ((2, 4),), 5, 6, 10, 8, 2, True)]
    assert bench.outside.of(wire.LeaseWish, B)
    assert bench.outside.of(wire.Rest, C) == [wire.Rest(JOB, 1, 1, 1, 5)]
    bench.compute.sent.clear()
    bench.place.receive(B, wire.Leased(JOB, 1, 0, 1, 3, ((1, 2),), 1, 1))
    assert bench.compute.sent == [commands.Leased(3, ((1, 2),), 1, 1)]
    wrong = [
        (C, wire.Leased(JOB, 1, 0, 1, 3)),  # not the shard's primary
        (C, wire.Leased(JOB, 1, 1, 1, 3)),  # a shard that deals out nothing
        (B, wire.Leased(JOB, 1, 0, 0, 3)),  # another worker's
        (B, wire.Leased(JOB, 1, 0, 1, 3, ((2, 2),))),
        (B, wire.Leased(JOB, 1, 0, 1, 3, ((2, 10**9),))),
        (STRANGER, wire.Leased(JOB, 1, 0, 1, 3)),
    ]
    for count, (node, message) in enumerate(wrong, 1):
        bench.place.receive(node, message)
        assert caplog.text.count("refused job=") == count
    bench.place.receive(B, wire.Leased(JOB, 2, 0, 1, 3))
    assert len(bench.compute.sent) == 1
