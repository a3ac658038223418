"""Which configuration may follow which."""

from __future__ import annotations

from p2pnn.replication.configuration import Configuration, demoted, may_follow, promoted, removed

from .mesh import A, B, C, member

D = member("d")
THREE = Configuration(7, 2, (A, B), (C,))


def test_what_each_change_makes() -> None:
    assert removed(THREE, B) == Configuration(7, 2, (A,), (C,))
    assert removed(THREE, C) == Configuration(7, 2, (A, B))
    assert demoted(THREE, B) == Configuration(7, 2, (A,), (C, B))
    assert promoted(THREE, C) == Configuration(7, 2, (A, B, C))
    for after in (removed(THREE, B), demoted(THREE, B), promoted(THREE, C), THREE.replaced((B, A), (C,))):
        assert may_follow(THREE, after)


def test_what_may_not_follow() -> None:
    assert not may_follow(THREE, Configuration(6, 2, (A,))), "made from another one"
    assert not may_follow(THREE, Configuration(7, 2, (C, A))), "a learner as the primary"
    assert not may_follow(THREE, Configuration(7, 2, (B, C))), "promoted by another than the primary"
    assert not may_follow(THREE, Configuration(7, 2, (A, B, D))), "promoted from nowhere"
    assert not may_follow(THREE, Configuration(7, 2, (member("a", 2), B))), "another process"
    assert not may_follow(THREE, Configuration(7, 2, (A, B), (member("a", 2),))), "a node with two places"
