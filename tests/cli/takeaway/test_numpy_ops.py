"""The scripts' functions, one by one, against sums written out and ONNX's reference."""

import math

import numpy as np
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from p2pnn.cli.takeaway import numpy_ops

GENERATOR = np.random.default_rng(3)


def reference(kind: str, inputs: list[np.ndarray], **attributes: object) -> np.ndarray:
    node = helper.make_node(kind, [f"i{n}" for n in range(len(inputs))], ["y"], **attributes)
    found = ReferenceEvaluator(node).run(None, {f"i{n}": array for n, array in enumerate(inputs)})
    return np.asarray(found[0])


def image(*shape: int) -> np.ndarray:
    return GENERATOR.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("strides", [(1, 1), (2, 3)])
@pytest.mark.parametrize("pads", [(0, 0, 0, 0), (1, 0, 2, 1)])
@pytest.mark.parametrize(("group", "dilations"), [(1, (1, 1)), (2, (2, 1)), (4, (1, 2))])
def test_conv(strides: tuple[int, int], pads: tuple[int, ...], group: int, dilations: tuple[int, int]) -> None:
    x, w, b = image(2, 4, 9, 8), image(8, 4 // group, 3, 2), image(8)
    options = {"strides": strides, "pads": pads, "dilations": dilations, "group": group}
    found = numpy_ops.conv(x, w, b, **options)
    np.testing.assert_allclose(found, reference("Conv", [x, w, b], **options), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(numpy_ops.conv(x, w, **options), found - b[:, None, None], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pads", [(0, 0, 0, 0), (1, 1, 1, 1), (1, 0, 0, 1)])
def test_pools(pads: tuple[int, ...]) -> None:
    x = image(2, 3, 7, 6) - 5  # below zero, so that padding with zeros would show
    window = {"kernel_shape": (3, 2), "strides": (2, 1), "pads": pads}
    np.testing.assert_array_equal(numpy_ops.max_pool(x, **window), reference("MaxPool", [x], **window))
    for padding in (0, 1):
        found = numpy_ops.average_pool(x, **window, count_include_pad=padding)
        wanted = reference("AveragePool", [x], **window, count_include_pad=padding)
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5, 2)])
def test_batch_normalization(shape: tuple[int, ...]) -> None:
    x, scale, bias, mean = image(*shape), image(3), image(3), image(3)
    variance = np.abs(image(3)) + 0.1
    found = numpy_ops.batch_normalization(x, scale, bias, mean, variance, epsilon=1e-3)
    wanted = reference("BatchNormalization", [x, scale, bias, mean, variance], epsilon=1e-3)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_sigmoid_and_softmax_do_not_overflow() -> None:
    x = np.array([[-1000.0, 0.0, 1000.0]], np.float32)
    with np.errstate(all="raise", under="ignore"):
        np.testing.assert_array_equal(numpy_ops.sigmoid(x), [[0, 0.5, 1]])
        np.testing.assert_array_equal(numpy_ops.softmax(x, axis=1), [[0, 0, 1]])


def test_gemm() -> None:
    x, w, b = image(3, 4), image(2, 4), image(2)
    np.testing.assert_array_equal(numpy_ops.gemm(x, w, b), x @ w.T + b)
    np.testing.assert_array_equal(numpy_ops.gemm(x, w), x @ w.T)


def test_gelu_and_erf() -> None:
    x = image(3, 40) * 3
    normal = np.array([0.5 * (1 + math.erf(n / math.sqrt(2))) for n in x.reshape(-1)]).reshape(x.shape)
    np.testing.assert_allclose(numpy_ops.gelu(x, approximate="none"), x * normal, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(numpy_ops.gelu(x, approximate="tanh"), x * normal, atol=1e-3)
    assert np.abs(numpy_ops.gelu(x, approximate="tanh") - x * normal).max() > 1e-5
    found = numpy_ops.erf(x)
    np.testing.assert_allclose(found, reference("Erf", [x]), rtol=1e-6)
    assert found.dtype == np.float32


@pytest.mark.parametrize("axis", [1, 2])
def test_layer_normalization(axis: int) -> None:
    x = image(3, 4, 5)
    w, b = image(*x.shape[axis:]), image(*x.shape[axis:])
    expected = reference("LayerNormalization", [x, w, b], axis=axis, epsilon=1e-3)
    np.testing.assert_allclose(
        numpy_ops.layer_normalization(x, w, b, axis=axis, epsilon=1e-3), expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(("heads", "shared"), [(4, 4), (4, 2), (3, 1)])
@pytest.mark.parametrize(("n", "m", "causal"), [(5, 5, 1), (5, 3, 0), (3, 5, 1)])
def test_attention(heads: int, shared: int, n: int, m: int, causal: int) -> None:
    operands = [image(2, n, heads * 3), image(2, m, shared * 3), image(2, m, shared * 2)]
    settings = {"q_num_heads": heads, "kv_num_heads": shared, "is_causal": causal, "scale": 0.4}
    found = numpy_ops.attention(*operands, **settings)
    np.testing.assert_allclose(found, reference("Attention", operands, **settings), rtol=1e-4, atol=1e-5)


def test_gather_refuses_rows_that_are_not_there() -> None:
    table = image(5, 2)
    np.testing.assert_array_equal(numpy_ops.gather(table, np.array([[4, 0]])), table[[[4, 0]]])
    for wrong in (-1, 5):
        with pytest.raises(ValueError, match="indices must be 0 to 4"):
            numpy_ops.gather(table, np.array([0, wrong]))
