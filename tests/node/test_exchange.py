"""Which end of which conversation a message is for; what the ends do with it is in their own tests."""

from __future__ import annotations

import pytest

from p2pnn.executor import commands
from p2pnn.job.assignment import Assignment
from p2pnn.node.exchange import Exchange
from p2pnn.wire import messages as wire
from tests.node.nodes import JOB, A

BODIES = [
    wire.Tensor(JOB, 1, 0, 0),
    wire.Values(JOB, 1, 0, 0, 0, 0, 0, 0, True, 0),
    wire.Push(JOB, 0, 1, 0, 1, 0, 4),
    wire.Forward(JOB, 0, 1, 1, 1, 0, 4),
    wire.StatePiece(JOB, 0, 1, 1, 0, 0, 4),
]


@pytest.mark.parametrize("message", BODIES, ids=lambda message: type(message).__name__)
def test_before_the_executors_are_there_nothing_is_received(message: wire.Message) -> None:
    exchange = Exchange()
    assert exchange.body_for(A, message, 4) is None
    exchange.arrived(A, message)
    exchange.receive(A, wire.Beat(JOB, 0, 1, 0, 0, 0, 0))
    exchange.lost(A)
    exchange.assigned(Assignment())
    exchange.begin(Assignment())


def test_what_is_for_no_other_executor_is_left_to_the_part() -> None:
    assert not Exchange().says(commands.Failed("no"))
    assert not Exchange().says(commands.Applied(0, 0, 1))
