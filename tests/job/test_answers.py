"""What answers of several nodes, and of several processes on one, make together."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from p2pnn.job import answers
from p2pnn.job.checkpoint import Part
from p2pnn.job.script import Done, Evaluation
from p2pnn.types import BlobId, NodeId
from tests.job.test_supervisor import NODES, make_spec

A, B, C = NODES


def part(number: int) -> Part:
    return Part(BlobId(f"{number:064d}"), number, bytes(32))


def packed(value: Any) -> bytes:
    return msgspec.msgpack.encode(value)


def evaluated(loss: float, rows: int, hits: float) -> Done:
    return Done(1, packed(Evaluation(loss, rows, {"accuracy": (hits, float(rows))})))


def test_shares_of_a_split_that_replicas_evaluated_add_up() -> None:
    found: dict[NodeId, Done] = {A: evaluated(6.0, 8, 4.0), B: Done(1), C: evaluated(2.0, 2, 1.0)}
    result = answers.evaluation(make_spec(), "test", NODES, found)
    assert (result.rows, result.loss, result.metrics, result.counts) == (10, 0.8, {"accuracy": 0.5}, {"accuracy": 10})


def test_one_replica_over_two_nodes_counts_its_rows_once() -> None:
    found = {A: Done(1, packed(Evaluation(6.0, 8))), B: Done(1, packed(Evaluation(0.0, 0, {"accuracy": (4.0, 8.0)})))}
    result = answers.evaluation(make_spec(), "test", [A, B], found)
    assert (result.rows, result.loss, result.metrics) == (8, 0.75, {"accuracy": 0.5})


def test_a_node_may_have_written_no_part_one_or_two() -> None:
    found = {A: Done(1, packed([part(1), part(2)])), B: Done(1), C: Done(1, packed(part(3)))}
    assert answers.parts(NODES, found) == ((part(1), part(2), part(3)), (0, 0, 2))
    for nothing in (Done(1), Done(1, b"\xc1")):
        with pytest.raises(msgspec.MsgspecError):
            answers.parts(NODES, dict.fromkeys(NODES, nothing))


def test_the_processes_of_a_node_answer_as_one() -> None:
    one, two = Done(7, packed(part(1))), Done(7, packed([part(2)]))
    assert answers.of_node([one]) == one
    assert answers.of_node([Done(7), one]) == one
    assert answers.of_node([Done(7), Done(7)]) == Done(7)
    assert answers.of_node([Done(7), Done(7, uneven=(3, 0))]) == Done(7, uneven=(3, 0))
    both = answers.of_node([one, two])
    assert answers.parts([A], {A: both}) == ((part(1), part(2)), (0, 0))
    assert answers.of_node([one, Done(7, error="the disk is full")]) == Done(7, b"", "the disk is full")
