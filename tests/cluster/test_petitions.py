"""What the coordinator makes of a petition."""

from __future__ import annotations

import os

import pytest

from p2pnn.cluster import petitions
from p2pnn.cluster.charter import Charter, CharterMember
from p2pnn.cluster.petitions import Admit, Change, MakeToken, Remove, Renew, RevokeToken, rule
from p2pnn.errors import NotAllowedError, P2pnnError, UsageError
from p2pnn.identity.tokens import TOKENS_MAX, VALID_S, TokenRecord, create
from p2pnn.types import NodeId

PRINTS = {name: name * 64 for name in "abc"}
A, B, C = (NodeId(PRINTS[name][:32]) for name in "abc")
MEMBERS = tuple(CharterMember(PRINTS[name][:32], PRINTS[name], f"node-{name}") for name in "ab")
CHARTER = Charter(1, "cluster", 1, 1, (A,), MEMBERS)
NOW = 1_800_000_000.0
JOINER = Admit("0" * 8, "0" * 32, b"key", "node-c", "192.0.2.1")


def token(now: float = NOW) -> TokenRecord:
    return create("ab" * 32, "a", now, VALID_S, os.urandom)[1]


def ask(petition: petitions.Petition, source: NodeId = B, fingerprint: str = "", charter: Charter = CHARTER) -> Change:
    return rule(charter, A, source, petition, fingerprint, NOW)


@pytest.mark.parametrize(
    "petition", [JOINER, Renew(b"k"), MakeToken(token()), RevokeToken("01234567"), Remove("node-b")]
)
def test_a_petition_comes_back_from_its_bytes(petition: petitions.Petition) -> None:
    assert petitions.decode(petitions.encode(petition)) == petition


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x92\x63\x01", petitions.encode(JOINER)[:-3], b"\x91" * 70_000])
def test_bytes_that_are_none_are_refused(data: bytes) -> None:
    with pytest.raises(NotAllowedError, match="cannot be read"):
        petitions.decode(data)


def test_a_joiner_becomes_a_member_with_a_certificate() -> None:
    change = ask(JOINER, fingerprint=PRINTS["c"])
    assert change == Change(admit=(CharterMember(C, PRINTS["c"], "node-c"),), certify=b"key")


def test_who_is_a_member_already_gets_a_certificate_and_changes_nothing() -> None:
    assert ask(JOINER, fingerprint=PRINTS["b"]) == Change(certify=b"key")
    assert ask(JOINER, fingerprint=PRINTS["b"]).holds


def test_another_key_with_a_members_id_is_refused() -> None:
    with pytest.raises(NotAllowedError, match="another member has this node id"):
        ask(JOINER, fingerprint=B + "0" * 32)


def test_a_certificate_is_renewed_for_its_own_key_only() -> None:
    assert ask(Renew(b"key"), B, PRINTS["b"]) == Change(certify=b"key")
    for source, fingerprint in ((B, PRINTS["a"]), (C, PRINTS["c"])):
        with pytest.raises(NotAllowedError, match="own key only"):
            ask(Renew(b"key"), source, fingerprint)


def test_tokens_are_made_once_and_the_expired_ones_go() -> None:
    old, new = token(NOW - VALID_S), token()
    charter = Charter(1, "cluster", 1, 1, (A,), MEMBERS, tokens=(old,))
    change = ask(MakeToken(new), charter=charter)
    assert change.tokens == (new,)
    assert ask(MakeToken(new), charter=charter.successor(tokens=(new,))).holds


@pytest.mark.parametrize("off_s", [-2 * VALID_S, 40 * 86400])
def test_a_token_of_another_time_is_refused(off_s: float) -> None:
    with pytest.raises(UsageError, match="compare the clocks"):
        ask(MakeToken(token(NOW + off_s)))


def test_there_is_room_for_so_many_tokens_and_no_more() -> None:
    full = Charter(1, "cluster", 1, 1, (A,), MEMBERS, tokens=tuple(token() for _ in range(TOKENS_MAX)))
    with pytest.raises(UsageError, match="no room"):
        ask(MakeToken(token()), charter=full)


def test_a_token_is_revoked_once() -> None:
    one = token()
    charter = CHARTER.successor(tokens=(one,))
    change = ask(RevokeToken(one.id), charter=charter)
    assert change.tokens is not None
    assert change.tokens[0].revoked
    assert ask(RevokeToken(one.id), charter=charter.successor(tokens=change.tokens)).holds
    with pytest.raises(UsageError, match="there is no token"):
        ask(RevokeToken("01234567"))


@pytest.mark.parametrize("text", ["node-b", B, B[:8]])
def test_a_member_is_removed_by_name_or_id(text: str) -> None:
    assert ask(Remove(text)) == Change(dismiss=(B,))


def test_with_a_member_go_the_tokens_that_it_may_know() -> None:
    charter = CHARTER.successor(tokens=(token(), token(NOW - 2 * VALID_S)))
    change = ask(Remove("node-b"), charter=charter)
    assert change.dismiss == (B,)
    assert change.tokens is not None
    assert [(one.id, one.revoked) for one in change.tokens] == [(charter.tokens[0].id, True)], (
        "expired ones are dropped"
    )


@pytest.mark.parametrize("name", ["", "a b", "a,b", "[x]"])
def test_a_joiner_whose_name_cannot_be_one_is_refused(name: str) -> None:
    with pytest.raises(NotAllowedError, match="cannot be a node's name"):
        ask(Admit("0" * 8, "0" * 32, b"key", name, "192.0.2.1"), fingerprint=PRINTS["c"])


def test_a_member_that_is_called_as_another_ones_id_hides_nobody() -> None:
    mimic = CharterMember(C, PRINTS["c"], B)
    assert ask(Remove(B), charter=CHARTER.successor(members=(*MEMBERS, mimic))) == Change(dismiss=(B,))


def test_the_coordinator_hands_over_before_it_goes_and_the_only_member_stays() -> None:
    assert ask(Remove("node-a")) == Change(hand_over=True)
    with pytest.raises(UsageError, match="the only member"):
        ask(Remove("node-a"), charter=Charter(1, "cluster", 1, 1, (A,), MEMBERS[:1]))


@pytest.mark.parametrize(
    ("text", "why"), [("node-x", "no member is called"), ("b", "no member is called"), ("twin", "2 members")]
)
def test_a_name_that_is_not_one_members_is_refused(text: str, why: str) -> None:
    twins = tuple(CharterMember(PRINTS[name][:32], PRINTS[name], "twin") for name in "ab")
    charter = Charter(1, "cluster", 1, 1, (A,), twins if text == "twin" else MEMBERS)
    with pytest.raises(P2pnnError, match=why):
        ask(Remove(text), charter=charter)
