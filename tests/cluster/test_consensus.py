"""What every node does with a charter, message by message; whole clusters are in tests/simulator."""

from __future__ import annotations

import pytest

from p2pnn.cluster.charter import FORMAT, NOTHING, Charter, Version, encode
from p2pnn.cluster.consensus import Consensus
from p2pnn.cluster.durable import Durable
from p2pnn.cluster.election import Role
from p2pnn.cluster.outcomes import Committed
from p2pnn.wire.charter import CharterPiece, CharterWanted, Held, Lead, PreVote, PreVoted, Vote
from p2pnn.wire.messages import Ping

from .charters import A, B, C, D, Desk, charter_of, member


def piece(charter: Charter, committed: Version = NOTHING) -> CharterPiece:
    data = encode(charter)
    return CharterPiece(*charter.version, *committed, 0, len(data), data)


def follower(*, slow: bool = False) -> Desk:
    """B, at charter 3.1 of three voters, that follows A in term 3."""
    one = Desk(B, Durable(3, A, charter_of((A, B, C), term=3)), slow=slow)
    one.receive(A, Lead(3, 3, 1, 0, 0))
    return one


def test_a_node_without_a_charter_takes_any() -> None:
    one = Desk(D, Durable())
    assert one.receive(A, Lead(3, 3, 1, 3, 1))[-1] == (A, Held(3, 0, 0))
    assert one.receive(A, piece(charter_of((A,), learners=(D,), term=3), Version(3, 1)))[-1] == (
        A,
        Held(3, 3, 1, "home"),
    )
    assert [event.charter.version for event in one.outcomes(Committed)] == [Version(3, 1)]


@pytest.mark.parametrize(
    ("term", "revision", "taken"), [(3, 2, True), (4, 1, True), (3, 1, False), (3, 0, False), (2, 9, False)]
)
def test_only_higher_versions_are_taken_from_anyone(term: int, revision: int, taken: bool) -> None:
    one = follower()
    one.receive(C, piece(charter_of((A, B, C), term=term, revision=revision, work=b"new")))
    assert (one.core.version == (term, revision)) == (taken or (term, revision) == (3, 1))
    assert one.core.charter is not None
    assert (one.core.charter.work == b"new") == taken
    assert one.core.term == max(3, term)


def test_another_clusters_charter_is_not_taken() -> None:
    one = follower()
    one.receive(A, piece(Charter(FORMAT, "other", 9, 9, (A,), (member(A),))))
    assert one.core.version == Version(3, 1)
    assert one.core.term == 3


def test_two_clusters_that_were_founded_apart_do_not_mix() -> None:
    one = follower()
    for message in (
        Lead(9, 3, 1, 3, 1, "other"),
        Held(9, 3, 1, "other"),
        PreVote(9, 9, 9, "other"),
        Vote(9, 9, 9, "other"),
        CharterPiece(9, 9, 9, 9, 0, 1, b"x", "other"),
    ):
        assert one.receive(C, message) == []
    assert (one.core.term, one.core.snapshot().leader) == (3, A)
    assert one.outcomes(Committed) == []


def test_a_piece_that_lies_about_its_version_is_not_taken() -> None:
    one = follower()
    data = encode(charter_of((A, B, C), term=3, revision=2))
    one.receive(A, CharterPiece(3, 9, 0, 0, 0, len(data), data))
    one.receive(A, CharterPiece(3, 9, 0, 0, 0, 4, b"\x00\x01\x02\x03"))
    assert one.core.version == Version(3, 1)


def test_it_acts_on_what_is_committed_only() -> None:
    one = follower()
    one.receive(A, piece(charter_of((A, B, C), term=3, revision=2)))
    assert one.outcomes(Committed) == []
    one.receive(A, Lead(3, 3, 2, 3, 1))
    assert one.outcomes(Committed) == [], "3.1 was committed, and is here no more"
    one.receive(A, Lead(3, 3, 2, 3, 2))
    assert [event.charter.version for event in one.outcomes(Committed)] == [Version(3, 2)]
    one.receive(C, Lead(3, 3, 2, 3, 1))
    assert len(one.outcomes(Committed)) == 1


def test_it_tells_and_does_what_its_disk_has() -> None:
    one = follower(slow=True)
    one.receive(A, piece(charter_of((A, B, C), term=3, revision=2)))
    assert one.receive(A, Lead(3, 3, 2, 3, 2)) == [(A, Held(3, 3, 1, "home"))], "a slow disk loses nobody its place"
    assert one.outcomes(Committed) == []
    one.write()
    assert one.sent == [(A, Held(3, 3, 1, "home")), (A, Held(3, 3, 2, "home"))]
    assert [event.charter.version for event in one.outcomes(Committed)] == [Version(3, 2)]


def test_a_candidate_that_gets_a_newer_charter_asks_anew() -> None:
    one = Desk(A, Durable(3, None, charter_of((A, B, C), term=3)))
    one.wait(2.0)
    one.receive(B, PreVoted(4, 3))
    assert one.core.role is Role.CANDIDATE
    one.receive(C, piece(charter_of((A, B, C), term=3, revision=2)))
    assert one.core.role is Role.FOLLOWER


def test_a_deposed_leader_is_told_by_the_next_heartbeat() -> None:
    one = follower()
    one.receive(C, Lead(5, 3, 1, 0, 0))
    assert one.receive(A, Lead(3, 3, 1, 0, 0)) == [(A, Held(5, 3, 1, "home"))]
    assert one.core.snapshot().leader == C


def test_a_charter_that_gossip_knows_of_is_fetched() -> None:
    one = follower()
    one.core.hear_of(C, one.now, 0.0, 0.0, Version(3, 5), "home")
    one.core.hear_of(A, one.now, 0.0, 0.0, Version(3, 5), "home")
    one.settle()
    assert one.messages(CharterWanted) == [(C, CharterWanted(0, 0))], "once in a while; it acts on none yet"
    assert one.receive(A, CharterWanted(3, 1)) == []
    assert [type(message) for _, message in one.receive(A, CharterWanted(3, 0))] == [CharterPiece]
    one.core.hear_of(C, one.now + 9, 0.0, 0.0, Version(9, 9), "away")
    one.settle()
    assert one.messages(CharterWanted) == [], "another cluster's versions say nothing"


def test_a_charter_whose_generation_a_message_bears_is_fetched() -> None:
    one = follower()
    version = Version(3, 5)
    assert Version.of(version.generation) == version
    one.core.hear_of_commit(C, version, one.now)
    one.settle()
    assert one.messages(CharterWanted) == [(C, CharterWanted(0, 0))]


def test_what_is_none_of_its_messages_is_ignored() -> None:
    assert follower().receive(A, Ping(1)) == []


def test_a_snapshot() -> None:
    one = follower()
    snapshot = one.core.snapshot()
    assert (snapshot.role, snapshot.term, snapshot.leader, snapshot.version) == (Role.FOLLOWER, 3, A, Version(3, 1))
    assert snapshot.charter is None
    assert isinstance(one.core, Consensus)
