"""A primary with its replicas: what it waits for, whom it proposes, what it sends."""

from __future__ import annotations

import pytest

from p2pnn.replication.configuration import Configuration
from p2pnn.replication.holding import Role
from p2pnn.replication.limits import Limits, Timing
from p2pnn.replication.outcomes import LoadState, Serving, TakeState
from p2pnn.replication.replica import Replica
from p2pnn.types import NodeId
from p2pnn.wire.fields import Message
from p2pnn.wire.messages import Append, Appended, Forward, Push, Pushed, StatePiece
from tests.simulator.shard_ablations import PromotesBeforeItServes

from .mesh import SHARD, A, B, C, Mesh, W, cut, member, pair


def test_an_update_is_acknowledged_when_all_in_sync_hold_it() -> None:
    mesh = Mesh(A, B, C)
    mesh.configure(Configuration(1, 3, (A, B, C)))
    mesh.passes = lambda source, target, message: not isinstance(message, Appended) or source != C.id
    mesh.push(A, 1, b"g1")
    assert mesh.acknowledged() == []
    mesh.passes = lambda source, target, message: True
    mesh.wait(0.2)
    assert mesh.acknowledged() == [1]
    assert mesh.states == {A.id: [b"g1"], B.id: [b"g1"], C.id: [b"g1"]}


def test_a_lone_primary_needs_nobody() -> None:
    mesh = Mesh(A)
    mesh.configure(Configuration(1, 1, (A,)))
    mesh.push(A, 1, b"g1")
    assert mesh.acknowledged() == [1]
    assert mesh.events[A.id][0] == Serving(1)


def test_pieces_are_forwarded_while_the_rest_is_on_its_way_and_once() -> None:
    mesh = Mesh(A, B)
    mesh.configure(pair())
    mesh[A].receive(W, Push(*SHARD, 1, 9, 1, 0, 6), mesh.now, b"abcd")
    mesh.settle()
    assert [message.start for message in mesh.messages(Forward)] == [0]
    assert mesh.messages(Append) == []
    mesh[A].receive(W, Push(*SHARD, 1, 9, 1, 0, 6), mesh.now, b"abcd")
    mesh[A].receive(W, Push(*SHARD, 1, 9, 1, 4, 6), mesh.now, b"ef")
    mesh.settle()
    assert [message.start for message in mesh.messages(Forward)] == [0, 4]
    assert mesh.states[A.id] == [b"abcdef"]


def test_each_update_counts_once_and_in_its_workers_order() -> None:
    mesh = Mesh(A, B)
    mesh.configure(pair())
    mesh.push(A, 2, b"g2")
    assert mesh.states[A.id] == [], "its worker's first is missing"
    mesh.push(A, 1, b"g1")
    mesh.push(A, 1, b"g1")
    mesh.push(A, 2, b"g2")
    mesh.push(A, 1, b"other worker's", worker=8)
    assert mesh.states[A.id] == [b"g1", b"g2", b"other worker's"]
    assert mesh.acknowledged() == [1, 2, 2, 2, 1], "a repetition is answered by the last"
    mesh.push(A, 99, b"far ahead")
    mesh.push(A, 0, b"no such number")
    assert len(mesh.states[A.id]) == 3


def test_a_refused_update_uses_up_its_number_everywhere() -> None:
    mesh = Mesh(A, B, checks=False)
    mesh.configure(pair())
    mesh.push(A, 1, b"nan")
    mesh.push(A, 2, b"g2")
    mesh[A].accept(9, 2, mesh.now)
    mesh[A].refuse(9, 1, "a value is not finite", mesh.now)
    mesh.settle()
    mesh.wait(0.2)
    assert mesh.states == {A.id: [b"g2"], B.id: [b"g2"]}
    assert [(one.sequence, one.error) for one in mesh.messages(Pushed)] == [(1, "a value is not finite"), (2, "")]
    assert mesh[B].sessions.last(9) == 2


def test_a_silent_backup_is_proposed_for_removal_and_waited_for_until_the_charter_says_so() -> None:
    mesh = Mesh(A, B)
    mesh.configure(pair())
    mesh.passes = cut(B)
    mesh.push(A, 1, b"g1")
    mesh.wait(5.0)
    assert mesh.proposals(A)[0] == Configuration(1, 2, (A,))
    assert mesh.acknowledged() == [], "it may be the primary by now"
    mesh.configure(Configuration(4, 2, (A,)), A)
    assert mesh.acknowledged() == [1]


