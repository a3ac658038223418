"""Seconds, bytes and memory, recomputed by hand for small graphs."""

from __future__ import annotations

import random

import pytest
from msgspec.structs import replace

from p2pnn import zoo
from p2pnn.engine.numpy.engine import NumpyEngine
from p2pnn.errors import PlanError
from p2pnn.job.plan import NodeShare, Plan
from p2pnn.job.spec import Optimizer
from p2pnn.model.graph import Graph
from p2pnn.plan.cost import Workload, limits, link, memory_bytes, seconds
from p2pnn.plan.profile import UNMEASURED, Link
from p2pnn.train.frames import layout
from p2pnn.types import NodeId

from .builder import branched, job, mlp, node, split


def test_a_dense_layer_costs_its_arithmetic() -> None:
    work = Workload(job(mlp(1000, features=2000), batch_size=400))
    spent = seconds(work, node("a"))
    forward = 2 * 100 * 2000 * 1000 / 10e9
    assert spent.forward[0] == pytest.approx(forward + 1.5 * 2e-6)
    # The input of the first layer needs no gradient, so only the weights' is computed; fc1's successor computes both.
    assert spent.backward[0] == pytest.approx(forward + 4 * 2e-6)
    assert work.backward_flops[2] == 2 * work.forward_flops[2]


def test_ops_that_only_predictions_need_cost_nothing_in_training() -> None:
    graph = mlp(20)
    softmax = next(i for i, op in enumerate(graph.ops) if op.kind == "Softmax")
    loss = next(i for i, op in enumerate(graph.ops) if op.kind == "SoftmaxCrossEntropyLoss")
    train, predict = Workload(job(graph)), Workload(job(graph, kind="predict", test=split(10)))
    assert seconds(train, node("a")).forward[softmax] == 0 < seconds(train, node("a")).forward[loss]
    assert seconds(predict, node("a")).forward[loss] == 0 < seconds(predict, node("a")).forward[softmax]
    assert not seconds(predict, node("a")).update.any()


@pytest.mark.parametrize(("kind", "copies"), [("sgd", 2), ("momentum", 3), ("nesterov", 3), ("adam", 4), ("adamw", 4)])
def test_memory_counts_parameters_gradients_and_slots(kind: str, copies: int) -> None:
    spec = job(mlp(32), optimizer=Optimizer(kind=kind))
    work = Workload(spec)
    parameters = 4 * (16 * 32 + 32 * 10)
    rows, frames = 16, 3
    made = 4 * rows * (32 + 32 + 10 + 10) + 4 + 16 + 4  # fc0, relu0, head, softmax, loss, accuracy, loss's stash
    scratch = 4 * (4 * rows * 32) + 4 * 16 * 32  # live gradients of fc0's size, and fc0's weight gradient
    inputs = rows * (16 * 4 + 8)
    assert memory_bytes(work, [0] * work.count, 0, frames) == copies * parameters + scratch + frames * (made + inputs)


def test_memory_of_a_cut_counts_what_crosses_on_both_sides() -> None:
    work = Workload(job(mlp(32)))
    assignment = [0, 0] + [1] * (work.count - 2)
    crossing = 16 * 32 * 4
    label = 16 * 8
    per_frame = [memory_bytes(work, assignment, n, 2) - memory_bytes(work, assignment, n, 1) for n in (0, 1)]
    assert per_frame[0] == 16 * 16 * 4 + 2 * crossing + crossing  # x, fc0 and relu0, relu0's gradient
    made = 2 * 16 * 10 * 4 + 4 + 4 + 16  # head and softmax, loss and its stash, accuracy
    assert per_frame[1] == 2 * crossing + label + made  # relu0 and its gradient, y


def test_evaluating_while_training_holds_a_second_set_of_values() -> None:
    plain = job(mlp(32))
    both = Workload(replace(plain, validation=split(100)))
    assert memory_bytes(both, [0] * both.count, 0, 2) > memory_bytes(Workload(plain), [0] * both.count, 0, 2)


@pytest.mark.parametrize(("batch", "micro", "advice"), [(100, 3, 4), (7, 2, 1), (64, 0, 1)])
def test_a_batch_that_does_not_divide_is_refused_with_a_number_that_does(batch: int, micro: int, advice: int) -> None:
    with pytest.raises(PlanError, match=f"batch of {batch} rows .* {micro} equal .*--micro-batches {advice}") as caught:
        Workload(job(mlp(8), batch_size=batch, micro_batches=micro))
    assert caught.value.exit_status == 2


def test_nodes_on_one_machine_share_its_memory() -> None:
    shared = [node("a", memory=900, machine="pc"), node("b", memory=900, machine="pc"), node("c", memory=900)]
    assert limits(shared) == [450, 450, 900]
    assert limits(shared, cap=500) == [450, 450, 500]


def test_a_link_that_was_not_measured_takes_the_other_direction() -> None:
    a, b, c = node("a"), node("b"), node("c")
    links = {(a.node, b.node): Link(5.0, 1.0)}
    assert link(links, b.node, a.node) == Link(5.0, 1.0)
    assert link(links, a.node, c.node) == UNMEASURED


@pytest.mark.parametrize("kind", ["train", "predict"])
@pytest.mark.parametrize("graph", [mlp(32, 20), branched(extent=4)], ids=["mlp", "branched"])
def test_memory_is_never_less_than_the_arena(graph: Graph, kind: str) -> None:
    work = Workload(job(graph, kind=kind, test=split(64)))
    dice = random.Random(3)
    shares = tuple(NodeShare(NodeId(n), n, "", 0, 0, 0, 0.0) for n in "abc")
    for _ in range(50):
        assignment = tuple(dice.randrange(3) for _ in range(work.count))
        plan = Plan(shares, assignment, 2, 0.0, 0.0)
        for n in range(3):
            assert memory_bytes(work, assignment, n, 2) >= layout(graph, plan, n, work.rows).arena_bytes


@pytest.mark.parametrize(
    ("name", "shape", "rows"),
    [("mlp", (1, 8, 8), 32), ("mlp", (1, 28, 28), 8), ("lenet5", (1, 28, 28), 32), ("resnet8", (3, 32, 32), 16)],
)
@pytest.mark.parametrize("frames", [1, 3])
def test_memory_is_a_close_upper_bound_of_what_the_engine_takes(
    name: str, shape: tuple[int, ...], rows: int, frames: int
) -> None:
    graph = zoo.build(name, shape, 10).graph
    work = Workload(job(graph, batch_size=4 * rows, optimizer=Optimizer(kind="sgd")))
    engine = NumpyEngine()
    described = {v.name: v for v in (*graph.inputs, *graph.values)}
    tensors = engine.allocate(graph, range(work.count), training=True)
    program = engine.compile(graph, range(work.count), tensors, rows=rows, frames=frames, mode="train")
    taken = program.memory_bytes
    for kept in (tensors.parameters, tensors.gradients, tensors.state):
        taken += sum(array.nbytes for array in kept.values())
    for value in (*program.values_in, *program.values_out):
        taken += frames * work.value_bytes[value] if value in described else 0
    assert taken <= memory_bytes(work, [0] * work.count, 0, frames) < 2.5 * taken
