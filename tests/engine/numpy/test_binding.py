"""What is bound once must still follow its caller: other border arrays, other versions, first and later micro-batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from p2pnn.engine.base import Context
from p2pnn.engine.numpy import dense, table
from p2pnn.engine.numpy.binding import BUFFER_ELEMENTS, Pass
from p2pnn.engine.numpy.engine import NumpyEngine
from p2pnn.engine.numpy.kernel import Call
from p2pnn.model.flow import Flow
from tests.engine.numpy.build import Array, Build, Run, batch, fill
from tests.engine.numpy.cases import CASES
from tests.engine.numpy.checks import graph_of
from tests.engine.numpy.networks import NETWORKS

ROWS = 4


def made() -> Run:
    """Two dense layers in one program."""
    b = Build()
    graph = b.classify(b.linear(b.op("Relu", b.linear(b.input(6), 5)), 10))
    return Run(graph, [0] * len(graph.ops), rows=ROWS)


class Watched(dense.Gemm):
    """Counts what a frame binds and runs."""

    seen: list[str]

    def bind_forward(self, call: Call) -> Any:
        self.seen.append("bind forward")
        return super().bind_forward(call)

    def bind_backward(self, call: Call) -> Any:
        self.seen.append("bind backward")
        return super().bind_backward(call)

    def forward(self, call: Call) -> None:
        self.seen.append("forward")
        super().forward(call)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    Watched.seen = []
    monkeypatch.setitem(table.KERNELS, "Gemm", Watched)
    return Watched.seen


def step(run: Run, context: Context, index: int = 0) -> dict[str, bytes]:
    run.programs[0].forward(0, context, run.values[0])
    run.programs[0].backward(0, context, run.gradients[0], index=index)
    return {name: array.tobytes() for (name, _), array in run.tensors[0].gradients.items()}


def test_calls_are_bound_once_and_run_often(seen: list[str]) -> None:
    run = made()
    run.load(0, batch(run.graph, ROWS))
    found = [step(run, Context(1, n, 0, ROWS)) for n in range(3)]
    assert found[0] == found[1] == found[2]
    assert [seen.count(what) for what in ("bind forward", "bind backward", "forward")] == [2, 2, 6]
    step(run, Context(1, 3, 1, ROWS), index=1)
    assert [seen.count(what) for what in ("bind forward", "bind backward", "forward")] == [2, 4, 8]


def test_other_border_arrays_are_bound_anew(seen: list[str]) -> None:
    run = made()
    run.load(0, batch(run.graph, ROWS))
    context = Context(1, 0, 0, ROWS)
    once = step(run, context)
    old = run.values[0]
    run.values[0] = {name: array.copy() for name, array in old.items()}
    for array in old.values():
        array.fill(1)
    assert step(run, context) == once
    assert seen.count("bind forward") == seen.count("bind backward") == 4
    run.load(0, batch(run.graph, ROWS, seed=1))
    assert step(run, context) != once


def test_each_version_of_the_parameters_is_read_by_its_slot() -> None:
    run = made()
    run.load(0, batch(run.graph, ROWS))
    tensors = run.tensors[0]
    tensors.versions.append({name: np.negative(array) for name, array in tensors.parameters.items()})
    found = [step(run, Context(1, 0, 0, ROWS, slot=slot)) for slot in (0, 1, 0, 1)]
    assert found[0] == found[2] != found[1] == found[3]
    for name, array in tensors.versions[1].items():
        tensors.parameters[name][...] = array
    assert step(run, Context(1, 0, 0, ROWS, slot=0)) == found[1]


@pytest.mark.parametrize("name", CASES)
def test_no_kernel_binds_the_parameters_of_a_version(name: str) -> None:
    """A frame that ran with another version first gives the same bits as one that did not."""
    graph = graph_of(name)
    found = []
    for slots in ((1,), (0, 1), (1, 0, 1)):
        run = Run(graph, [0] * len(graph.ops), rows=ROWS)
        tensors = run.tensors[0]
        dice = np.random.default_rng(5)
        drawn = {name: dice.standard_normal(array.shape).astype("f4") for name, array in tensors.parameters.items()}
        tensors.versions.append(drawn)
        run.load(0, batch(graph, ROWS))
        found.append([step(run, Context(1, 0, 0, ROWS, slot=slot)) for slot in slots][-1])
    assert found[0] == found[1] == found[2]


def test_the_loss_scale_follows_the_context() -> None:
    run = made()
    run.load(0, batch(run.graph, ROWS))
    totals: list[dict[tuple[str, int], Array]] = []
    for scale in (1.0, 0.5):
        step(run, Context(1, 0, 0, ROWS, scale))
        totals.append({key: array.copy() for key, array in run.tensors[0].gradients.items()})
    for key, array in totals[0].items():
        np.testing.assert_allclose(totals[1][key], array / 2, rtol=1e-6)


def test_the_callers_buffer_size_comes_back() -> None:
    before, seen = np.getbufsize(), []
    steps = Pass()
    steps.add(lambda: seen.append(np.getbufsize()))
    steps.run(Context(1, 0, 0, ROWS))
    assert seen == [BUFFER_ELEMENTS] != [before] == [np.getbufsize()]


@pytest.mark.parametrize("micro_batches", [1, 2, 4])
@pytest.mark.parametrize("name", ["lenet", "shared"])
def test_a_gradient_is_ready_amid_the_last_pass_and_complete(name: str, micro_batches: int) -> None:
    """From the last op to the first, once per step; but for one that several ops read."""
    graph = NETWORKS[name]()
    engine = NumpyEngine()
    told: list[tuple[str, Array]] = []
    tensors = engine.allocate(graph, range(len(graph.ops)), training=True, micro_batches=micro_batches)
    fill(engine, graph, tensors)
    readers = {p.name: [i for n, i in tensors.gradients if n == p.name] for p in graph.parameters}

    def ready(parameter: str) -> None:
        told.append((parameter, tensors.gradients[parameter, readers[parameter][0]].copy()))

    ops = sorted(Flow(graph).training)
    program = engine.compile(graph, ops, tensors, rows=ROWS, frames=1, mode="train", ready=ready)
    values = {v.name: np.zeros(engine.shape(v, ROWS), engine.dtype(v)) for v in (*graph.inputs, *graph.values)}
    for m in range(micro_batches):
        assert told == []
        for value in graph.inputs:
            engine.import_value(value, batch(graph, ROWS, m)[value.name], values[value.name])
        program.forward(0, Context(1, 0, m, ROWS), values)
        program.backward(0, Context(1, 0, m, ROWS), {}, index=m)
    ended = engine.end_step(graph, tensors, micro_batches=micro_batches)
    names = [parameter for parameter, _ in told]
    assert set(names) == {name for name, ops in readers.items() if len(ops) == 1}
    assert [readers[n][0] for n in names] == sorted((readers[n][0] for n in names), reverse=True)
    for parameter, gradient in told:
        np.testing.assert_array_equal(gradient, ended[parameter])


def test_no_gradient_is_ready_early_where_sums_are_left() -> None:
    graph = NETWORKS["lenet"]()
    engine = NumpyEngine()
    told: list[str] = []
    tensors = engine.allocate(graph, range(len(graph.ops)), training=True, micro_batches=3)
    fill(engine, graph, tensors)
    ops = sorted(Flow(graph).training)
    program = engine.compile(graph, ops, tensors, rows=ROWS, frames=1, mode="train", ready=told.append)
    values = {v.name: np.zeros(engine.shape(v, ROWS), engine.dtype(v)) for v in (*graph.inputs, *graph.values)}
    for m in range(3):
        program.forward(0, Context(1, 0, m, ROWS), values)
        program.backward(0, Context(1, 0, m, ROWS), {}, index=m)
    assert told == []