def test_a_slow_backup_is_demoted_and_promoted_again_when_it_keeps_up() -> None:
    mesh = Mesh(A, B)
    mesh.configure(pair())
    mesh.passes = lambda source, target, message: not isinstance(message, Append)
    mesh.push(A, 1, b"g1")
    mesh.wait(1.2)
    assert mesh.proposals(A)[0] == Configuration(1, 2, (A,), (B,)), "it answers, and holds nothing"
    mesh.configure(mesh.proposals(A)[0].replaced((A,), (B,)).__class__(2, 2, (A,), (B,)))
    assert mesh.acknowledged() == [1]
    before = len(mesh.proposals(A))
    mesh.passes = lambda source, target, message: True
    mesh.wait(0.4)
    assert len(mesh.proposals(A)) == before, "twice as long after a demotion"
    mesh.wait(0.6)
    assert mesh.proposals(A)[-1] == Configuration(2, 2, (A, B))
    assert mesh.states[B.id] == [b"g1"]


def test_whoever_is_proposed_is_waited_for_from_then_on() -> None:
    mesh = Mesh(A, B)
    mesh.configure(Configuration(1, 2, (A,), (B,)))
    mesh.wait(0.6)
    assert mesh.proposals(A)[0] == Configuration(1, 2, (A, B))
    mesh.passes = cut(B)
    mesh.push(A, 1, b"g1")
    assert mesh.acknowledged() == [], "the promotion may be committed"
    mesh.wait(1.0)
    assert mesh.proposals(A)[-1] == Configuration(1, 2, (A,)), "or it is taken back"
    mesh.configure(Configuration(2, 2, (A,)), A)
    assert mesh.acknowledged() == [1]


def test_a_new_primary_has_the_others_hold_its_log_before_it_serves() -> None:
    mesh = Mesh(A, B, C)
    mesh.configure(Configuration(1, 3, (A, B, C)))
    mesh.passes = lambda source, target, message: target != C.id
    mesh.push(A, 1, b"g1")
    assert mesh[B].log.last == 1
    mesh.passes = cut(A, C)
    mesh.configure(Configuration(2, 3, (B, C)), B)
    assert mesh[B].role is Role.PRIMARY
    assert not mesh[B].is_serving
    mesh.push(B, 2, b"g2", generation=2)
    assert mesh[B].log.last == 1
    mesh.passes = cut(A)
    mesh.configure(Configuration(2, 3, (B, C)), C)
    mesh.wait(0.5)
    assert mesh[B].is_serving
    assert mesh.states[C.id] == [b"g1", b"g2"]
    mesh.push(B, 1, b"g1", generation=2)
    assert mesh.states[B.id] == [b"g1", b"g2"], "the worker pushes again what A never acknowledged"
    assert mesh.acknowledged()[-1] == 2


@pytest.mark.parametrize("kind", [Replica, PromotesBeforeItServes])
def test_a_new_primary_promotes_nobody_before_it_serves(kind: type[Replica]) -> None:
    """The answers to the last primary may be on their way still, to what the learner was never told of."""
    learner = member("e")
    mesh = Mesh(A, B, C, learner, kind=kind)
    mesh.configure(Configuration(1, 3, (A, B, C), (learner,)))

    def passes(source: NodeId, target: NodeId, message: Message) -> bool:
        if isinstance(message, Appended):
            return target != A.id and source != C.id
        return target != learner.id or not isinstance(message, Forward | Append)

    mesh.passes = passes
    mesh.push(A, 1, b"g1")
    mesh.configure(Configuration(2, 3, (B, C), (learner,)), B, C, learner)
    mesh.wait(0.5)
    assert not mesh[B].is_serving
    promoted = [proposal for proposal in mesh.proposals(B) if learner in proposal.in_sync]
    for one in (B, C):
        mesh[A].receive(one.id, Appended(*SHARD, 1, one.incarnation, 1, 0), mesh.now)
    mesh.settle()
    assert mesh.acknowledged() == [1], "and whoever is in sync has to hold it"
    assert bool(promoted) is (kind is PromotesBeforeItServes)
    assert mesh[learner].log.last == 0


