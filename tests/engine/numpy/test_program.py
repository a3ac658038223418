"""Any cut and any allowed order of segments gives the bits of one segment; frames and steps do not disturb each other."""

from __future__ import annotations

import random
import tracemalloc
from typing import Any

import numpy as np
import pytest

from p2pnn.engine.base import Context
from p2pnn.engine.numpy import program
from p2pnn.engine.numpy.engine import NumpyEngine
from p2pnn.errors import ModelError
from p2pnn.model.graph import Graph, elements
from tests.engine.numpy.build import Array, Build, Run, batch
from tests.engine.numpy.cases import CASES
from tests.engine.numpy.checks import graph_of
from tests.engine.numpy.networks import NETWORKS, dropout, lenet, resnet

ROWS, MICRO_BATCHES, STEPS = 4, 3, 2


def train(run: Run, schedule: random.Random | None = None) -> list[Any]:
    """Two steps with a plain update between; all that must not depend on the cut."""
    found: list[Any] = []
    for step in range(STEPS):
        data = [batch(run.graph, ROWS, 10 * step + m) for m in range(MICRO_BATCHES)]
        seen = run.step(step, data, schedule)
        totals = run.end_step(MICRO_BATCHES)
        for tensors in run.tensors.values():
            for name, parameter in tensors.parameters.items():
                parameter -= np.float32(0.1) * totals[name]
        found.append((seen, {k: v.copy() for k, v in totals.items()}, {k: v.copy() for k, v in run.state.items()}))
    return found


def assert_same_bits(found: list[Any], wanted: list[Any]) -> None:
    for (seen, totals, state), (whole_seen, whole_totals, whole_state) in zip(found, wanted, strict=True):
        for (values, _), (whole_values, _) in zip(seen, whole_seen, strict=True):
            for name, array in whole_values.items():
                assert array.tobytes() == values[name].tobytes(), name
        for a, b in ((totals, whole_totals), (state, whole_state)):
            assert set(a) == set(b)
            for name, array in b.items():
                assert array.tobytes() == a[name].tobytes(), name


def assignments(graph: Graph, rng: random.Random, count: int) -> list[list[int]]:
    """Random cuts in which ops that share a parameter or state lie on one node; the last: a node per op."""
    found = []
    for n in range(count):
        nodes = len(graph.ops) if n == count - 1 else rng.choice((2, 3, 4))
        assignment = [i if n == count - 1 else rng.randrange(nodes) for i in range(len(graph.ops))]
        home: dict[str, int] = {}
        held = {p.name for p in (*graph.parameters, *graph.state)}
        for i, op in enumerate(graph.ops):
            for name in op.inputs:
                if name in held:
                    assignment[i] = home.setdefault(name, assignment[i])
        found.append(assignment)
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_any_cut_and_order_gives_the_bits_of_one_segment(name: str) -> None:
    graph = NETWORKS[name]()
    wanted = train(Run(graph, [0] * len(graph.ops), rows=ROWS))
    assert all(np.abs(total).max() > 0 for total in wanted[0][1].values())
    rng = random.Random(name)
    for assignment in assignments(graph, rng, 6):
        found = train(Run(graph, assignment, rows=ROWS, frames=rng.choice((1, 2, 3))), rng)
        assert_same_bits(found, wanted)


def test_order_of_summation_shows_in_the_bits() -> None:
    """The comparison above can fail: summing a value's gradients in another order changes bits."""
    graph = NETWORKS["diamond"]()
    wanted = train(Run(graph, [0] * len(graph.ops), rows=ROWS))
    run = Run(graph, [0] * len(graph.ops), rows=ROWS)
    for op in run.programs[0]._plan.backward:
        for total in op.totals:
            total.parts = total.parts[::-1]
    with pytest.raises(AssertionError):
        assert_same_bits(train(run), wanted)


@pytest.mark.parametrize("make", [lenet, resnet, dropout])
def test_frames_keep_their_micro_batches_apart(make: Any) -> None:
    """All forwards, then all backwards in reverse, equal one after the other."""
    graph = make()
    data = [batch(graph, ROWS, m) for m in range(3)]
    gradients: list[list[dict[Any, Array]]] = []
    for frames in (1, 3):
        run = Run(graph, [0] * len(graph.ops), rows=ROWS, frames=frames)
        found = {}
        passes = [[m] for m in range(3)] if frames == 1 else [[0, 1, 2]]
        for together in passes:
            for m in together:
                run.load(m % frames, data[m])
                run.programs[0].forward(m % frames, Context(1, 0, m, ROWS), run.values[m % frames])
            for m in reversed(together):
                run.programs[0].backward(m % frames, Context(1, 0, m, ROWS), {}, index=0)
                found[m] = {key: array.copy() for key, array in run.tensors[0].gradients.items()}
        gradients.append([found[m] for m in range(3)])
    for alone, together_ in zip(*gradients, strict=True):
        for key, array in alone.items():
            assert array.tobytes() == together_[key].tobytes()


@pytest.mark.parametrize("mode", ["evaluate", "predict"])
@pytest.mark.parametrize("name", NETWORKS)
def test_evaluation_and_prediction_in_any_cut(name: str, mode: str) -> None:
    graph = NETWORKS[name]()
    made = []
    for assignment in ([0] * len(graph.ops), *assignments(graph, random.Random(name), 2)):
        run = Run(graph, assignment, rows=ROWS, mode=mode)
        run.load(0, batch(graph, ROWS))
        for p in run.programs:
            p.forward(0, Context(1, 0, 0, ROWS - 1), run.values[0])
            assert not p.gradients_in
            assert not p.gradients_out
        ends = graph.outputs.values() if mode == "predict" else (*graph.losses, *(m.value for m in graph.metrics))
        made.append({name: run.values[0][name].tobytes() for name in ends})
    assert made[0] == made[1] == made[2]


