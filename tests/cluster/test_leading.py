"""What a leader does, message by message."""

from __future__ import annotations

import msgspec
import pytest

from p2pnn.cluster import charter as charters
from p2pnn.cluster.charter import Version
from p2pnn.cluster.durable import Durable
from p2pnn.cluster.election import Role
from p2pnn.cluster.outcomes import Alarm, AlarmOver, Committed, Gone, LeaderChanged
from p2pnn.cluster.view import Standing
from p2pnn.errors import CharterError, ProposalRefused
from p2pnn.types import NodeId
from p2pnn.wire.charter import CHARTER_BYTES_MAX, REVISION_MAX, TERM_MAX, CharterPiece, Handover, Held, Lead

from .charters import A, B, C, D, Desk, E, F, charter_of, member


def leader(
    voters: tuple[NodeId, ...] = (A, B, C), learners: tuple[NodeId, ...] = (), *, committed: bool = True
) -> Desk:
    """A, who leads term 4 with its charter 4.1 committed."""
    one = Desk(A, Durable(3, None, charter_of(voters, learners=learners, term=3)))
    one.elect(*voters[1:])
    assert one.core.role is Role.LEADER
    if committed:
        for voter in voters[1:]:
            one.receive(voter, Held(4, 4, 1))
        assert one.outcomes(Committed)[-1].charter.version == Version(4, 1)
    return one


def test_a_new_leader_sends_its_charter_to_all_and_acts_when_a_majority_has_it() -> None:
    one = Desk(A, Durable(3, None, charter_of((A, B, C), learners=(D,), term=3)))
    one.elect(B)
    assert {target for target, _ in one.messages(CharterPiece)} == {B, C, D}
    assert one.outcomes(Committed) == []
    one.receive(B, Held(4, 3, 1))
    one.receive(D, Held(4, 4, 1))
    assert one.outcomes(Committed) == [], "an older charter, and a learner"
    one.receive(C, Held(4, 4, 1))
    assert [event.charter.version for event in one.outcomes(Committed)] == [Version(4, 1)]
    assert {target for target, lead in one.messages(Lead) if lead.committed_term == 4} == {B, C, D}


def test_its_own_disk_counts_when_it_has_it() -> None:
    one = leader()
    one.slow = True
    one.core.propose(one.now, work=b"w")
    one.settle()
    one.receive(B, Held(4, 4, 2))
    assert len(one.outcomes(Committed)) == 1
    one.write()
    assert [event.charter.version for event in one.outcomes(Committed)] == [Version(4, 1), Version(4, 2)]


def test_a_majority_without_the_leaders_disk_commits_but_it_acts_with_its_own() -> None:
    one = leader()
    one.slow = True
    one.core.propose(one.now, work=b"w")
    one.settle()
    one.receive(B, Held(4, 4, 2))
    one.receive(C, Held(4, 4, 2))
    assert len(one.outcomes(Committed)) == 1
    with pytest.raises(ProposalRefused, match="not committed"):
        one.core.propose(one.now, work=b"x")
    one.write()
    assert len(one.outcomes(Committed)) == 2


def test_one_change_at_a_time() -> None:
    one = leader(committed=False)
    with pytest.raises(ProposalRefused, match=r"4\.1 is not committed"):
        one.core.propose(one.now, work=b"w")
    one.receive(B, Held(4, 4, 1))
    assert one.core.propose(one.now, work=b"w") == Version(4, 2)
    with pytest.raises(ProposalRefused, match=r"4\.2 is not committed"):
        one.core.propose(one.now, work=b"x")
    one.settle()
    one.receive(C, Held(4, 4, 2))
    assert one.core.propose(one.now, work=b"x") == Version(4, 3)


def test_only_a_leader_takes_proposals() -> None:
    one = Desk(A, Durable(3, None, charter_of((A, B, C), term=3)))
    with pytest.raises(ProposalRefused, match="nobody does"):
        one.core.propose(one.now, work=b"w")
    one.receive(B, Lead(3, 3, 1, 0, 0))
    with pytest.raises(ProposalRefused, match=B):
        one.core.hand_over(one.now)


