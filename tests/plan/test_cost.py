"""Seconds, bytes and memory, recomputed by hand for small graphs."""

from __future__ import annotations

import random

import pytest
from msgspec.structs import replace

from p2pnn import nn, zoo
from p2pnn.engine.numpy.engine import NumpyEngine
from p2pnn.errors import PlanError
from p2pnn.job.plan import NodeShare, Plan
from p2pnn.job.segment import segments
from p2pnn.job.spec import Optimizer
from p2pnn.model.graph import Graph
from p2pnn.plan import cost
from p2pnn.plan.cost import Workload, limits, link, memory_bytes, seconds
from p2pnn.plan.profile import UNMEASURED, Link
from p2pnn.train.frames import layout
from p2pnn.types import NodeId
from tests.engine.numpy.cases import CASES
from tests.engine.numpy.checks import graph_of

from .builder import branched, job, mlp, node, split


def test_a_dense_layer_costs_its_arithmetic() -> None:
    work = Workload(job(mlp(1000, features=2000), batch_size=400))
    spent = seconds(work, node("a"))
    forward = 2 * 100 * 2000 * 1000 / 10e9
    moved = 4 * (100 * 2000 + 2000 * 1000 + 100 * 1000) / 5e9
    assert spent.forward[0] == pytest.approx(forward + 1.5 * 2e-6 + cost.PACKING[0] * moved)
    assert spent.forward_moving[0] == pytest.approx(1.5 * 2e-6 + cost.PACKING[0] * moved)
    # The input of the first layer needs no gradient, so only the weights' is computed; fc1's successor computes both.
    assert spent.backward[0] == pytest.approx(forward + 4 * 2e-6 + cost.PACKING[2] * moved)
    assert spent.backward_moving[1] == spent.backward[1] > 0
    assert work.backward_flops[2] == 2 * work.forward_flops[2]


def test_ops_that_only_predictions_need_cost_nothing_in_training() -> None:
    graph = mlp(20)
    softmax = next(i for i, op in enumerate(graph.ops) if op.kind == "Softmax")
    loss = next(i for i, op in enumerate(graph.ops) if op.kind == "SoftmaxCrossEntropyLoss")
    train, predict = Workload(job(graph)), Workload(job(graph, kind="predict", test=split(10)))
    assert seconds(train, node("a")).forward[softmax] == 0 < seconds(train, node("a")).forward[loss]
    assert seconds(predict, node("a")).forward[loss] == 0 < seconds(predict, node("a")).forward[softmax]
    assert not seconds(predict, node("a")).updating(0).any()


@pytest.mark.parametrize(
    ("kind", "copies"),
    [("sgd", 2), ("momentum", 3), ("nesterov", 3), ("adagrad", 3), ("rmsprop", 3), ("adam", 4), ("adamw", 4)],
)
def test_memory_counts_parameters_gradients_and_slots(kind: str, copies: int) -> None:
    spec = job(mlp(32), optimizer=Optimizer(kind=kind))
    work = Workload(spec)
    parameters = 4 * (16 * 32 + 32 * 10)
    whole = [0] * work.count
    without = memory_bytes(work, whole, 0, 3) - copies * parameters
    sgd = Workload(job(mlp(32)))
    assert without == memory_bytes(sgd, whole, 0, 3) - 4 * parameters  # adam is the default
    rows = 16
    kept = (
        rows * 4 * (32 + 10) + 4 + 16
    )  # relu0 (over fc0), the loss's stash, loss, accuracy; softmax is for predictions
    inputs = rows * (16 * 4 + 8)
    assert memory_bytes(work, whole, 0, 3) - memory_bytes(work, whole, 0, 2) == kept + inputs


def test_memory_of_a_cut_counts_what_crosses_on_both_sides() -> None:
    work = Workload(job(mlp(32)))
    assignment = [0, 0] + [1] * (work.count - 2)
    crossing = 16 * 32 * 4
    label = 16 * 8
    per_frame = [memory_bytes(work, assignment, n, 2) - memory_bytes(work, assignment, n, 1) for n in (0, 1)]
    assert per_frame[0] == 16 * 16 * 4 + crossing + crossing  # x, relu0 (over fc0), relu0's gradient
    made = 16 * 10 * 4 + 4 + 16  # the loss's stash, loss, accuracy
    assert per_frame[1] == 2 * crossing + label + made  # relu0 and its gradient, y


