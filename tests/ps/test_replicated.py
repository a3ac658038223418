"""Two or three processes of one shard on a table: what is answered when, what a new primary knows, what slots are for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from p2pnn.errors import LocalProtocolError
from p2pnn.job.spec import Optimizer
from p2pnn.ps.compression import Bytes
from p2pnn.ps.consistency import Settings, consistency
from p2pnn.ps.copies import SLOTS
from p2pnn.ps.layout import Slots, part_sizes
from p2pnn.ps.messages import Answer, Pull, Push, Refusal, Worker
from p2pnn.ps.replicated import ReplicatedShard
from p2pnn.ps.shard import Shard
from p2pnn.ps.sharding import cut
from p2pnn.ps.space import Space
from p2pnn.replication.configuration import Configuration, Member, led_by
from p2pnn.replication.holding import Parcel
from p2pnn.replication.holding import Shard as Name
from p2pnn.types import NodeId
from p2pnn.wire.messages import Append, Appended, Forward, StatePiece
from tests.ps.models import mlp
from tests.ps.network import workers_named

SPACE = Space.of(mlp(300, 200, inputs=100))
(RANGE,) = cut(SPACE, 1).shards
SIZES = part_sizes(RANGE, "float32")
NAME = Name("digits-1", 0)
A, B, C = (Member(letter * 32, 1) for letter in "abc")
V, W = WORKERS = workers_named(2)
SGD = Optimizer("sgd", 1.0, schedule="constant")
Passes = Callable[[NodeId, NodeId, Any], bool]

assert len(SIZES) > 1


class Slotted:
    def __init__(self) -> None:
        self.places: dict[tuple[int, int], Bytes] = {}

    def slot(self, worker: int, number: int) -> Bytes:
        made = Slots.of(SIZES, 1).nbytes
        return self.places.setdefault((worker, number), np.zeros(made, np.uint8))


def arguments(slots: Slotted, how: str) -> dict[str, Any]:
    return {
        "shard": RANGE,
        "initial": np.zeros(RANGE.size, np.float32),
        "optimizer": SGD,
        "settings": Settings(consistency(how)),
        "workers": WORKERS,
        "slot": slots.slot,
    }


class Table:
    """holds_back: parcels that stay where they are until `deliver`; said: the answers of each process."""

    def __init__(self, *members: Member, how: str = "async") -> None:
        self.now = 10.0
        self.slots = {one.id: Slotted() for one in members}
        self.shards = {
            one.id: ReplicatedShard(NAME, one, now=self.now, **arguments(self.slots[one.id], how)) for one in members
        }
        self.said: dict[NodeId, list[Answer]] = {one.id: [] for one in members}
        self.passes: Passes = lambda source, target, message: True
        self.keeps_sending = False
        self.under_way: list[tuple[NodeId, Parcel]] = []

    def __getitem__(self, one: Member) -> ReplicatedShard:
        return self.shards[one.id]

    def configure(self, configuration: Configuration, *only: Member) -> None:
        for one in only or configuration.members:
            self[one].configured(configuration, self.now)
        self.settle()

    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += 0.05
            for shard in self.shards.values():
                timer = shard.get_timer()
                if timer is not None and timer <= self.now:
                    shard.handle_timer(self.now)
            self.settle()

    def settle(self) -> None:
        moved = True
        while moved:
            moved = False
            for node, shard in self.shards.items():
                while shard.work(self.now):
                    moved = True
                while (answer := shard.next_answer(self.now)) is not None:
                    self.said[node].append(answer)
                    shard.answer_sent(answer, self.now)
                for parcel in shard.messages_to_send(self.now):
                    moved = True
                    self.under_way.append((node, parcel))
                    if not self.keeps_sending:
                        shard.sent(parcel)
                    self._deliver(node, *parcel)
                while shard.next_event() is not None:
                    pass

    def _deliver(self, source: NodeId, target: NodeId, message: Any, body: Any) -> None:
        shard = self.shards.get(target)
        if shard is None or not self.passes(source, target, message):
            return
        if isinstance(message, Forward):
            view = shard.slot_view(message.worker, message.sequence, message.start, len(body))
            assert view is not None
            view[:] = body
            body = view
        shard.receive(source, message, self.now, body)

    def push(self, to: Member, worker: Worker, sequence: int, value: float = -1.0, *, based_on: int = 0) -> None:
        shard = self[to]
        place = self.slots[to.id].slot(WORKERS.index(worker), sequence % SLOTS)
        place.view(np.float32)[:] = value
        for part, size in enumerate(SIZES):
            shard.arrived(Push(worker, shard.generation, sequence, part, size, based_on), self.now)
        self.settle()

    def answers(self, one: Member) -> list[tuple[Worker, int, Refusal | None]]:
        return [(a.worker, a.sequence, a.refusal) for a in self.said[one.id]]

    def value(self, one: Member) -> float:
        values = self[one].arrays["parameters"]
        assert (values == values[0]).all()
        return float(values[0])


def test_a_push_is_answered_when_all_in_sync_hold_it_and_applied_by_all() -> None:
    table = Table(A, B)
    table.configure(Configuration(1, 2, (A, B)))
    table.passes = lambda source, target, message: not isinstance(message, Appended)
    table.push(A, V, 1)
    assert (table.answers(A), table.value(A)) == ([], 0.0)
    table.passes = lambda source, target, message: True
    table.wait(0.3)
    assert table.answers(A) == [(V, 1, None)]
    answer = table.said[A.id][0]
    assert answer.values is not None
    assert (answer.generation, answer.values.version) == (1, 1)
    assert (table.value(A), table.value(B)) == (1.0, 1.0)
    assert table.said[B.id] == []
    for one in (A, B):
        entry = table[one].replica.log.get(1)
        assert entry is not None
        assert entry.update is not None
        assert (entry.update.pieces, entry.update.is_gone) == ({}, True), "the slot is free for another push"


def test_alone_it_says_and_computes_what_a_shard_does() -> None:
    table, slots = Table(A), Slotted()
    alone = Shard(**arguments(slots, "ssp:1"))
    table = Table(A, how="ssp:1")
    table.configure(Configuration(1, 1, (A,)))
    said = []
    for sequence, worker in ((1, V), (2, V), (1, W), (2, W), (3, V), (3, V)):
        table.push(A, worker, sequence, 0.1 * sequence, based_on=alone.report().version)
        slots.slot(WORKERS.index(worker), sequence % 2).view(np.float32)[:] = 0.1 * sequence
        for part, size in enumerate(SIZES):
            alone.arrived(Push(worker, 0, sequence, part, size, alone.report().version, sequence - 1), 0.0)
        while alone.work(0.0):
            pass
        while (answer := alone.next_answer(0.0)) is not None:
            said.append((answer.worker, answer.sequence))
            alone.answer_sent(answer, 0.0)
    assert [(worker, sequence) for worker, sequence, _ in table.answers(A)] == said


def test_a_new_primary_answers_what_was_applied_again_and_decides_what_was_not() -> None:
    table = Table(A, B, C)
    first = Configuration(1, 3, (A, B, C))
    table.configure(first)
    table.push(A, V, 1)
    table.passes = lambda source, target, message: not isinstance(message, Append)
    table.push(A, V, 2)
    table.push(A, W, 1)
    assert table.answers(A) == [(V, 1, None)]
    after = Configuration(2, 3, (B, C))
    assert led_by(first, B).primary == B
    table.passes = lambda source, target, message: A.id not in (source, target)
    table.configure(after, B)
    table.push(B, V, 1)
    assert table.said[B.id] == [], "before the others hold what it took over it says nothing"
    table.configure(after, C)
    table.wait(0.5)
    assert table.answers(B)[0] == (V, 1, None)
    table.push(B, V, 2)
    table.push(B, W, 1)
    table.push(B, V, 2)
    assert table.answers(B)[1:] == [(V, 2, None), (W, 1, None), (V, 2, None)]
    table.wait(0.3)
    assert (table.value(B), table.value(C)) == (3.0, 3.0)
    assert table[B].acknowledged(V) == 2


def test_a_round_goes_on_with_what_another_primary_has_taken_into_it() -> None:
    table = Table(A, B, how="sync")
    table.configure(Configuration(1, 2, (A, B)))
    table.push(A, V, 1, -2.0)
    assert table.answers(A) == []
    table.passes = lambda source, target, message: False
    table.configure(Configuration(2, 1, (B,)), B)
    assert table[B].state.round == {V: 1}
    table.push(B, W, 1, -3.0)
    assert table.answers(B) == [(W, 1, None)], "whoever was in the round has to ask again"
    table.push(B, V, 1, -2.0)
    assert table.answers(B)[1:] == [(V, 1, None)]
    assert table.value(B) == 5.0


def test_a_bound_holds_an_answer_back_after_a_failover_too() -> None:
    table = Table(A, B, how="ssp:0")
    table.configure(Configuration(1, 2, (A, B)))
    table.push(A, V, 1)
    assert table.answers(A) == [], "the other one has not come so far"
    table.wait(0.2)
    table.passes = lambda source, target, message: False
    table.configure(Configuration(2, 1, (B,)), B)
    table.push(B, V, 1)
    assert table.answers(B) == []
    table.push(B, W, 1)
    assert sorted(table.answers(B)) == [(V, 1, None), (W, 1, None)]


def test_a_learner_becomes_like_the_others_and_is_promoted() -> None:
    table = Table(A, B, how="sync")
    table.configure(Configuration(1, 2, (A,)))
    for sequence in range(1, 4):
        for worker in (W, V):
            table.push(A, worker, sequence, -1.0, based_on=sequence - 1)
    table.push(A, W, 4, -1.0, based_on=3)
    table.configure(Configuration(2, 2, (A,), (B,)))
    table.wait(1.0)
    assert any(isinstance(message, StatePiece) for _, (_, message, _) in table.under_way)
    assert (table.value(B), table[B].state.round) == (6.0, {W: 4})
    table.configure(Configuration(3, 2, (A, B)))
    table.push(A, V, 4, -1.0, based_on=3)
    table.wait(0.3)
    assert table.value(A) == table.value(B) == 8.0


def test_an_answer_waits_while_the_slot_that_it_frees_is_being_sent() -> None:
    table = Table(A, B)
    table.configure(Configuration(1, 2, (A, B)))
    table.keeps_sending = True
    table.push(A, V, 1)
    table.push(A, V, 2)
    assert [sequence for _, sequence, _ in table.answers(A)] == [1, 2], "their slots are not wanted yet"
    table.push(A, V, 3)
    assert [sequence for _, sequence, _ in table.answers(A)] == [1, 2]
    for source, parcel in table.under_way:
        if isinstance(parcel[1], Forward) and parcel[1].sequence == 1:
            table.shards[source].sent(parcel)
    table.settle()
    assert [sequence for _, sequence, _ in table.answers(A)] == [1, 2, 3]


def test_learners_get_copies_and_not_more_than_so_many() -> None:
    table = Table(A, B)
    table.configure(Configuration(1, 2, (A,), (B,)))
    table.passes = lambda source, target, message: not isinstance(message, Forward | Append)
    table.wait(0.2)
    table.keeps_sending = True
    limit = table[A]._copied_max = 5 * sum(SIZES) // 2
    for sequence in range(1, 5):
        table.push(A, V, sequence)
    bodies = [body for source, (_, message, body) in table.under_way if isinstance(message, Forward)]
    assert all(isinstance(body, bytes) for body in bodies)
    assert 0 < sum(len(body) for body in bodies) <= limit
    assert [sequence for _, sequence, _ in table.answers(A)] == [1, 2, 3, 4], "nobody waits for a learner"


def test_only_the_primary_of_the_workers_generation_takes_what_they_say() -> None:
    table = Table(A, B)
    table.configure(Configuration(3, 2, (A, B)))
    for one in (A, B):
        table[one].pull(Pull(V, 3, 1), table.now)
        table[one].mark(V, 1, table.now)
    table.settle()
    assert [(a.request, a.values is not None) for a in table.said[A.id]] == [(1, True)]
    assert table.said[B.id] == []
    table[A].arrived(Push(V, 2, 1, len(SIZES) - 1, SIZES[-1], 0), table.now)
    table.settle()
    assert table.answers(A)[1:] == [(V, 0, Refusal.STALE_GENERATION)]
    with pytest.raises(LocalProtocolError, match="stay the same"):
        table[A].set_workers(4, [V], table.now)


def test_a_push_that_is_ahead_of_what_is_applied_is_looked_at_all_the_same() -> None:
    """When it is applied it may be ahead no more."""
    table = Table(A, B)
    table.configure(Configuration(1, 2, (A, B)))
    table.passes = lambda source, target, message: not isinstance(message, Append)
    table.push(A, V, 1)
    table.push(A, W, 1, np.nan, based_on=1)
    table.passes = lambda source, target, message: True
    table.wait(0.5)
    assert table.answers(A) == [(V, 1, None), (W, 1, Refusal.NOT_FINITE)]
    assert (table.value(A), table.value(B)) == (1.0, 1.0)


def test_marks_are_known_to_a_new_primary() -> None:
    table = Table(A, B)
    table.configure(Configuration(1, 2, (A, B)))
    for worker in WORKERS:
        table[A].mark(worker, 4, table.now)
    table[A].served(4, table.now)
    table.wait(0.2)
    assert table[A].is_marked(4)
    assert table[B].is_marked(4)
    assert (table[B].state.marks.open, table[B].served_to) == (4, 4)