def test_members_come_and_go() -> None:
    one = leader((A, B, C), (D,))
    one.core.propose(one.now, admit=[member(E), member(A)], dismiss=[D])
    assert one.core.charter is not None
    assert one.core.charter.nodes() == [A, B, C, E]
    one.receive(B, Held(4, 4, 2))
    one.core.propose(one.now, dismiss=[C])
    assert (one.core.charter.voters, one.core.charter.nodes()) == ((A, B), [A, B, E])


@pytest.mark.parametrize("dismissed", [[A], [B, C]], ids=["the leader", "two voters"])
def test_who_cannot_be_dismissed(dismissed: list[NodeId]) -> None:
    with pytest.raises(ProposalRefused, match="one at a time; hand over first"):
        leader().core.propose(0.0, dismiss=dismissed)


def test_a_charter_that_is_too_large_changes_nothing() -> None:
    one = leader()
    with pytest.raises(CharterError, match="over the limit of 261632"):
        one.core.propose(one.now, work=bytes(CHARTER_BYTES_MAX))
    assert one.core.version == Version(4, 1)


def full(one: Desk) -> int:
    """Fill the charter as far as proposals may; the bytes of its work."""
    low, high = 0, CHARTER_BYTES_MAX
    while high - low > 1:
        size = (low + high) // 2
        assert one.core.charter is not None
        try:
            charters.encode(one.core.charter.successor(work=bytes(size)), one.core.charter)
            low = size
        except CharterError:
            high = size
    one.core.propose(one.now, work=bytes(low))
    one.settle()
    one.receive(B, Held(4, 4, 2))
    assert one.outcomes(Committed)[-1].charter.version == Version(4, 2)
    return low


def test_a_full_charter_still_takes_voters_and_new_leaders() -> None:
    one = leader((A, B, C), (D, E, F))
    size = full(one)
    with pytest.raises(CharterError, match="over the limit"):
        one.core.propose(one.now, work=bytes(size + 1))
    for learner in (D, E):
        one.core.observe(learner, Standing.ALIVE, one.now)
    one.receive(D, Held(4, 4, 2))
    assert one.core.charter is not None
    assert D in one.core.charter.voters
    assert one.messages(CharterPiece), "it has been encoded"
    more = one.core.charter.successor(voters=(A, B, C, D, E, F, A))
    largest = msgspec.structs.replace(more, revision=REVISION_MAX, term=TERM_MAX)
    assert len(msgspec.msgpack.encode(largest)) <= CHARTER_BYTES_MAX


def test_what_shrinks_an_overfull_charter_is_taken() -> None:
    disk = Durable(3, None, charter_of((A, B, C), term=3, work=bytes(CHARTER_BYTES_MAX - 400)))
    one = Desk(A, disk)
    one.elect(B, C)
    one.receive(B, Held(4, 4, 1))
    assert one.core.propose(one.now, work=bytes(CHARTER_BYTES_MAX - 401)) == Version(4, 2)


def test_a_large_charter_travels_in_pieces() -> None:
    one = leader()
    one.core.propose(one.now, work=bytes(200_000))
    one.settle()
    pieces = [message for target, message in one.sent if target == B and isinstance(message, CharterPiece)]
    assert len(pieces) >= 5
    two = Desk(B, Durable(4, A, charter_of((A, B, C), term=4)))
    for piece in pieces:
        two.receive(A, piece)
    assert two.core.version == Version(4, 2)


def test_heartbeats_reach_voters_always_and_learners_in_turn() -> None:
    one = leader((A, B, C), tuple(NodeId(f"{number:032x}") for number in range(1, 11)))
    sent = [target for target, message in one.wait(1.1) if isinstance(message, Lead)]
    assert sent.count(B) == sent.count(C) >= 5
    learners = [target for target in sent if target not in (B, C)]
    assert len(learners) == 4 * sent.count(B)
    assert len(set(learners)) == 10


def test_without_a_majority_it_steps_down() -> None:
    one = leader()
    for _ in range(5):
        one.wait(1.0)
        one.receive(B, Held(4, 4, 1))
    assert one.core.role is Role.LEADER
    one.wait(2.3)
    assert one.core.role is not Role.LEADER
    assert any("majority" in event.reason for event in one.outcomes(LeaderChanged))