def test_a_new_primary_drops_what_it_lacks_bytes_of() -> None:
    mesh = Mesh(A, B)
    mesh.configure(pair())
    mesh.passes = lambda source, target, message: not isinstance(message, Forward)
    mesh.push(A, 1, b"g1")
    assert mesh[B].log.last == 1
    mesh.configure(Configuration(2, 2, (B,)), B)
    assert mesh[B].log.last == 0
    mesh.push(B, 1, b"g1", generation=2)
    assert mesh.states[B.id] == [b"g1"]


def test_a_learner_that_lacks_old_entries_gets_the_state_in_pieces() -> None:
    limits = Limits(piece_bytes=4, state_window=2, retained_entries=2)
    mesh = Mesh(A, B, limits=limits)
    mesh.configure(Configuration(1, 2, (A,)))
    for sequence in range(1, 21):
        mesh.push(A, sequence, b"g%d" % sequence)
    assert mesh[A].log.floor == 18
    mesh.configure(Configuration(2, 2, (A,), (B,)))
    mesh.wait(1.0)
    assert any(isinstance(event, TakeState) for event in mesh.events[A.id])
    assert any(isinstance(event, LoadState) for event in mesh.events[B.id])
    assert len(mesh.messages(StatePiece)) > 5
    mesh.push(A, 21, b"g21", generation=2)
    mesh.wait(0.2)
    assert mesh.states[B.id] == mesh.states[A.id]
    assert mesh[B].sessions.last(9) == 21
    assert mesh.proposals(A)[-1] == Configuration(2, 2, (A, B))


def test_the_log_is_bounded_and_pushes_wait() -> None:
    mesh = Mesh(A, B, limits=Limits(piece_bytes=4, entries_max=2, window=4))
    mesh.configure(pair())
    mesh.passes = cut(B)
    for sequence in range(1, 5):
        mesh.push(A, sequence, b"g")
    assert mesh[A].log.last == 2
    mesh.passes = lambda source, target, message: True
    mesh.wait(0.6)
    assert mesh[A].committed == 4
    mesh.wait(0.2)
    assert mesh.states[B.id] == [b"g"] * 4


def test_no_more_workers_than_there_are_sessions() -> None:
    mesh = Mesh(A, limits=Limits(piece_bytes=4, sessions_max=1))
    mesh.configure(Configuration(1, 1, (A,)))
    mesh.push(A, 1, b"g", worker=7)
    mesh.push(A, 1, b"g", worker=8)
    mesh.push(A, 2, b"g", worker=7)
    assert mesh[A].committed == 2


def test_a_primary_that_was_stopped_accuses_nobody() -> None:
    mesh = Mesh(A, B)
    mesh.configure(pair())
    mesh.now += 60.0
    mesh[A].handle_timer(mesh.now)
    mesh.settle()
    assert mesh.proposals(A) == []


@pytest.mark.parametrize("incarnation", [2, 3])
def test_an_answer_of_another_process_counts_for_nothing(incarnation: int) -> None:
    mesh = Mesh(A, B)
    mesh.configure(pair())
    mesh.passes = lambda source, target, message: not isinstance(message, Append)
    mesh.push(A, 1, b"g1")
    other = member("b", incarnation)
    mesh[A].receive(other.id, Appended(*SHARD, 1, other.incarnation, 1, 0), mesh.now)
    mesh.settle()
    assert mesh.acknowledged() == []


def test_what_came_before_a_replica_was_heard_is_forwarded_when_it_is() -> None:
    mesh = Mesh(A, B)
    mesh.passes = cut(B)
    mesh.configure(pair())
    mesh.push(A, 1, b"g1")
    assert mesh.messages(Forward) == []
    mesh.passes = lambda source, target, message: True
    mesh.wait(0.11)
    assert mesh.acknowledged() == [1], "without that it would be asked for, later"


def test_large_updates_have_the_time_that_they_take() -> None:
    mesh = Mesh(A, B, timing=Timing(slow_bytes_per_s=1.0))
    mesh.configure(pair())
    mesh.passes = lambda source, target, message: not isinstance(message, Append)
    mesh.push(A, 1, b"large")
    mesh.wait(5.0)
    assert mesh.proposals(A) == []
    mesh.wait(1.0)
    assert mesh.proposals(A)[0] == Configuration(1, 2, (A,), (B,))
