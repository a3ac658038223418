"""Which configuration may follow which."""

from __future__ import annotations

from p2pnn.replication.configuration import (
    Configuration,
    admitted,
    demoted,
    led_by,
    may_follow,
    promoted,
    removed,
    succession,
)

from .mesh import A, B, C, member

D = member("d")
THREE = Configuration(7, 2, (A, B), (C,))


def test_what_each_change_makes() -> None:
    assert removed(THREE, B) == Configuration(7, 2, (A,), (C,))
    assert removed(THREE, C) == Configuration(7, 2, (A, B))
    assert demoted(THREE, B) == Configuration(7, 2, (A,), (C, B))
    assert promoted(THREE, C) == Configuration(7, 2, (A, B, C))
    assert admitted(THREE, D) == Configuration(7, 2, (A, B), (C, D))
    assert admitted(THREE, member("c", 2)).learners == (member("c", 2),), "its older process goes"
    assert led_by(THREE, B) == Configuration(7, 2, (B, A), (C,))
    for after in (removed(THREE, B), demoted(THREE, B), promoted(THREE, C), admitted(THREE, D), led_by(THREE, B)):
        assert may_follow(THREE, after)


def test_a_lost_primary_is_followed_by_a_backup_and_never_by_a_learner() -> None:
    assert succession(THREE, {A}) == Configuration(7, 2, (B,), (C,))
    assert succession(THREE, {A, C}) == Configuration(7, 2, (B,))
    assert succession(THREE, {A, B}) is None, "a learner has not all updates"
    assert succession(THREE, {B}) is None, "the primary knows whether it misses it"
    assert succession(THREE, {C}) == Configuration(7, 2, (A, B))
    assert succession(THREE, set()) is None


def test_what_may_not_follow() -> None:
    assert not may_follow(THREE, Configuration(6, 2, (A,))), "made from another one"
    assert not may_follow(THREE, Configuration(7, 2, (C, A))), "a learner as the primary"
    assert not may_follow(THREE, Configuration(7, 2, (B, C))), "promoted by another than the primary"
    assert not may_follow(THREE, Configuration(7, 2, (A, B, D))), "promoted from nowhere"
    assert not may_follow(THREE, Configuration(7, 2, (member("a", 2), B))), "another process"
    assert not may_follow(THREE, Configuration(7, 2, (A, B), (member("a", 2),))), "a node with two places"
