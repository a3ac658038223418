"""Tensors between the nodes of a replica that is not all of the plan; those of a whole plan are in test_place and test_part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from p2pnn.executor import commands
from p2pnn.job.plan import Plan, Replica, ShardHome
from p2pnn.job.segment import transfers
from p2pnn.node.company import Company
from p2pnn.node.recording import Recording
from p2pnn.node.tensors import Tensors
from p2pnn.train.frames import Layout, layout
from p2pnn.types import NodeId
from p2pnn.wire import messages as wire
from tests.node.nodes import JOB, NAMES, A, B, C, plan_of, post, toy
from tests.node.test_place import FakeExecutor

D = NodeId("d" * 32)
pytestmark = pytest.mark.asyncio


class Bench:
    """C computes the first half of replica 1, of nodes C and B, or as `nodes` has it; A and D are of replica 0."""

    def __init__(self, nodes: tuple[int, int] = (2, 1)) -> None:
        self.spec, _ = toy()
        half = plan_of(self.spec, [A, B])
        shares = tuple(msgspec.structs.replace(half.nodes[0], node=n, name=NAMES.get(n, "d")) for n in (A, B, C, D))
        replicas = (Replica((0, 3)), Replica(nodes))
        self.plan: Plan = msgspec.structs.replace(half, nodes=shares, replicas=replicas, shards=(ShardHome((0,)),))
        self.layout: Layout = layout(
            self.spec.graph, self.plan.replica(1), nodes.index(2), self.spec.rows_per_micro_batch
        )
        self.post, self.outside = post(C)
        self.executor = FakeExecutor(self.layout.arena_bytes, lambda message: None, lambda reason: None)
        recording = Recording(JOB, 1, A, 2, self.spec, self.plan)  # type: ignore[arg-type]
        company = Company((JOB, 1), 2, [A, B, C, D], NAMES, self.post, Nobody(), lambda work: None, lambda *about: None)
        self.tensors = Tensors(self.spec, self.plan, self.layout, company, self.executor, recording)  # type: ignore[arg-type]
        self.recording = recording
        found = transfers(self.spec.graph, self.plan.assignment)
        self.there = next(t.index for t in found if t.source == 0)
        self.back = next(t.index for t in found if t.source == 1)


class Nobody:
    def body_for(self, node: NodeId, message: wire.Message, nbytes: int) -> memoryview | None:
        return None

    def arrived(self, node: NodeId, message: wire.Message) -> None: ...


async def test_what_is_said_within_a_replica_goes_to_its_nodes_alone() -> None:
    bench = Bench()
    bench.tensors.says(commands.Send(bench.there, 0))
    assert [(node, message) for node, message, _ in bench.outside.bodies] == [(B, wire.Tensor(JOB, 1, bench.there, 0))]
    assert bench.executor.sent == [commands.Sent(bench.there, 0)]
    bench.tensors.says(commands.Retired(3))
    bench.tensors.says(commands.Squares(4, [1.0]))
    assert bench.outside.sent == [(B, wire.Retired(JOB, 1, 2, 3)), (B, wire.Squares(JOB, 1, 2, 4, (1.0,)))]


async def test_executors_count_their_replicas_nodes_and_hear_no_others() -> None:
    bench = Bench()
    told: list[Any] = [(B, wire.Retired(JOB, 1, 1, 3)), (B, wire.Squares(JOB, 1, 1, 4, (1.0,)))]
    told += [(A, wire.Retired(JOB, 1, 0, 3)), (A, wire.Retired(JOB, 1, 1, 3)), (B, wire.Retired(JOB, 1, 3, 3))]
    for node, message in told:
        bench.tensors.receive(node, message)
    assert bench.executor.sent == [commands.PeerRetired(1, 3), commands.PeerSquares(1, 4, [1.0])]


async def test_which_batches_are_trained_is_told_by_the_first_node_and_what_is_decided_to_it() -> None:
    bench = Bench()  # C is the first node of its replica
    bench.tensors.says(commands.Dealt(3, ((5, 9),), 4))
    assert bench.outside.sent == [(B, wire.Dealt(JOB, 1, 2, 3, ((5, 9),), 4))]
    for node, message in (
        (B, wire.Decided(JOB, 1, 1, 6, ((2, 3),), ((4, 5),))),
        (A, wire.Decided(JOB, 1, 0, 7)),
        (B, wire.Dealt(JOB, 1, 1, 0, ((0, 4),))),
    ):
        bench.tensors.receive(node, message)
    assert bench.executor.sent == [commands.Decided(6, ((2, 3),), ((4, 5),), 1)]


async def test_another_node_than_the_first_trains_what_it_is_told_to() -> None:
    bench = Bench((1, 2))
    bench.tensors.says(commands.Decided(6, ((2, 3),), ((4, 5),)))
    assert bench.outside.sent == [(B, wire.Decided(JOB, 1, 2, 6, ((2, 3),), ((4, 5),)))]
    steps = bench.spec.steps
    for node, message in (
        (B, wire.Dealt(JOB, 1, 1, 3, ((0, steps),), 2)),
        (B, wire.Dealt(JOB, 1, 1, 3, ((4, steps + 1),))),
        (B, wire.Dealt(JOB, 1, 1, 3, ((4, 4),))),
        (A, wire.Dealt(JOB, 1, 0, 3, ((4, 5),))),
        (B, wire.Decided(JOB, 1, 1, 6)),
    ):
        bench.tensors.receive(node, message)
    assert bench.executor.sent == [commands.Dealt(3, ((0, steps),), 2)]


async def test_tensors_come_from_the_replicas_nodes_alone() -> None:
    bench = Bench()
    nbytes = bench.layout.offsets[bench.back][1]
    tensor = wire.Tensor(JOB, 1, bench.back, 0)
    for node in (A, D, NodeId("e" * 32)):
        assert bench.tensors.body_for(node, tensor, nbytes) is None
    assert bench.tensors.body_for(B, tensor, nbytes) is not None
    bench.tensors.arrived(tensor)
    assert bench.executor.sent == [commands.Arrived(bench.back, 0)]
    passage = bench.recording.part().transfers[bench.back]
    assert (passage.source, passage.target) == (1, 2), "as the plan counts nodes"


async def test_a_node_that_only_serves_has_no_tensors_to_record(tmp_path: Path) -> None:
    bench = Bench()
    plan = msgspec.structs.replace(bench.plan, replicas=(Replica((2, 1)),))
    part = Recording(JOB, 1, A, 0, bench.spec, plan).part()  # type: ignore[arg-type]
    assert (part.segments, part.transfers, part.computed, part.moved) == ((), (), b"", b"")
