"""Layouts in and out, accumulators, and the fingerprint."""

from __future__ import annotations

import numpy as np
import threadpoolctl

from p2pnn.engine.base import Engine, Tensors
from p2pnn.engine.numpy.engine import NumpyEngine
from p2pnn.model.graph import BATCH, Value
from tests.engine.numpy.build import Build
from tests.engine.numpy.networks import lenet, shared

ENGINE: Engine = NumpyEngine()


def test_images_lie_channels_last_and_come_back() -> None:
    value = Value("x", "float32", (BATCH, 3, 4, 5))
    array = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    out = np.full(ENGINE.shape(value, 3), 9, np.float32)
    assert out.shape == (3, 4, 5, 3)
    ENGINE.import_value(value, array, out)
    np.testing.assert_array_equal(out[1, 2, 3], array[1, :, 2, 3])
    assert not out[2].any()
    back = ENGINE.export_value(value, out)
    assert back.flags.c_contiguous
    np.testing.assert_array_equal(back[:2], array)


def test_other_values_lie_as_in_onnx() -> None:
    for shape in ((BATCH,), (BATCH, 3), (BATCH, 3, 4), (BATCH, 2, 3, 4, 5), ()):
        value = Value("x", "float32", shape)
        assert ENGINE.shape(value, 7) == tuple(7 if n == BATCH else n for n in shape)
    assert ENGINE.dtype(Value("y", "int64", (BATCH,))) == np.int64


def test_parameters_come_back_whole() -> None:
    graph = lenet()
    rng = np.random.default_rng(0)
    for p in graph.parameters:
        array = rng.standard_normal(p.shape).astype(np.float32)
        held = ENGINE.import_parameter(graph, p.name, array)
        assert held.flags.c_contiguous
        assert held.base is None
        np.testing.assert_array_equal(ENGINE.export_parameter(graph, p.name, held), array)
    assert ENGINE.import_parameter(graph, "parameter0", np.zeros((4, 1, 5, 5))).shape == (5, 5, 1, 4)


def test_allocate_gives_an_accumulator_per_parameter_and_op() -> None:
    graph = shared()
    readers = [i for i, op in enumerate(graph.ops) if "parameter0" in op.inputs]
    tensors = ENGINE.allocate(graph, range(len(graph.ops)), training=True)
    assert len(readers) == 3
    assert {key for key in tensors.gradients if key[0] == "parameter0"} == {("parameter0", i) for i in readers}
    assert not ENGINE.allocate(graph, range(len(graph.ops)), training=False).gradients
    assert set(ENGINE.allocate(graph, readers[:1], training=True).parameters) == {"parameter0", "parameter1"}


def test_end_step_sums_in_graph_order() -> None:
    graph = shared()
    a, b, c = np.float32(1e8), np.float32(-1e8), np.float32(1)
    readers = [i for i, op in enumerate(graph.ops) if "parameter0" in op.inputs]
    tensors = Tensors(gradients={("parameter0", i): np.array(x) for i, x in zip(readers[::-1], (c, b, a), strict=True)})
    (total,) = ENGINE.end_step(graph, tensors).values()
    assert total == 1


def test_end_step_folds_statistics_by_micro_batch_then_op() -> None:
    b = Build()
    x, scale, bias, mean, variance = b.input(1), b.parameter(1), b.parameter(1), b.held(1), b.held(1)
    for _ in range(2):
        x = b.op("BatchNormalization", x, scale, bias, mean, variance, momentum=0.5)
    graph = b.graph({"y": x})
    tensors = ENGINE.allocate(graph, range(2), training=False)
    batches = [np.full((2, 1), n, np.float32) for n in (8, 16, 32, 64)]
    tensors.statistics = {1: [batches[1], batches[3]], 0: [batches[0], batches[2]]}
    ENGINE.end_step(graph, tensors, micro_batches=2)
    expected = 0.0
    for n in (8, 16, 32, 64):
        expected = 0.5 * expected + 0.5 * n
    assert tensors.state[mean] == tensors.state[variance] == expected


def test_the_fingerprint_tells_what_decides_the_last_bits() -> None:
    with threadpoolctl.threadpool_limits(1):
        one = ENGINE.fingerprint()
    with threadpoolctl.threadpool_limits(2):
        two = ENGINE.fingerprint()
    assert np.__version__ in one
    assert "float32" in one
    assert one != two
    assert NumpyEngine(np.float64).fingerprint() != ENGINE.fingerprint()
