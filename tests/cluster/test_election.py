"""Votes and roles of one core, message by message."""

from __future__ import annotations

import pytest

from p2pnn.cluster.charter import Version
from p2pnn.cluster.durable import Durable
from p2pnn.cluster.election import Role, Timing
from p2pnn.cluster.outcomes import DiskFailed, LeaderChanged
from p2pnn.cluster.view import Standing
from p2pnn.wire.charter import CharterPiece, Handover, Lead, PreVote, PreVoted, Vote, Voted

from .charters import A, B, C, D, Desk, E, charter_of

THREE = charter_of((A, B, C), term=3, revision=4)
HELD = Version(3, 4)


def desk(*, slow: bool = False, seed: int = 1) -> Desk:
    return Desk(A, Durable(3, None, THREE), slow=slow, seed=seed)


# --- rule 1


@pytest.mark.parametrize(
    ("term", "version", "granted"),
    [(4, HELD, True), (9, Version(3, 5), True), (4, Version(4, 0), True), (3, HELD, False), (2, HELD, False),
     (4, Version(3, 3), False), (4, Version(2, 9), False), (4, Version(0, 0), False)],
)  # fmt: skip
def test_a_vote_is_for_a_higher_term_and_no_older_charter(term: int, version: Version, granted: bool) -> None:
    one = desk()
    (answer,) = [m for _, m in one.receive(B, Vote(term, *version)) if isinstance(m, Voted)]
    assert (answer.error == "") == granted
    assert one.core.term == max(3, term), "the term counts, whatever the vote"


def test_one_vote_per_term_and_the_same_answer_to_the_same_question() -> None:
    one = desk()
    assert one.receive(B, Vote(4, *HELD)) == [(B, Voted(4, 4))]
    ((_, answer),) = one.receive(C, Vote(4, *HELD))
    assert isinstance(answer, Voted)
    assert answer.error
    assert one.receive(B, Vote(4, *HELD)) == [(B, Voted(4, 4))]


def test_a_vote_is_told_when_it_is_on_the_disk() -> None:
    one = desk(slow=True)
    assert one.receive(B, Vote(4, *HELD)) == []
    assert one.disk.term == 3
    one.write()
    assert (one.disk.term, one.disk.vote) == (4, B)
    assert one.sent == [(B, Voted(4, 4))]


def test_a_vote_that_was_overtaken_is_never_told() -> None:
    one = desk(slow=True)
    one.receive(B, Vote(4, *HELD))
    one.receive(C, Vote(5, *HELD))
    one.write()
    assert one.sent == []
    one.write()
    assert one.sent == [(C, Voted(5, 5))]


def test_a_restarted_node_remembers_its_vote() -> None:
    one = desk()
    one.receive(B, Vote(4, *HELD))
    again = Desk(A, one.disk)
    ((_, answer),) = again.receive(C, Vote(4, *HELD))
    assert isinstance(answer, Voted)
    assert answer.error


def test_whoever_asks_with_an_older_charter_is_sent_the_newer() -> None:
    for question in (Vote(4, 2, 9), PreVote(4, 2, 9)):
        assert any(isinstance(message, CharterPiece) for _, message in desk().receive(B, question))


# --- rule 8


def test_a_silent_leader_is_replaced_in_three_steps() -> None:
    one = desk()
    assert [m for _, m in one.wait(2.0)][:2] == [PreVote(4, *HELD, "home")] * 2
    assert one.core.role is Role.PRECANDIDATE
    assert one.core.term == 3, "asking costs no term"
    assert one.receive(B, PreVoted(4, 3)) == [(target, Vote(4, *HELD, "home")) for target in (B, C)]
    assert one.core.role is Role.CANDIDATE
    assert (one.disk.term, one.disk.vote) == (4, A)
    one.receive(C, Voted(4, 4))
    assert one.core.role is Role.LEADER
    assert one.core.version == Version(4, 4), "rule 2"
    assert one.outcomes(LeaderChanged)[-1].leader == A


def test_a_candidate_asks_when_its_own_vote_is_on_the_disk() -> None:
    one = desk(slow=True)
    one.wait(2.0)
    assert one.receive(B, PreVoted(4, 3)) == []
    one.receive(C, Voted(4, 4))
    assert one.core.role is Role.CANDIDATE, "one vote of three, as long as its own is not on the disk"
    one.write()
    assert one.core.role is Role.LEADER


@pytest.mark.parametrize("answer", [PreVoted(4, 3, "the leader lives"), PreVoted(3, 3), PreVoted(5, 3)])
def test_answers_that_do_not_count(answer: PreVoted) -> None:
    one = desk()
    one.wait(2.0)
    one.receive(B, answer)
    assert one.core.role is Role.PRECANDIDATE


