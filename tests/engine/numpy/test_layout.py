from __future__ import annotations

import numpy as np

from p2pnn.engine.numpy.layout import Operands, engine_shape, engine_view, onnx_view, parameter_order, value_order
from p2pnn.model.graph import BATCH
from tests.engine.numpy.networks import lenet


def test_views_are_inverse_and_copy_nothing() -> None:
    array = np.arange(120).reshape(2, 3, 4, 5)
    for order, place in (("channels_last", (1, 3, 4, 2)), ("packed", (3, 4, 2, 1)), ("plain", (1, 2, 3, 4))):
        view = engine_view(array, order)  # type: ignore[arg-type]
        assert np.shares_memory(view, array)
        assert view[tuple(n - 1 for n in place)] == array[0, 1, 2, 3]
        np.testing.assert_array_equal(onnx_view(view, order), array)  # type: ignore[arg-type]


def test_only_images_and_convolution_weights_are_laid_out_anew() -> None:
    graph = lenet()
    assert value_order((BATCH, 3, 4, 5)) == "channels_last"
    assert value_order((2, 3, 4, 5)) == value_order((BATCH, 3, 4)) == value_order(()) == "plain"
    assert [parameter_order(graph, f"parameter{i}") for i in range(4)] == ["packed", "plain", "packed", "plain"]
    assert engine_shape((BATCH, 3, 4, 5), 7, "channels_last") == (7, 4, 5, 3)


def test_operands_know_both_orders() -> None:
    graph = lenet()
    (x, w, b), (y,) = Operands(graph, 7, np.dtype(np.float64)).of(graph.ops[0])
    assert (x.shape, x.onnx_shape, x.kind) == ((7, 12, 12, 1), (7, 1, 12, 12), "value")
    assert (w.shape, w.onnx_shape, w.kind) == ((5, 5, 1, 4), (4, 1, 5, 5), "parameter")
    assert (b.shape, y.shape, y.nbytes) == ((4,), (7, 12, 12, 4), 7 * 12 * 12 * 4 * 8)
