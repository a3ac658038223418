"""What workers say to a server, too early or at its time."""

from __future__ import annotations

from typing import Any

import pytest

from p2pnn.errors import JobFailedError
from p2pnn.executor import commands
from p2pnn.executor.hearing import KEPT_MAX, Hearing
from p2pnn.ps.layout import Slots
from p2pnn.ps.messages import Pull, Push, Worker
from p2pnn.ps.replicated import ReplicatedShard
from p2pnn.replication.configuration import Configuration
from p2pnn.replication.leases import Wish
from p2pnn.types import NodeId
from tests.ps.test_replicated import SIZES, WORKERS, A, B, Table, V

WORKER = Worker(NodeId("ab" * 32), 0)
WISH = Wish(1, (), 0, 4, 10, 0, 0, False)


class Replica(ReplicatedShard):
    """Writes down what it is told while it is the primary."""

    is_primary = False  # type: ignore[assignment]
    generation = 7

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.told = 0

    def _note(self, what: Any) -> None:
        self.told += 1
        if self.is_primary:
            self.heard.append(what)

    def arrived(self, push: Push, now: float) -> None:
        self._note((push.generation, push.sequence, push.byte_count))

    def pull(self, pull: Pull, now: float) -> None:
        self._note((pull.generation, pull.request))

    def mark(self, worker: Worker, sequence: int, now: float) -> None:
        self._note(("mark", sequence))

    def rest(self, worker: Worker, pushes: int, now: float) -> None:
        self._note(("rest", pushes))

    def wish(self, worker: Worker, wish: Wish, now: float) -> None:
        self._note(wish)


def hearing(shard: Replica) -> Hearing:
    return Hearing({3: shard}, {3: Slots.of((16, 8), 1)}, [WORKER])


def test_what_is_said_before_this_process_knows_that_it_is_the_primary_counts_once_it_does() -> None:
    shard = Replica()
    made = hearing(shard)
    said: list[Any] = [
        commands.PushArrived(3, 0, 5, 1, 0, 0, True, 0, by=7),
        commands.Fetched(3, 0, 9, 0, 0, 7),
        commands.Marked(3, 0, 2),
        commands.Rested(3, 0, 4),
        commands.LeasesWished(3, 0, WISH),
    ]
    for message in said:
        made.take(message, 0.0)
    assert (shard.told, shard.heard) == (5, []), "it was told, so that it asks for the configuration that it lacks"
    made.again(0.0)
    assert shard.told == 5, "another one is the primary"
    shard.is_primary = True  # type: ignore[assignment]
    made.again(0.0)
    wanted = [(7, 5, 8), (7, 9), ("mark", 2), ("rest", 4), WISH]
    assert shard.heard == wanted
    made.again(0.0)
    assert shard.heard == wanted, "once"


def test_parts_that_come_before_and_after_the_word_of_a_new_generation_are_one_push() -> None:
    """The primary stays the same, and hears later than the worker that a backup is one no more."""
    table = Table(A, B)
    table.configure(Configuration(1, 2, (A, B)))
    made = Hearing({0: table[A]}, {0: Slots.of(SIZES, 2)}, WORKERS)

    def come(part: int, by: int) -> None:
        made.take(commands.PushArrived(0, WORKERS.index(V), 1, part, 0, 0, True, 0, by=by), table.now)
        table.settle()

    last = len(SIZES) - 1
    assert last > 0
    for part in range(last):
        come(part, 3)
    table.configure(Configuration(2, 2, (A,), (B,)))
    made.again(table.now)
    assert table.answers(A) == [], "it is not what the worker goes by either"
    table.configure(Configuration(3, 2, (A,), (B,)))
    made.again(table.now)
    come(last, 3)
    assert table.answers(A) == [(V, 1, None)]


def test_little_is_kept_and_the_newest() -> None:
    shard = Replica()
    made = hearing(shard)
    many = 5 * KEPT_MAX
    for number in range(many):
        made.take(commands.Marked(3, 0, number), 0.0)
    shard.is_primary = True  # type: ignore[assignment]
    made.again(0.0)
    assert shard.heard == [("mark", number) for number in range(many - 2 * KEPT_MAX, many)]


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (commands.Marked(0, 0, 1), "shard 0 is not served by this node"),
        (commands.Rested(3, 1, 1), "the run has no worker 1"),
        (commands.PushArrived(3, 0, 1, 2, 0, 0, True, 0), "shard 3 has no part 2"),
    ],
)
def test_what_is_not_there_is_named(message: Any, words: str) -> None:
    with pytest.raises(JobFailedError, match=words):
        hearing(Replica()).take(message, 0.0)