def test_evaluating_while_training_adds_its_largest_values_once() -> None:
    plain = Workload(job(mlp(32)))
    both = Workload(replace(job(mlp(32)), validation=split(100)))
    more = [memory_bytes(both, [0] * both.count, 0, f) - memory_bytes(plain, [0] * plain.count, 0, f) for f in (1, 4)]
    assert more[0] > 0
    assert more[0] == more[1]


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


def few_channels(extent: int, size: int, channels: int) -> Graph:
    """A convolution of one channel, where the engine's own matrices weigh more than the values."""
    h = nn.relu(nn.Conv2d(channels, size, name="c")(nn.Input("image", (1, extent, extent))))
    scores = nn.Linear(10, name="h")(nn.flatten(nn.MaxPool2d(2)(h)))
    return nn.Model({"p": nn.softmax(scores)}, nn.cross_entropy(scores, nn.Input("label", (), dtype="int64"))).graph


def composed(positions: int, features: int) -> Graph:
    """Elementwise, reducing and moving kinds on sequences, with every gradient flowing."""
    h = nn.Linear(features, name="first")(nn.Input("x", (positions, 5)))
    h = nn.LayerNorm(name="norm")(nn.exp(-h) / nn.sqrt(nn.clip(h * h, 0.1) + 1)) ** 2
    h = nn.where(nn.Input("flag", (positions, 1), dtype="bool"), nn.erf(h), nn.log(h + 3))
    left, right = nn.split(nn.identity(h), 2, axis=-1)
    top = nn.squeeze(nn.unsqueeze(nn.reduce_max(left * right, (1,)), (1,)), (1,))
    scores = nn.Linear(10, name="head")(nn.concat([top, nn.reduce_sum(right, (1,)), h[:, 0]]))
    return nn.Model({"p": nn.softmax(scores)}, nn.cross_entropy(scores, nn.Input("label", (), dtype="int64"))).graph


GRAPHS = {
    "gpt8": lambda: zoo.build("char-gpt", (8,), 65).graph,
    "gpt64": lambda: zoo.build("char-gpt", (64,), 65).graph,
    "composed": lambda: composed(60, 64),
    "mlp8": lambda: zoo.build("mlp", (1, 8, 8), 10).graph,
    "mlp28": lambda: zoo.build("mlp", (1, 28, 28), 10).graph,
    "lenet5": lambda: zoo.build("lenet5", (1, 28, 28), 10).graph,
    "resnet8": lambda: zoo.build("resnet8", (3, 32, 32), 10).graph,
    "few28": lambda: few_channels(28, 5, 6),
    "few14": lambda: few_channels(14, 3, 8),
}


@pytest.mark.parametrize("name", list(GRAPHS))
@pytest.mark.parametrize(("rows", "frames"), [(1, 1), (4, 2), (32, 1), (32, 3)])
def test_memory_is_a_close_upper_bound_of_what_the_engine_takes(name: str, rows: int, frames: int) -> None:
    graph = GRAPHS[name]()
    work = Workload(replace(job(graph, batch_size=4 * rows, optimizer=Optimizer(kind="sgd")), validation=split(50)))
    whole = [0] * work.count
    taken = taken_bytes(graph, work, whole, 0, frames)
    assert taken <= memory_bytes(work, whole, 0, frames) <= 1.3 * taken


@pytest.mark.parametrize("name", ["lenet5", "resnet8", "few14", "gpt8", "composed"])
def test_memory_is_an_upper_bound_for_parts_of_any_shape(name: str) -> None:
    graph = GRAPHS[name]()
    work = Workload(replace(job(graph, batch_size=32), validation=split(50)))
    dice = random.Random(5)
    for _ in range(6):
        assignment = [dice.randrange(2) for _ in range(work.count)]
        taken = taken_bytes(graph, work, assignment, 0, 2)
        assert taken <= memory_bytes(work, assignment, 0, 2) <= 1.8 * taken + 20_000


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_memory_is_an_upper_bound_for_every_op_and_few_rows(rows: int) -> None:
    for name in CASES:
        graph = graph_of(name)
        spec = job(graph, batch_size=rows, micro_batches=1, optimizer=Optimizer(kind="sgd"), validation=split(9))
        work = Workload(spec)
        whole = [0] * work.count
        assert taken_bytes(graph, work, whole, 0, 1) <= memory_bytes(work, whole, 0, 1), name


