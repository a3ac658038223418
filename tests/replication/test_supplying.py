"""A primary whose owner takes bytes back when they are applied: what learners get then."""

from __future__ import annotations

from p2pnn.replication.configuration import Configuration
from p2pnn.replication.limits import Limits
from p2pnn.replication.log import SHARD as OWN
from p2pnn.replication.outcomes import Apply, LoadState
from p2pnn.wire.messages import Append, Forward, StatePiece, UpdateWanted

from .mesh import A, B, C, Mesh


def apply_all(mesh: Mesh) -> None:
    for replica in mesh.replicas.values():
        replica.applied(replica.committed, mesh.now)


def test_a_learner_gets_the_state_where_bytes_are_gone_and_copies_of_later_ones() -> None:
    mesh = Mesh(A, B, C)
    mesh.configure(Configuration(1, 3, (A, B)))
    for sequence in range(1, 6):
        mesh.push(A, sequence, b"g%d" % sequence)
        apply_all(mesh)
    assert mesh[A].log.floor == 0
    updates = [entry.update for entry in mesh[A].log.after(0)]
    assert all(update is not None and update.is_gone and update.is_complete for update in updates)
    mesh.configure(Configuration(2, 3, (A, B), (C,)))
    mesh.wait(0.5)
    assert mesh.messages(UpdateWanted, C)
    assert any(isinstance(event, LoadState) for event in mesh.events[C.id])
    mesh.passes = lambda source, target, message: target != C.id
    mesh.push(A, 6, b"g6", generation=2)
    apply_all(mesh)
    mesh.passes = lambda source, target, message: not isinstance(message, StatePiece)
    mesh.wait(0.5)
    assert mesh.states[C.id] == mesh.states[A.id] == [b"g%d" % sequence for sequence in range(1, 7)]


def test_whoever_was_in_sync_needs_none_of_it_again() -> None:
    """It holds the bytes of what it has not heard to be committed."""
    mesh = Mesh(A, B)
    mesh.configure(Configuration(1, 2, (A, B)))
    mesh.push(A, 1, b"g1")
    mesh[A].applied(1, mesh.now)
    mesh.configure(Configuration(2, 2, (A,), (B,)))
    mesh.wait(0.5)
    assert mesh.states[B.id] == [b"g1"]
    assert mesh.messages(StatePiece) == []


def test_a_learner_that_catches_up_is_not_forwarded_what_comes_meanwhile() -> None:
    mesh = Mesh(A, B, limits=Limits(piece_bytes=4, state_window=1))
    mesh.configure(Configuration(1, 2, (A,)))
    for sequence in range(1, 9):
        mesh.push(A, sequence, b"g%d" % sequence)
    mesh.passes = lambda source, target, message: False
    mesh.configure(Configuration(2, 2, (A,), (B,)))
    mesh.passes = lambda source, target, message: not (source == B.id and len(mesh.messages(Append, A)) > 2)
    mesh.wait(0.3)
    assert mesh[A].committed == 8
    told = len(mesh.messages(Forward, A, B.id))
    mesh.push(A, 9, b"g9", generation=2)
    assert len(mesh.messages(Forward, A, B.id)) == told
    mesh.passes = lambda source, target, message: True
    mesh.wait(1.0)
    assert mesh.states[B.id] == mesh.states[A.id]
    assert [message.sequence for message in mesh.messages(Forward, A, B.id)].count(9) == 1


def test_decisions_of_the_owner_have_their_place_among_the_updates() -> None:
    mesh = Mesh(A, B, checks=False)
    mesh.configure(Configuration(1, 2, (A, B)))
    assert mesh[A].may_order(2)
    assert not mesh[B].may_order()
    mesh.push(A, 1, b"g1")
    mesh[A].write(b"first", mesh.now)
    mesh[A].accept(9, 1, mesh.now, b"good")
    mesh[A].write(b"last", mesh.now)
    mesh.settle()
    mesh.wait(0.2)
    for one in (A, B):
        applied = [event for event in mesh.events[one.id] if isinstance(event, Apply)]
        assert [(event.number, event.worker, event.sequence, event.head) for event in applied] == [
            (1, OWN, 1, b"first"),
            (2, 9, 1, b"good"),
            (3, OWN, 2, b"last"),
        ]
        assert [event.pieces for event in applied] == [(), (b"g1",), ()]
    assert mesh[A].ordered(OWN) == 2
