"""The fence, and what a process is in a configuration."""

from __future__ import annotations

from p2pnn.replication.configuration import Configuration
from p2pnn.replication.holding import Role
from p2pnn.replication.outcomes import FetchConfiguration
from p2pnn.wire.messages import Append, Beat, Superseded

from .mesh import SHARD, A, B, C, Mesh, member, pair


def test_a_lower_generation_is_answered_by_the_higher_one_and_does_nothing() -> None:
    mesh = Mesh(A, B)
    mesh.configure(pair(5))
    mesh[B].receive(A.id, Append(*SHARD, 4, 0, 0, 0, 1, 4, 9, 1, 1), mesh.now)
    mesh.settle()
    assert mesh.messages(Superseded, B) == [Superseded(*SHARD, 5)]
    assert mesh[B].log.last == 0


def test_a_higher_generation_is_fetched_not_believed() -> None:
    mesh = Mesh(B)
    mesh.configure(pair(5))
    mesh[B].receive(C.id, Beat(*SHARD, 6, 0, 0, 0, 0), mesh.now)
    mesh.settle()
    assert mesh.events[B.id] == [FetchConfiguration()]
    assert mesh[B].generation == 5
    mesh.wait(0.55)
    assert mesh.events[B.id].count(FetchConfiguration()) == 3, "every 200 ms until it has it"
    mesh.configure(Configuration(6, 2, (C, B)))
    assert mesh[B].get_timer() is not None
    assert mesh[B].role is Role.BACKUP


def test_a_claim_is_asked_about_until_it_is_told_what_holds() -> None:
    """Nobody can have a shard ask for ever by a number that it made up, nor more often than it asks anyway."""
    mesh = Mesh(A, B)
    mesh.configure(pair(5))
    for number in range(10):
        mesh[A].hear_of(2**62 + number, mesh.now)
    mesh.wait(0.5)
    asked = mesh.events[A.id].count(FetchConfiguration())
    assert asked <= 3
    mesh.configure(pair(5))
    mesh.wait(2.0)
    assert mesh.events[A.id].count(FetchConfiguration()) == asked
    mesh[A].hear_of(6, mesh.now)
    mesh.wait(0.1)
    assert mesh.events[A.id].count(FetchConfiguration()) == asked + 1, "another claim is another question"


def test_a_deposed_primary_hears_of_it_from_whoever_knows() -> None:
    mesh = Mesh(A, B)
    mesh.configure(pair(5))
    mesh.configure(Configuration(6, 2, (B, A)), B)
    mesh.push(A, 1, b"g", generation=5)
    assert mesh.acknowledged() == []
    assert FetchConfiguration() in mesh.events[A.id]


def test_a_restarted_process_is_nobody() -> None:
    mesh = Mesh(A, member("b", 2))
    mesh.configure(pair(5))
    assert mesh[A].role is Role.PRIMARY
    assert mesh[B].role is Role.OUTSIDE
    mesh.push(A, 1, b"g", generation=5)
    mesh.wait(0.5)
    assert mesh.acknowledged() == []
    mesh.configure(Configuration(6, 2, (A,), (member("b", 2),)))
    assert mesh[B].role is Role.LEARNER
    mesh.configure(pair(5))
    assert mesh[B].generation == 6, "an older configuration changes nothing"