def test_strangers_and_learners_do_not_count() -> None:
    one = desk()
    one.wait(2.0)
    one.receive(D, PreVoted(4, 3))
    assert one.core.role is Role.PRECANDIDATE
    one.receive(B, PreVoted(4, 3))
    one.receive(D, Voted(4, 4))
    assert one.core.role is Role.CANDIDATE


def test_a_candidate_follows_the_one_that_won() -> None:
    one = desk()
    one.wait(2.0)
    one.receive(B, PreVoted(4, 3))
    one.receive(C, Lead(4, 4, 4, 0, 0))
    assert one.core.role is Role.FOLLOWER
    assert one.core.snapshot().leader == C


def test_no_prevote_while_the_leader_lives() -> None:
    one = desk()
    assert one.receive(C, PreVote(4, *HELD)) == [(C, PreVoted(4, 3))]
    one.receive(B, Lead(3, *HELD, 0, 0))
    ((_, answer),) = one.receive(C, PreVote(4, *HELD))
    assert isinstance(answer, PreVoted)
    assert answer.error == "the leader lives"
    one.core.observe(B, Standing.SUSPECT, one.now)
    assert one.receive(C, PreVote(4, *HELD)) == [(C, PreVoted(4, 3))], "gossip doubts it"


def test_gossip_vetoes_for_a_while() -> None:
    one = desk()
    one.core.observe(B, Standing.ALIVE, one.now)
    one.receive(B, Lead(3, *HELD, 0, 0))
    assert one.wait(3.9) == []
    assert one.wait(0.4) != [], "it is alive, but it does not lead"


def test_the_veto_ends_with_a_doubt_and_the_next_in_order_hurries() -> None:
    one = desk()
    one.core.observe(B, Standing.ALIVE, one.now)
    one.core.observe(C, Standing.ALIVE, one.now)
    one.core.hear_of(C, one.now, 0.0, 0.0, HELD, "home")
    one.receive(B, Lead(3, *HELD, 0, 0))
    one.wait(0.5)
    one.core.observe(B, Standing.PROVED, one.now)
    assert one.wait(0.1) != [], "it runs longer than C, so it is the first"
    late = desk()
    late.core.observe(C, Standing.ALIVE, late.now)
    late.core.hear_of(C, late.now, 999.0, 0.0, HELD, "home")
    late.receive(B, Lead(3, *HELD, 0, 0))
    late.core.observe(B, Standing.PROVED, late.now)
    assert late.wait(0.14) == []
    assert late.wait(0.1) != []


def test_who_holds_no_charter_votes_for_nobody() -> None:
    one = Desk(A, Durable())
    [(target, answer)] = one.receive(B, Vote(5, *HELD))
    assert (target, answer.error) == (B, "this node holds no charter")


def test_learners_never_campaign() -> None:
    one = Desk(E, Durable(3, None, charter_of((A,), learners=(E,), term=3)))
    assert one.core.get_timer() is None
    assert one.wait(60.0) == []


def test_a_single_voter_leads_at_once() -> None:
    one = Desk(A, Durable(0, None, charter_of((A,), term=0)))
    one.wait(0.0)
    assert one.core.role is Role.LEADER
    assert one.core.version == Version(1, 1)


def test_slow_nodes_wait_longer_but_not_for_ever() -> None:
    one = desk()
    one.core.set_health(8.0)
    one.receive(B, Lead(3, *HELD, 0, 0))
    assert one.wait(1.9) == []
    one.wait(4.0)
    assert one.core.role is Role.PRECANDIDATE
    assert one.outcomes(LeaderChanged)[-1].leader is None, "who is cut off looks slow to itself, and must notice"


def test_a_handover_needs_no_prevote_and_comes_from_the_leader_only() -> None:
    one = desk()
    assert one.receive(B, Handover(3)) == []
    one.receive(B, Lead(3, *HELD, 0, 0))
    assert one.receive(C, Handover(3)) == []
    assert one.receive(B, Handover(2)) == []
    assert (C, Vote(4, *HELD, "home")) in one.receive(B, Handover(3))


# --- the disk


def test_a_failed_write_is_said_and_nobody_is_told_of_it() -> None:
    one = desk(slow=True)
    one.receive(B, Vote(4, *HELD))
    one.fail()
    assert one.outcomes(DiskFailed) == [DiskFailed("no space left")]
    assert one.core.term == 3
    assert one.sent == []
    one.now += 1.0
    assert one.receive(C, Vote(4, *HELD)) == []
    one.write()
    assert one.sent == [(C, Voted(4, 4))], "B was told nothing, so C may have it"


def test_after_a_failed_write_it_waits_before_the_next() -> None:
    one = desk(slow=True)
    one.receive(B, Vote(4, *HELD))
    one.fail()
    one.receive(B, Vote(4, *HELD))
    assert one.writes == []
    one.wait(1.1)
    assert len(one.writes) == 1


def test_timing_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(AssertionError):
        Timing(heartbeat_s=1.0)
    with pytest.raises(AssertionError):
        Timing(election_max_s=9.0)