def test_ops_with_an_axis_and_few_elements_are_no_metrics() -> None:
    """A Split, an ArgMax or a Concat of one row may make a single number, as a metric does."""
    a, b = nn.split(nn.Linear(2)(nn.Input("x", (3,))), 2)
    scores = nn.concat([nn.concat([a]), b])
    label = nn.Input("y", (), dtype="int64")
    top = nn.top_k_accuracy(scores, label, 2)
    graph = nn.Model({"best": nn.argmax(scores)}, nn.cross_entropy(scores, label), {"top": top}).graph
    for kind in ("train", "predict"):
        assert Workload(job(graph, batch_size=1, micro_batches=1, kind=kind, test=split(9))).rows == 1


def taken_bytes(graph: Graph, work: Workload, assignment: list[int], node: int, frames: int) -> int:
    """What one node allocates for this part: tensors, programs, values and gradients at borders."""
    engine = NumpyEngine()
    mine = [i for i, n in enumerate(assignment) if n == node]
    tensors = engine.allocate(graph, mine, training=True, micro_batches=work.micro_batches)
    held = (tensors.parameters, tensors.gradients, tensors.state, *tensors.partial)
    taken = sum(a.nbytes for d in held for a in d.values())
    taken += work.slots * sum(a.nbytes for a in tensors.parameters.values())
    values: set[str] = set()
    gradients: set[tuple[str, int]] = set()
    for segment in segments(graph, assignment):
        if segment.node == node:
            for mode in ("train", "evaluate"):
                program = engine.compile(graph, segment.ops, tensors, rows=work.rows, frames=frames, mode=mode)
                taken += program.memory_bytes
                values.update((*program.values_in, *program.values_out))
                gradients.update((*program.gradients_in, *program.gradients_out))
    border = sum(work.value_bytes[v] for v in values) + sum(work.value_bytes[v] for v, _ in gradients)
    return taken + frames * border


def in_flight(count: int, kind: str = "adam", **changes: float) -> Workload:
    optimizer = Optimizer(kind, **changes)  # type: ignore[arg-type]
    return Workload(job(mlp(32, 20), micro_batches=1, schedule=f"async:{count}", optimizer=optimizer))


@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_node_that_runs_behind_keeps_older_parameters(count: int) -> None:
    sync, late = in_flight(1), in_flight(count)
    cut = [0, 0, 0, 0, *[1] * (late.count - 4)]
    assert late.delays(cut) == (count - 1, 0)
    more = [memory_bytes(late, cut, n, 2) - memory_bytes(sync, cut, n, 2) for n in range(2)]
    assert more == [(count - 1) * 4 * (16 * 32 + 32 * 20), 0]


@pytest.mark.parametrize("count", [2, 3])
def test_plain_sgd_needs_no_gradient_of_a_weight(count: int) -> None:
    """But of one that only forward passes read (the first layer's, here 16 × 32), where several updates are behind."""
    fused, clipped, decayed = (
        in_flight(count, "sgd"),
        in_flight(count, "sgd", clip_norm=1.0),
        in_flight(count, "sgd", weight_decay=0.1),
    )
    cut = [0, 0, 0, 0, *[1] * (fused.count - 4)]
    spared = [memory_bytes(clipped, cut, n, 2) - memory_bytes(fused, cut, n, 2) for n in range(2)]
    assert spared == [4 * (16 * 32 * (count == 2) + 32 * 20), 4 * 20 * 10]
    assert memory_bytes(clipped, cut, 1, 2) == memory_bytes(decayed, cut, 1, 2)
    plain, separate = seconds(fused, node("a")), seconds(clipped, node("a"))
    assert not plain.updating(0).any()
    weights = fused.fused_bytes(2) > 0
    for delay in (1, 2):
        assert (plain.updating(delay)[weights] > 0).all()
        assert (plain.updating(delay)[weights] < separate.updating(delay)[weights]).all()
    assert plain.updating(2).sum() > plain.updating(1).sum()
    assert separate.updating(0).any()
    summed = Workload(job(mlp(32), optimizer=Optimizer("sgd")))  # four micro-batches add up
    assert not summed.fused_bytes(0).any()
