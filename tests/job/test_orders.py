"""Numbered commands and their answers."""

from __future__ import annotations

from p2pnn.job.orders import Orders
from p2pnn.job.script import Checkpoint, Done, Evaluate, Finish, Train
from p2pnn.job.watch import Watch
from tests.job.test_supervisor import NODES


def orders() -> Orders:
    found = Orders(Watch())
    found.nodes = NODES[:2]
    return found


def test_commands_are_taken_once_in_their_order_and_the_last_one_has_no_number() -> None:
    found = orders()
    issued = [Train(found.next(), 4), Checkpoint(found.next()), Finish()]
    for command in issued:
        found.issue(command, 0.0)
    assert found.take() == tuple(issued)
    assert found.take() == ()
    assert found.open == (1, 2), "nobody answers the last one"


def test_a_command_is_through_when_every_node_has_answered_it() -> None:
    found = orders()
    found.issue(Train(found.next(), 4), 1.5)
    assert found.answer(NODES[0], Done(1)) is None
    assert found.answer(NODES[0], Done(1)) is None, "twice by one node is not all of them"
    assert found.answer(NODES[1], Done(9)) is None
    done = found.answer(NODES[1], Done(1, b"r"))
    assert done is not None
    assert (done.command, done.since, done.answers) == (Train(1, 4), 1.5, {NODES[0]: Done(1), NODES[1]: Done(1, b"r")})
    assert found.answer(NODES[1], Done(1)) is None, "it is through"
    assert found.open == ()


def test_the_oldest_open_command_and_how_many_train() -> None:
    found = orders()
    assert (found.oldest, found.training) == (1, 0)
    for command in (Train(found.next(), 4), Evaluate(found.next(), "test"), Train(found.next(), 8)):
        found.issue(command, 0.0)
    assert (found.oldest, found.training) == (1, 2)
    for number in (2, 1):
        for node in NODES[:2]:
            found.answer(node, Done(number))
        assert found.oldest == {2: 1, 1: 3}[number], "what was answered out of order stays below an open one"
    assert found.training == 1
    for node in NODES[:2]:
        found.answer(node, Done(3))
    assert found.oldest == 4, "all below the next number"


def test_whoever_owes_an_answer_is_watched() -> None:
    watch = Watch()
    found = Orders(watch)
    found.nodes = NODES[:2]
    found.issue(Evaluate(found.next(), "test"), 3.0)
    assert watch.due is not None
    found.issue(Finish(), 4.0)
    for node in NODES[:2]:
        watch.heard(node, 5.0, 1)
    assert watch.due is None
