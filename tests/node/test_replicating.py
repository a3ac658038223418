"""Between nodes that hold the same shards: B has shard 0 with C as the backup, and is the backup of C's shard 1."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from p2pnn.executor import commands
from p2pnn.job import assignment, script
from p2pnn.job.plan import ShardHome
from p2pnn.node.links import Priority
from p2pnn.ps.layout import server_layout
from p2pnn.replication.limits import Limits
from p2pnn.types import NodeId
from p2pnn.wire import messages as wire
from p2pnn.wire.codec import encode
from tests.node.data_bench import DataBench, fake_executors
from tests.node.nodes import JOB, A, B, C, until

pytestmark = pytest.mark.asyncio
STRANGER = NodeId("d" * 32)
START = 1


@pytest.fixture(autouse=True)
def fake_executor(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_executors(monkeypatch)


class Both(DataBench):
    """Shards 0 and 1 at B and C, each the other's backup."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.plan = msgspec.structs.replace(self.plan, shards=(ShardHome((1, 2)), ShardHome((2, 1))))
        self.served = server_layout(self.spec, self.plan, 1)

    def forward(
        self, sequence: int = 1, shard: int = 1, worker: int = 1, start: int = 0, started: int = START
    ) -> wire.Forward:
        return wire.Forward(JOB, shard, START, worker, sequence, start, self.size(shard), started)

    def size(self, shard: int = 1) -> int:
        return self.served.slots[shard].nbytes


async def test_a_part_of_a_push_comes_from_the_primary_into_its_slot_and_is_told_whole(tmp_path: Path) -> None:
    bench = Both(tmp_path)
    await bench.begin()
    message = bench.forward()
    place = bench.place.body_for(C, message, bench.size())
    assert place is not None
    place[:4] = b"abcd"
    offset, _ = bench.served.slot(1, 0, 1, 0)
    assert bench.serve.memory[offset : offset + 4] == b"abcd"
    assert bench.serve.sent == []
    assert bench.place.body_for(C, message, bench.size()) is None, "it is coming in already"
    bench.place.body(C, message)
    told = commands.Replicated(2, encode(message))
    assert bench.serve.sent == [told]
    # The worker sends the same to this node, which may be the primary by now, and again the primary: it is here.
    push = wire.Push(JOB, 1, 1, 0, 1, 0, bench.size(), 0, 7, 6, True, 5, 2, 9)
    assert bench.place.body_for(A, push, bench.size()) is None
    assert bench.serve.sent[1:] == [commands.PushArrived(1, 0, 1, 0, 7, 6, True, 5, 2, by=9)]
    assert bench.place.body_for(C, message, bench.size()) is None
    assert bench.serve.sent[2:] == [told]