def test_borders_name_what_crosses() -> None:
    graph = NETWORKS["diamond"]()
    run = Run(graph, [0] + [1] * (len(graph.ops) - 1), rows=ROWS)
    first, rest = run.programs
    (value,) = first.values_out
    assert (first.values_in, first.gradients_out) == (("input0",), ())
    assert [v for v, _ in first.gradients_in] == [value] * 4
    assert first.gradients_in == rest.gradients_out
    assert value in rest.values_in
    assert set(graph.losses) <= set(rest.values_out)


def test_inner_values_are_not_at_the_border_and_memory_is_planned() -> None:
    graph = lenet()
    run = Run(graph, [0] * len(graph.ops), rows=64)
    assert set(run.programs[0].values_out) == {*graph.losses, graph.metrics[0].value}
    one, two = (run.engine.compile(graph, range(99), run.tensors[0], rows=64, frames=f, mode="train") for f in (1, 2))
    evaluation = run.engine.compile(graph, range(99), run.tensors[0], rows=64, frames=2, mode="evaluate")
    everything = sum(
        np.zeros(run.engine.shape(v, 64), run.engine.dtype(v)).nbytes
        for v in graph.values
        if v.name not in graph.outputs.values()
    )
    kept = two.memory_bytes - one.memory_bytes
    assert 0 < kept < everything
    assert evaluation.memory_bytes < one.memory_bytes


def test_memory_bytes_is_what_is_allocated() -> None:
    graph, engine = lenet(), NumpyEngine()
    tensors = engine.allocate(graph, range(len(graph.ops)), training=True)
    engine.compile(graph, range(len(graph.ops)), tensors, rows=256, frames=2, mode="train")
    tracemalloc.start()
    try:
        compiled = engine.compile(graph, range(len(graph.ops)), tensors, rows=256, frames=2, mode="train")
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert taken == pytest.approx(compiled.memory_bytes, abs=150_000)


@pytest.mark.parametrize("make", [lenet, resnet, dropout])
def test_steps_allocate_nothing_that_stays_and_little_that_passes(make: Any) -> None:
    graph = make()
    run = Run(graph, [0] * len(graph.ops), rows=512)
    run.load(0, batch(graph, 512))

    def step() -> None:
        for m in range(2):
            run.programs[0].forward(0, Context(1, 0, m, 512, 0.5), run.values[0])
            run.programs[0].backward(0, Context(1, 0, m, 512, 0.5), {}, index=m)
        run.end_step(2)

    step()
    tracemalloc.start()
    try:
        step()
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        for _ in range(3):
            step()
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 1_200
    assert peak - before < 150_000  # the buffers in which numpy casts a mask; one activation is over 500 kB


@pytest.mark.parametrize("name", CASES)
def test_no_kernel_allocates_as_much_as_a_value(name: str) -> None:
    """Whatever the op, memory that is as large as its values was counted when the program was compiled."""
    graph = graph_of(name)
    bytes_of = max(4 * elements(value.shape[1:]) for value in graph.values)
    rows = 1 + 1_000_000 // bytes_of
    run = Run(graph, [0] * len(graph.ops), rows=rows)
    run.load(0, batch(graph, rows))
    context = Context(1, 0, 0, rows)

    def step() -> None:
        run.programs[0].forward(0, context, run.values[0])
        run.programs[0].backward(0, context, {}, index=0)
        run.end_step()

    tracemalloc.start()
    try:
        step()
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        step()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < 300_000


def test_an_output_that_no_loss_depends_on_gets_no_gradient() -> None:
    b = Build()
    x = b.linear(b.input(4), 3)
    side = b.linear(x, 2)
    metric = b.op("SquaredError", side, b.input(2))
    loss = b.op("MeanSquaredError", x, b.input(3))
    graph = b.graph({"side": side}, [loss], [metric])
    run = Run(graph, [0] * len(graph.ops), rows=ROWS)
    run.step(0, [batch(graph, ROWS)])
    assert set(run.end_step()) == {"parameter0", "parameter1"}


def test_refusals_are_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, engine = lenet(), NumpyEngine()
    run = Run(graph, [0] * len(graph.ops), rows=ROWS)
    with pytest.raises(ModelError, match="3 rows, but the program was compiled for 4"):
        run.programs[0].forward(0, Context(1, 0, 0, 3), run.values[0])
    monkeypatch.delitem(program.KERNELS, "MaxPool")
    tensors = engine.allocate(graph, [], training=False)
    with pytest.raises(ModelError, match="no operator 'MaxPool'"):
        engine.compile(graph, range(len(graph.ops)), tensors, rows=1, frames=1, mode="train")


def test_later_micro_batches_add_to_the_first() -> None:
    graph = lenet()
    run = Run(graph, [0] * len(graph.ops), rows=ROWS, engine=NumpyEngine(np.float64))
    run.load(0, batch(graph, ROWS))
    context = Context(7, 3, 0, ROWS)
    once: dict[tuple[str, int], Array] = {}
    for index in range(2):
        run.programs[0].forward(0, context, run.values[0])
        run.programs[0].backward(0, context, {}, index=index)
        once = once or {key: array.copy() for key, array in run.tensors[0].gradients.items()}
    for key, array in run.tensors[0].gradients.items():
        np.testing.assert_array_equal(array, 2 * once[key])
