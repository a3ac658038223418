"""How long a node may be silent."""

from __future__ import annotations

from p2pnn.job.watch import FACTOR, LIMIT_S, TRAINING_LIMIT_S, Watch
from p2pnn.types import NodeId

A, B, C = NodeId("a"), NodeId("b"), NodeId("c")


def test_nobody_who_owes_nothing_is_late() -> None:
    watch = Watch()
    assert watch.due is None
    assert watch.silent(1e9) is None
    watch.expect(A, 1, 5.0, training=True)
    watch.heard(A, 6.0, 1)
    assert watch.due is None


def test_before_the_first_step_is_measured_the_limit_is_generous_and_then_short() -> None:
    watch = Watch()
    for node in (A, B):
        watch.expect(node, 1, 0.0, training=True)
        watch.expect(node, 2, 0.0, training=True)
    assert watch.due == LIMIT_S
    watch.heard(A, 0.5)
    assert watch.due == LIMIT_S, "B has not moved yet, and A may wait for it"
    watch.heard(B, 1.0)
    watch.heard(B, 1.2, 1)
    assert watch.due == 0.5 + TRAINING_LIMIT_S
    assert watch.silent(30.4) is None
    assert watch.silent(31.0) == (A, 30.5)


def test_slow_steps_have_more_time() -> None:
    watch = Watch()
    watch.expect(A, 1, 0.0, training=True)
    watch.heard(A, 10.0)
    assert watch.due == 10.0 + FACTOR * 10.0


def test_how_long_others_waited_for_one_that_is_given_up_says_nothing_of_them() -> None:
    watch = Watch()
    for node in (A, B, C):
        watch.expect(node, 1, 0.0, training=True)
        watch.heard(node, 0.5)
    for node in (B, C):
        watch.heard(node, 1.0)
    due = watch.due
    assert due == 0.5 + TRAINING_LIMIT_S
    assert watch.silent(due) == (A, TRAINING_LIMIT_S)
    watch.forget(A, due)
    assert watch.due == due + TRAINING_LIMIT_S
    for node in (B, C):
        watch.heard(node, due + 0.3)
    assert watch.due == due + 0.3 + TRAINING_LIMIT_S, "the next one that hangs is found as soon"


def test_what_waits_behind_a_checkpoint_of_another_node_has_the_time_of_that() -> None:
    watch = Watch()
    for node in (A, B):
        watch.expect(node, 1, 0.0, training=True)
        watch.expect(node, 2, 0.0, training=False)
        watch.expect(node, 3, 0.0, training=True)
        watch.heard(node, 1.0, 1)
    watch.heard(A, 2.0, 2)
    assert watch.due == 1.0 + LIMIT_S
    watch.heard(B, 3.0, 2)
    assert watch.due == 2.0 + FACTOR * 2.0
