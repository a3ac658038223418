"""The verbs: timers that always move on, and what a person may see."""

from __future__ import annotations

from p2pnn.replication.configuration import Configuration
from p2pnn.replication.holding import Role
from p2pnn.replication.outcomes import FetchConfiguration
from p2pnn.replication.replica import ReplicaSnapshot
from p2pnn.wire.messages import Beat, Ping, Push

from .mesh import A, B, Mesh, W, cut, pair


def test_messages_of_other_shards_are_ignored() -> None:
    mesh = Mesh(A)
    mesh.configure(Configuration(1, 1, (A,)))
    mesh[A].receive(W, Push("digits-1", 4, 1, 9, 1, 0, 1), mesh.now, b"g")
    mesh[A].receive(W, Push("other-1", 3, 1, 9, 1, 0, 1), mesh.now, b"g")
    mesh[A].receive(W, Ping(1), mesh.now)
    mesh.settle()
    assert mesh.states[A.id] == []


def test_a_backup_without_a_primary_asks_for_the_configuration() -> None:
    mesh = Mesh(A, B)
    mesh.configure(pair())
    mesh.passes = cut(A)
    mesh.wait(2.0)
    assert mesh.events[B.id].count(FetchConfiguration()) == 7


def test_a_timer_that_is_due_does_something() -> None:
    """Or the owner would call it for ever: also where sums of times are rounded."""
    mesh = Mesh(A, B)
    mesh.now = 741.4099999999997
    mesh.configure(pair())
    mesh.passes = cut(B)
    for _ in range(200):
        for one in (A, B):
            timer = mesh[one].get_timer()
            assert timer is not None
            mesh.now = max(mesh.now, timer)
            mesh[one].handle_timer(timer)
            after = mesh[one].get_timer()
            assert after is not None
            assert after > timer
        mesh.settle()


def test_who_is_outside_waits_for_nothing() -> None:
    mesh = Mesh(B)
    assert mesh[B].get_timer() is None
    mesh.configure(Configuration(3, 1, (A,)))
    assert mesh[B].role is Role.OUTSIDE
    assert mesh[B].get_timer() is None


def test_a_primary_beats_and_tells_of_itself() -> None:
    mesh = Mesh(A, B)
    mesh.configure(pair())
    mesh.push(A, 1, b"g")
    before = len(mesh.messages(Beat))
    mesh.wait(1.05)
    assert len(mesh.messages(Beat)) - before == 10
    assert mesh[A].snapshot() == ReplicaSnapshot(Role.PRIMARY, 1, 1, 1, True, 0)
    assert mesh[B].snapshot() == ReplicaSnapshot(Role.BACKUP, 1, 1, 1, False, 0)
