"""Gemm and MatMul, also where a weight's gradient accumulates or updates the weight itself: by BLAS and by numpy alone."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from p2pnn.engine.base import Context
from p2pnn.engine.numpy import blas, dense
from p2pnn.engine.numpy.engine import NumpyEngine
from p2pnn.model.graph import Graph
from tests.engine.numpy.build import RATE, Array, Build, Run, batch
from tests.engine.numpy.cases import cases_of
from tests.engine.numpy.checks import check_forward, check_gradient

ROWS, STEPS = 4, 3


@pytest.mark.parametrize("name", cases_of(dense))
def test_gradients(name: str) -> None:
    check_gradient(name)


@pytest.mark.parametrize("name", cases_of(dense, forward=True))
def test_forward(name: str) -> None:
    check_forward(name)


@pytest.fixture(params=["blas", "numpy"])
def accumulation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways in which a product accumulates."""
    if request.param == "numpy":
        monkeypatch.setattr(blas, "_entries", {})
    elif not blas.accumulates(np.dtype(np.float32)):
        pytest.skip("this numpy's BLAS cannot be called")
    return str(request.param)


def network() -> Graph:
    """Weights of Gemm and of MatMul, at rank 2 and 3; one of them is read twice and so cannot be fused."""
    b = Build()
    shared = b.parameter(6, 6)
    h = b.op("Tanh", b.op("Add", b.op("MatMul", b.input(3, 5), b.parameter(5, 6)), b.parameter(6)))
    h = b.op("MatMul", b.op("Tanh", b.op("MatMul", h, shared)), shared)
    h = b.op("Relu", b.linear(b.op("Flatten", h), 8))
    h = b.op("Tanh", b.op("MatMul", h, b.parameter(8, 7)))
    return b.classify(b.linear(h, 10))


def trained(run: Run, schedule: random.Random | None = None) -> dict[str, Array]:
    """The parameters after some steps of plain SGD."""
    for step in range(STEPS):
        run.step(step, [batch(run.graph, ROWS, step)], schedule)
        totals = run.end_step()
        for tensors in run.tensors.values():
            for name, parameter in tensors.parameters.items():
                if name in totals:
                    parameter -= np.float32(RATE) * totals[name]
    return {name: array for tensors in run.tensors.values() for name, array in tensors.parameters.items()}


def test_what_can_be_fused() -> None:
    graph = network()
    weights = {op.inputs[1] for op in graph.ops if op.kind in ("Gemm", "MatMul")}
    fusable = NumpyEngine().fusable(graph)
    assert fusable == weights - {"parameter0"}
    tensors = NumpyEngine().allocate(graph, range(len(graph.ops)), training=True, fuse=fusable)
    assert not fusable & {name for name, _ in tensors.gradients}
    assert set(tensors.parameters) == {p.name for p in graph.parameters}


@pytest.mark.usefixtures("accumulation")
def test_fused_updates_equal_separate_ones() -> None:
    graph = network()
    whole = [0] * len(graph.ops)
    separate, run = trained(Run(graph, whole, rows=ROWS)), Run(graph, whole, rows=ROWS, fuse=True)
    assert run.programs[0].fused == run.engine.fusable(graph)
    before = {name: array.copy() for name, array in run.tensors[0].parameters.items()}
    for name, array in trained(run).items():
        assert not np.array_equal(array, before[name]), name
        np.testing.assert_allclose(array, separate[name], rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("accumulation")
def test_fused_updates_have_the_same_bits_in_any_cut() -> None:
    graph = network()
    wanted = trained(Run(graph, [0] * len(graph.ops), rows=ROWS, fuse=True))
    rng = random.Random(1)
    count = range(len(graph.ops))
    for cut in (
        [int(i >= 7) for i in count],
        [(i >= 3) + (i >= 8) + (i >= 11) for i in count],
        [i // 9 for i in count],
    ):
        found = trained(Run(graph, cut, rows=ROWS, frames=2, fuse=True), rng)
        assert {name: array.tobytes() for name, array in found.items()} == {
            name: array.tobytes() for name, array in wanted.items()
        }


@pytest.mark.usefixtures("accumulation")
@pytest.mark.parametrize("read", [0, 1, 2], ids=["the-newest", "the-one-overwritten", "another"])
def test_fused_updates_take_the_newest_version_to_the_next_wherever_the_passes_read(read: int) -> None:
    """Set 0 is updated into set 1; both, or a third one, may be what forward and backward read."""
    graph = network()
    run = Run(graph, [0] * len(graph.ops), rows=ROWS, fuse=True)
    [tensors], [program] = run.tensors.values(), run.programs
    newest = tensors.versions[0]
    tensors.versions += [{name: array * factor for name, array in newest.items()} for factor in (0.5, 0.25)]
    passed = {name: array.copy() for name, array in tensors.versions[read].items()}
    wanted = {name: array.copy() for name, array in newest.items() if name in program.fused}
    run.load(0, batch(graph, ROWS))
    program.forward(0, context := Context(1, 0, 0, ROWS, slot=read, rate=RATE, update=(0, 1)), run.values[0])
    program.backward(0, context, {}, index=0)
    for name, array in wanted.items():
        np.testing.assert_array_equal(newest[name], array)
    # The same gradients by an update in place of another set, from the same passes.
    again = Run(graph, [0] * len(graph.ops), rows=ROWS, fuse=True)
    [other], [program] = again.tensors.values(), again.programs
    other.versions.append({name: array.copy() for name, array in newest.items()})
    for name, array in passed.items():
        other.versions[0][name][...] = array
    again.load(0, batch(graph, ROWS))
    program.forward(0, context := Context(1, 0, 0, ROWS, rate=RATE, update=(1, 1)), again.values[0])
    program.backward(0, context, {}, index=0)
    for name, before in wanted.items():
        assert not np.array_equal(tensors.versions[1][name], before), name
        np.testing.assert_array_equal(tensors.versions[1][name], other.versions[1][name], name)


@pytest.mark.usefixtures("accumulation")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_later_micro_batches_accumulate(dtype: Any) -> None:
    graph = network()
    run = Run(graph, [0] * len(graph.ops), rows=ROWS, engine=NumpyEngine(dtype))
    sums: dict[str, Array] = {}
    for m in range(3):
        run.load(0, batch(graph, ROWS, m))
        run.programs[0].forward(0, Context(1, 0, 0, ROWS), run.values[0])
        run.programs[0].backward(0, Context(1, 0, 0, ROWS), {}, index=0)
        for name, array in run.end_step(1).items():
            sums[name] = sums.get(name, 0) + array
    for m in range(3):
        run.load(0, batch(graph, ROWS, m))
        run.programs[0].forward(0, Context(1, 0, m, ROWS), run.values[0])
        run.programs[0].backward(0, Context(1, 0, m, ROWS), {}, index=m)
    for name, array in run.end_step(3).items():
        np.testing.assert_allclose(array, sums[name], rtol=1e-4, atol=1e-5)