def test_one_that_is_cut_off_steps_down_soon_although_that_makes_it_doubt_itself() -> None:
    one = leader()
    one.core.set_health(8.0)
    one.wait(1.5)
    assert one.core.role is Role.LEADER
    one.wait(3.5)
    assert one.core.role is not Role.LEADER


def test_a_higher_term_ends_it() -> None:
    one = leader()
    one.receive(C, Held(5, 4, 1))
    assert one.core.role is Role.FOLLOWER
    assert one.disk.term == 5


def test_what_was_said_in_another_term_does_not_count() -> None:
    one = leader(committed=False)
    one.receive(B, Held(3, 4, 1))
    assert one.outcomes(Committed) == []


def test_voters_are_chosen_from_those_that_hold_the_charter() -> None:
    one = leader((A,), (B, C))
    one.receive(B, Held(4, 3, 1))
    assert one.core.version == Version(4, 1)
    one.receive(B, Held(4, 4, 1))
    one.wait(0.2)
    assert one.core.charter is not None
    assert one.core.charter.voters == (A, B)
    one.receive(B, Held(4, 4, 2))
    assert one.core.charter.voters == (A, B), "C does not hold it yet"
    one.receive(C, Held(4, 4, 2))
    one.wait(0.2)
    assert set(one.core.charter.voters) == {A, B, C}


def test_a_dead_voter_is_replaced_when_its_death_is_sure() -> None:
    one = leader((A, B, C), (D,))
    for node in (B, D):
        one.receive(node, Held(4, 4, 1))
    one.core.observe(C, Standing.DEAD, one.now)
    one.wait(0.4)
    assert one.core.version == Version(4, 1), "the view must stand for a while"
    for _ in range(12):
        one.wait(0.25)
        for node in (B, D):
            one.receive(node, Held(4, *one.core.version))
    assert one.outcomes(Gone) == [Gone(C)]
    assert one.core.charter is not None
    assert set(one.core.charter.voters) == {A, B, D}


def test_more_than_half_lost_is_an_alarm_and_moves_nothing() -> None:
    one = leader((A, B, C, D, E), (F,))
    for node in (B, C, D, E, F):
        one.receive(node, Held(4, 4, 1))
    for node in (C, D, E, F):
        one.core.observe(node, Standing.PROVED, one.now)
    one.wait(0.2)
    assert one.outcomes(Alarm) == [Alarm(4, 6)]
    assert one.outcomes(Gone) == []
    assert one.core.version == Version(4, 1)
    one.core.observe(C, Standing.ALIVE, one.now)
    one.wait(0.2)
    assert len(one.outcomes(AlarmOver)) == 1
    assert {event.node for event in one.outcomes(Gone)} == {D, E, F}


def test_handing_over_takes_the_voter_that_holds_everything() -> None:
    one = leader()
    one.receive(C, Held(4, 4, 1))
    one.core.observe(C, Standing.ALIVE, one.now)
    one.core.hear_of(C, one.now, 500.0, 0.0, one.core.version, "home")
    one.core.hand_over(one.now)
    one.settle()
    assert (C, Handover(4)) in one.sent
    with pytest.raises(ProposalRefused, match="handing over"):
        one.core.propose(one.now, work=b"w")
    for _ in range(16):
        one.receive(B, Held(4, 4, 1))
        one.wait(0.2)
    assert one.core.propose(one.now, work=b"w"), "it took too long, so it leads on"


def test_a_single_voter_makes_another_one_before_it_hands_over() -> None:
    one = leader((A,), (B,))
    one.receive(B, Held(4, 4, 1))
    one.core.hand_over(one.now)
    one.settle()
    assert one.core.charter is not None
    assert one.core.charter.voters == (A, B)
    one.receive(B, Held(4, 4, 2))
    assert (B, Handover(4)) in one.sent


def test_a_failed_write_ends_its_term() -> None:
    one = leader()
    one.slow = True
    one.core.propose(one.now, work=b"w")
    one.settle()
    one.fail()
    assert one.core.role is Role.FOLLOWER
    assert one.core.version == Version(4, 1)