async def test_what_no_primary_sends_has_no_place(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bench = Both(tmp_path)
    await bench.begin()
    size = bench.size()
    for node, message, nbytes in (
        (A, bench.forward(), size),  # who holds no shard
        (STRANGER, bench.forward(), size),
        (C, bench.forward(shard=0), bench.size(0)),  # this node's own
        (C, bench.forward(worker=0), size),
        (C, bench.forward(worker=9), size),
        (C, bench.forward(sequence=0), size),
        (C, bench.forward(sequence=5), size),  # four slots
        (C, bench.forward(start=4), size),
        (C, bench.forward(), size - 4),
        (C, bench.forward(started=2), size),  # of another start
        (C, wire.StatePiece(JOB, 1, 1, 4, 0, 1, 9, START), Limits().piece_bytes + 1),
        (A, wire.StatePiece(JOB, 1, 1, 4, 0, 1, 9, START), 9),
    ):
        assert bench.place.body_for(node, message, nbytes) is None, message
    for other in (A, STRANGER):
        bench.place.receive(other, wire.Beat(JOB, 1, START, 0, 0, 0, 0, START))
    bench.place.receive(C, wire.Beat(JOB, 7, START, 0, 0, 0, 0, START))
    bench.place.receive(C, wire.Beat(JOB, 1, START, 0, 0, 0, 0, 2))
    assert bench.serve.sent == []
    assert caplog.text.count("refused job=") >= 3


async def test_messages_without_bodies_and_pieces_of_states_go_to_the_executor(tmp_path: Path) -> None:
    bench = Both(tmp_path)
    await bench.begin()
    beat = wire.Beat(JOB, 1, START, 0, 0, 0, 0, START)
    bench.place.receive(C, beat)
    piece = wire.StatePiece(JOB, 1, START, 4, 0, 1, 3, START)
    place = bench.place.body_for(C, piece, 3)
    assert place is not None
    place[:] = b"xyz"
    bench.place.body(C, piece)
    assert bench.serve.sent == [commands.Replicated(2, encode(beat)), commands.Replicated(2, encode(piece), b"xyz")]
    # No more of them at once than a primary sends; those of a node that is lost take no memory.
    pieces = [wire.StatePiece(JOB, 1, START, 4, n, 1, 99, START) for n in range(99)]
    taken = [piece for piece in pieces if bench.place.body_for(C, piece, 9) is not None]
    assert taken == pieces[: 2 * Limits().state_window]
    bench.place.link_lost(C)
    assert bench.place.body_for(C, pieces[50], 9) is not None


async def test_a_node_that_learns_several_shards_at_once_has_places_for_the_pieces_of_each(tmp_path: Path) -> None:
    """One that stood still is demoted in all of them at once, and each primary sends a state."""
    bench = Both(tmp_path)
    count = 3
    bench.plan = msgspec.structs.replace(bench.plan, shards=(ShardHome((2, 1)),) * count)
    await bench.begin()
    for n in range(2 * Limits().state_window):
        for shard in range(count):
            piece = wire.StatePiece(JOB, shard, START, 4, n, 1, 99, START)
            assert bench.place.body_for(C, piece, 9) is not None, (shard, n)
    for shard in range(count):
        assert bench.place.body_for(C, wire.StatePiece(JOB, shard, START, 4, 98, 1, 99, START), 9) is None


async def test_what_breaks_off_may_come_again(tmp_path: Path) -> None:
    bench = Both(tmp_path)
    await bench.begin()
    assert bench.place.body_for(C, bench.forward(), bench.size()) is not None
    push = bench.push(shard=0)
    assert bench.place.body_for(A, push, bench.push_bytes) is not None
    for node in (C, A):
        bench.place.link_lost(node)
    assert bench.place.body_for(C, bench.forward(), bench.size()) is not None
    assert bench.place.body_for(A, push, bench.push_bytes) is not None


async def test_slots_are_free_when_a_backup_has_applied(tmp_path: Path) -> None:
    bench = Both(tmp_path)
    await bench.begin()
    assert bench.place.body_for(C, bench.forward(sequence=5), bench.size()) is None
    bench.serve.say(commands.Applied(1, 0, 1))
    assert bench.place.body_for(C, bench.forward(sequence=5), bench.size()) is not None


async def test_a_push_leaves_from_its_slot_in_turn_with_others_and_is_told_when_it_has(tmp_path: Path) -> None:
    bench = Both(tmp_path)
    await bench.begin()
    offset, size = bench.served.slot(0, 0, 1, 0)
    bench.serve.memory[offset : offset + 4] = b"abcd"
    message = bench.forward(shard=0)
    bench.outside.hold = asyncio.Event()
    bench.serve.say(commands.Replicate(5, 2, encode(message), offset, size))
    await until(lambda: bench.outside.bodies)
    [(node, sent, body)] = bench.outside.bodies
    assert (node, sent, body[:4], len(body)) == (C, message, b"abcd", size)
    assert bench.serve.sent == []
    bench.outside.hold.set()
    await until(lambda: bench.serve.sent)
    assert bench.serve.sent == [commands.ReplicaLeft(5)]
    appended = wire.Appended(JOB, 1, START, START, 3, 2, START)
    bench.serve.say(commands.Replicate(0, 2, encode(appended)))
    assert bench.outside.of(wire.Appended, C) == [appended]
    # To a node that is gone nothing leaves, so the slot is free.
    bench.outside.peers.discard(C)
    bench.serve.say(commands.Replicate(6, 2, encode(message), offset, size))
    await until(lambda: bench.serve.sent[1:] == [commands.ReplicaLeft(6)])


async def test_a_push_that_nobody_waits_for_any_more_gives_its_slot_back_at_once(tmp_path: Path) -> None:
    bench = Both(tmp_path)
    await bench.begin()
    offset, size = bench.served.slot(0, 0, 1, 0)
    message = bench.forward(shard=0)
    bench.outside.hold = asyncio.Event()
    for token in (5, 6):
        bench.serve.say(commands.Replicate(token, 2, encode(message), offset, size))
    bench.serve.say(commands.Recall(2, [5]))
    await until(lambda: bench.serve.sent)
    assert bench.serve.sent == [commands.ReplicaLeft(5)]
    assert bench.outside.recalled == [message]


async def test_a_backup_takes_the_primarys_bytes_whatever_a_worker_sent_before(tmp_path: Path) -> None:
    """C has shard 1. A worker may have heard that B has it now before B did."""
    bench = Both(tmp_path)
    await bench.begin()
    early = bench.push(shard=1)
    early = msgspec.structs.replace(early, by=START, shard=1)
    assert bench.place.body_for(A, early, bench.size()) is None, "it goes by what holds, and is wrong here"
    assert bench.serve.sent == []
    early = msgspec.structs.replace(early, by=START + 1)
    place = bench.place.body_for(A, early, bench.size())
    assert place is not None
    place[:4] = b"evil"
    bench.place.body(A, early)
    [told] = bench.serve.sent
    assert isinstance(told, commands.PushArrived)
    message = bench.forward()
    place = bench.place.body_for(C, message, bench.size())
    assert place is not None
    place[:4] = b"good"
    bench.place.body(C, message)
    assert bench.serve.sent[1:] == [commands.Replicated(2, encode(message))]
    assert bench.place.body_for(A, early, bench.size()) is None
    offset, _ = bench.served.slot(1, 0, 1, 0)
    assert bench.serve.memory[offset : offset + 4] == b"good"


async def test_a_wish_for_another_configuration_goes_to_the_coordinator(tmp_path: Path) -> None:
    bench = Both(tmp_path)
    await bench.begin()
    bench.serve.say(commands.ProposeConfiguration(1, b"wish"))
    assert bench.outside.of(wire.ShardWish, A) == [wire.ShardWish(JOB, START, 1, b"wish")]


async def test_who_is_the_primary_changes_by_the_coordinators_word(tmp_path: Path) -> None:
    """Replicas begin with the first command. Then C is lost: its shard goes on here, and what this node pushes comes here."""
    bench = Both(tmp_path)
    await bench.begin()
    bench.post._deliver = bench.place.receive  # type: ignore[method-assign]  # as the daemon routes it
    bench.both_ready()
    bench.command(script.Train(1, 4))
    held = assignment.initial(bench.plan, START)
    assert bench.serve.sent[:1] == [commands.Assigned(assignment.encode(held))]
    after = assignment.without(held, bench.plan, bench.spec, 2)
    assert after is not None
    told = assignment.encode(assignment.committed(held, after, 9))
    bench.place.receive(A, wire.Assigned(JOB, START, told, 1))
    assert commands.Assigned(told) in bench.serve.sent
    assert commands.Assigned(told) in bench.compute.sent
    bench.compute.say(commands.FetchValues(1, 4, 2, 9, 9))
    await until(lambda: commands.Fetched(1, 1, 4, 2, 9, 9) in bench.serve.sent)
    # Nothing that C says of it is taken any more; who would forward shard 0 to itself is no replica either.
    assert bench.place.body_for(C, bench.forward(sequence=2), bench.size()) is None
    assert bench.place.body_for(B, bench.forward(sequence=2), bench.size()) is not None, "B's own"


async def test_a_server_that_asks_is_told_that_nothing_is_newer(tmp_path: Path) -> None:
    bench = Both(tmp_path)
    await bench.begin()
    bench.both_ready()
    bench.command(script.Train(1, 4))
    packed = assignment.encode(assignment.initial(bench.plan, START))
    bench.serve.sent.clear()
    bench.compute.sent.clear()
    for _ in range(2):
        bench.place.receive(A, wire.Assigned(JOB, START, packed, 1))
    assert bench.serve.sent == []
    bench.serve.say(commands.ProposeConfiguration(1))
    for _ in range(2):
        bench.place.receive(A, wire.Assigned(JOB, START, packed, 1))
    assert bench.serve.sent == [commands.Assigned(packed)]
    assert bench.compute.sent == [], "workers have nothing to say again"


async def test_replication_takes_turns_with_pushes() -> None:
    assert Priority.of_push(0, 1) >= Priority.PUSH > Priority.TENSOR
