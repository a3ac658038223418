"""Guessing: slowed, from one address and from many, in bounded memory; honest joiners are heard."""

from __future__ import annotations

import os

import pytest

from p2pnn.identity.guesses import Guesses, Limits, group
from p2pnn.identity.tokens import VALID_S, create, judge


def test_a_hundred_thousand_guesses_are_refused_and_hardly_any_is_looked_at() -> None:
    """A thousand a second from one address for 100 s: after the first each second, then each two, four, eight …"""
    _, record = create("ab" * 32, "a", 0, VALID_S, os.urandom)
    guesses, looked_at, admitted = Guesses(), 0, 0
    for number in range(100_000):
        now = number / 1000
        if guesses.wait_s("192.0.2.1", now):
            continue
        looked_at += 1
        admitted += judge([record], record.id, f"{number:032x}", now) == ""
        guesses.wrong("192.0.2.1", now)
    assert (looked_at, admitted) == (7, 0)
    assert guesses.wait_s("192.0.2.1", 100) > 20


def test_a_hundred_thousand_from_as_many_addresses_draw_on_one_allowance() -> None:
    guesses, looked_at = Guesses(), 0
    for number in range(100_000):
        now, host = number / 1000, f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        if not guesses.wait_s(host, now):
            looked_at += 1
            guesses.wrong(host, now)
    assert looked_at <= 30 + 100 + 1
    assert len(guesses) <= 1024


def test_memory_is_bounded() -> None:
    guesses = Guesses(Limits(burst=1e9, sources_max=100))
    for number in range(1000):
        guesses.wrong(f"192.0.{number >> 8}.{number & 255}", number)
    assert len(guesses) == 100


def test_others_are_heard_while_one_guesses() -> None:
    guesses = Guesses()
    for now in range(5):
        guesses.wrong("192.0.2.1", now)
    assert guesses.wait_s("192.0.2.1", 5) > 0
    assert guesses.wait_s("192.0.2.2", 5) == 0


def test_who_erred_once_may_come_again_soon_and_in_time_anew() -> None:
    guesses = Guesses()
    guesses.wrong("192.0.2.1", 0)
    assert guesses.wait_s("192.0.2.1", 0.5) == 0.5
    assert guesses.wait_s("192.0.2.1", 1) == 0
    for _ in range(4):
        guesses.wrong("192.0.2.1", 1)
    assert guesses.wait_s("192.0.2.1", 1) == 16
    guesses.wrong("192.0.2.1", 10_000)
    assert guesses.wait_s("192.0.2.1", 10_000) == 1


def test_the_wait_does_not_grow_without_end() -> None:
    guesses = Guesses(Limits(burst=1e9))
    for _ in range(2000):
        guesses.wrong("192.0.2.1", 0)
    assert guesses.wait_s("192.0.2.1", 0) == 300


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("strange", "strange", True),
    ],
)
def test_what_counts_as_one_address(one: str, other: str, same: bool) -> None:
    assert (group(one) == group(other)) is same
