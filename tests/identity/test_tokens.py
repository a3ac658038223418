"""Tokens: what admits, what does not, and that nothing of the secret is kept or shown."""

from __future__ import annotations

import os

import msgspec
import pytest

from p2pnn.errors import UsageError
from p2pnn.identity.tokens import VALID_S, Token, create, judge, living, revoked

CLUSTER = "ab" * 32
NOW = 1_800_000_000.0


def test_a_token_comes_back_from_its_text() -> None:
    token, record = create(CLUSTER, "a", NOW, VALID_S, os.urandom)
    assert Token.parse(f"  {token}\n") == token
    assert len(str(token)) == 113
    assert (record.id, record.by, record.expires_s) == (token.id, "a", NOW + VALID_S)


def test_a_right_one_admits_until_it_expires() -> None:
    token, record = create(CLUSTER, "a", NOW, VALID_S, os.urandom)
    assert judge([record], token.id, token.secret, NOW + VALID_S - 1) == ""
    assert "expired" in judge([record], token.id, token.secret, NOW + VALID_S)


def test_a_revoked_one_admits_nobody() -> None:
    token, record = create(CLUSTER, "a", NOW, VALID_S, os.urandom)
    _, other = create(CLUSTER, "a", NOW, VALID_S, os.urandom)
    after = revoked([other, record], token.id)
    assert "revoked" in judge(after, token.id, token.secret, NOW)
    assert after[0] is other
    with pytest.raises(UsageError, match="no token 00000000"):
        revoked([record], "00000000")


def test_who_has_not_the_secret_learns_nothing_of_the_token() -> None:
    token, record = create(CLUSTER, "a", NOW, VALID_S, os.urandom)
    wrong = "0" * 32
    said = {
        judge([record], token.id, wrong, NOW),
        judge([record], "00000000", token.secret, NOW),
        judge(revoked([record], token.id), token.id, wrong, NOW),
        judge([record], token.id, wrong, NOW + VALID_S),
        judge([], token.id, token.secret, NOW),
    }
    assert len(said) == 1
    assert "no such token" in said.pop()


def test_the_secret_is_neither_kept_nor_shown() -> None:
    token, record = create(CLUSTER, "a", NOW, VALID_S, os.urandom)
    assert token.secret not in repr(token)
    assert token.secret.encode() not in msgspec.msgpack.encode(record)
    assert bytes.fromhex(token.secret) not in record.digest


@pytest.mark.parametrize(
    "text",
    [
        "",
        "p2pnn1",
        f"p2pnn1.{CLUSTER}.0123.{'0' * 32}",
        f"p2pnn2.{CLUSTER}.{'0' * 8}.{'0' * 32}",
        f"p2pnn1.{CLUSTER}.{'0' * 8}.{'secret00' * 4}",
    ],
)
def test_what_is_no_token_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(UsageError, match="bad token") as caught:
        Token.parse(text)
    assert "secret00" not in str(caught.value)


@pytest.mark.parametrize("valid_s", [0, 59, 31 * 86400, float("inf"), float("nan")])
def test_a_time_that_makes_no_sense_is_refused(valid_s: float) -> None:
    with pytest.raises(UsageError, match="valid for a minute to 30 days"):
        create(CLUSTER, "a", NOW, valid_s, os.urandom)


def test_those_that_have_expired_are_dropped() -> None:
    _, old = create(CLUSTER, "a", NOW - VALID_S, VALID_S, os.urandom)
    _, new = create(CLUSTER, "a", NOW, VALID_S, os.urandom)
    assert living([old, new], NOW) == (new,)
