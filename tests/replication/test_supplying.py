"""A primary whose owner takes bytes back when they are applied: what learners get then."""

from __future__ import annotations

from itertools import pairwise

from p2pnn.replication.configuration import Configuration
from p2pnn.replication.limits import Limits
from p2pnn.replication.log import SHARD as OWN
from p2pnn.replication.outcomes import Apply, LoadState, TakeState
from p2pnn.wire.messages import Append, Forward, StatePiece, UpdateWanted

from .mesh import SHARD, A, B, C, Mesh


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


def test_a_learner_is_sent_no_more_than_it_has_places_for() -> None:
    mesh = Mesh(A, B, limits=Limits(window=2))
    mesh.configure(Configuration(1, 2, (A,), (B,)))
    mesh.passes = lambda source, target, message: source != B.id
    for sequence in range(1, 7):
        mesh.push(A, sequence, b"g%d" % sequence)
    assert mesh.acknowledged() == [1, 2, 3, 4, 5, 6]
    assert {message.sequence for message in mesh.messages(Forward, A, B.id)} == {1, 2}
    assert {message.number for message in mesh.messages(Append, A, B.id)} == {1, 2}
    assert mesh[A].snapshot().behind == {B.id: 6}
    mesh.passes = lambda source, target, message: True
    mesh.wait(0.5)
    assert mesh.states[B.id] == mesh.states[A.id]
    assert mesh[A].snapshot().behind == {B.id: 0}
    assert mesh.messages(UpdateWanted) == [], "all of it came by itself"


def test_nobody_waits_for_a_learner_that_catches_up() -> None:
    """It is in touch, but its link carries nothing large."""
    mesh = Mesh(A, B, limits=Limits(window=2))
    mesh.configure(Configuration(1, 2, (A,), (B,)))
    mesh.passes = lambda source, target, message: not isinstance(message, Forward)
    for sequence in range(1, 13):
        mesh.push(A, sequence, b"g%d" % sequence)
        mesh.wait(0.07)
    assert mesh.acknowledged() == list(range(1, 13))
    mesh.passes = lambda source, target, message: True
    mesh.wait(1.0)
    assert mesh.proposals(A)[-1].in_sync == (A, B)


def test_a_learner_that_never_catches_up_gets_states_ever_later() -> None:
    """Each state is here when what comes behind it is gone already."""
    mesh = Mesh(A, B, limits=Limits(window=2, retained_entries=1, catching_up_entries=4))
    mesh.configure(Configuration(1, 2, (A,), (B,)))
    mesh.passes = lambda source, target, message: not isinstance(message, Forward)
    times: list[float] = []
    for sequence in range(1, 601):
        mesh.push(A, sequence, b"g%d" % sequence)
        mesh.wait(0.01)
        states = [event for event in mesh.events[A.id] if isinstance(event, TakeState)]
        times += [mesh.now] * (len(states) - len(times))
    waits = [after - before for before, after in pairwise(times)]
    assert len(times) >= 3
    assert all(after > 1.5 * before for before, after in pairwise(waits))
    mesh.passes = lambda source, target, message: True
    mesh.wait(8.0)
    assert mesh.proposals(A)[-1].in_sync == (A, B)


def test_what_a_learner_was_given_with_a_state_is_not_remembered_as_left_out() -> None:
    mesh = Mesh(A, B, limits=Limits(window=2, retained_entries=1, catching_up_entries=4))
    mesh.configure(Configuration(1, 2, (A,), (B,)))
    mesh.passes = lambda source, target, message: not isinstance(message, Forward)
    left_out = []
    for sequence in range(1, 601):
        mesh.push(A, sequence, b"g%d" % sequence)
        mesh.wait(0.01)
        left_out.append(len(mesh[A]._peers[B.id].skipped))
    assert sum(isinstance(event, LoadState) for event in mesh.events[B.id]) >= 3
    assert 0 < max(left_out) <= 4, "as many as the log keeps for it"


def test_what_is_known_to_be_committed_is_applied_when_its_bytes_come() -> None:
    mesh = Mesh(B)
    mesh.configure(Configuration(1, 2, (A,), (B,)))
    where = (*SHARD, 1, 0, 1, 0)
    mesh[B].receive(A.id, Append(*where, 1, 1, 9, 1, 2), mesh.now)
    mesh[B].receive(A.id, Forward(*SHARD, 1, 9, 1, 0, 2), mesh.now, b"g1")
    mesh.settle()
    assert mesh.states[B.id] == [b"g1"]


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
