from __future__ import annotations

import msgspec
import pytest

from p2pnn.errors import ModelError
from p2pnn.model import ops
from p2pnn.model.graph import Op, Value
from tests.model.cases import CASES, B, Case


def test_every_kind_has_a_case() -> None:
    assert {case.kind for case in CASES} == set(ops.TABLE)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_infer(case: Case) -> None:
    assert ops.infer(case.op(), case.values()) == [(case.dtype, shape) for shape in (case.output, *case.more)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_canonical_attributes_stay_and_survive_the_wire(case: Case) -> None:
    op = case.op()
    assert ops.normalise(op.kind, op.name, op.attributes, case.values()) == op.attributes
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(op), type=Op) == op
    assert set(op.attributes) == set(ops.TABLE[op.kind].attributes)


WRONG = [
    (Case("Gemm", ((B, 5), (3, 4)), ()), ["(3, 4)", "(batch, 5)"]),
    (Case("Gemm", ((B, 5, 2), (3, 5)), ()), ["(batch, 5, 2)", "(3, 5)"]),
    (Case("Gemm", ((B, 5, 2, 2), (3, 5)), ()), ["(batch, 5, 2, 2)", "nn.flatten"]),
    (Case("Gemm", ((B, 5), (3, 5), (4,)), ()), ["(4,)", "(3, 5)"]),
    (Case("Gemm", ((6, 5), (3, 5)), ()), ["(6, 5)", "batch at axis 0"]),
    (Case("MatMul", ((B, 5), (4, 2)), ()), ["(batch, 5)", "(4, 2)"]),
    (Case("MatMul", ((B, 5), (B, 5, 2)), ()), ["(batch, 5)", "(batch, 5, 2)"]),
    (Case("MatMul", ((3, B), (B, 2)), ()), ["(3, batch)", "(batch, 2)"]),
    (Case("MatMul", ((B, 4), (4,)), ()), ["(batch, 4)", "(4,)", "2 axes"]),
    (Case("MatMul", ((3, 4), (4, 2)), ()), ["(3, 4)", "(4, 2)", "batch"]),
    (Case("Conv", ((B, 3, 8, 8), (4, 2, 3, 3)), ()), ["(4, 2, 3, 3)", "(batch, 3, 8, 8)"]),
    (Case("Conv", ((B, 4, 8, 8), (5, 2, 3, 3)), (), {"group": 2}), ["(5, 2, 3, 3)", "(batch, 4, 8, 8)"]),
    (Case("Conv", ((B, 3, 2, 8), (4, 3, 3, 3)), ()), ["(batch, 3, 2, 8)", "window of 3"]),
    (Case("Conv", ((B, 3, 8, 8), (4, 3, 3, 3), (3,)), ()), ["(3,)", "(4,)"]),
    (Case("Conv", ((B, 3, 8, 8), (4, 3, 3, 3)), (), {"strides": (1, 5000)}), ["(1, 5000)", "limit of 4096"]),
    (Case("MaxPool", ((B, 3, 8),), (), {"kernel_shape": (2, 2)}), ["(batch, 3, 8)", "4 axes"]),
    (Case("MaxPool", ((B, 3, 8, 8),), (), {"kernel_shape": (2, 2), "pads": (0, 2, 0, 0)}), ["(0, 2, 0, 0)", "(2, 2)"]),
    (Case("AveragePool", ((B, 3, 2, 8),), (), {"kernel_shape": (3, 3)}), ["(batch, 3, 2, 8)"]),
    (Case("GlobalAveragePool", ((B, 3),), ()), ["(batch, 3)"]),
    (Case("BatchNormalization", ((B, 4), (4,), (4,), (3,), (4,)), ()), ["(3,)", "(batch, 4)"]),
    (Case("BatchNormalization", ((B,), (1,), (1,), (1,), (1,)), ()), ["(batch,)", "channels"]),
    (Case("LayerNormalization", ((B, 7, 5), (7,)), ()), ["(7,)", "(batch, 7, 5)", "(5,)"]),
    (Case("LayerNormalization", ((B, 7, 5), (7, 5), (5,)), (), {"axis": 1}), ["the bias", "(5,)", "(7, 5)"]),
    (Case("Attention", ((B, 2, 3, 4),) * 3, (), {"q_num_heads": 2}), ["(batch, 2, 3, 4)", "3 axes"]),
    (Case("Attention", ((B, 7, 12),) * 3, (), {"q_num_heads": 4, "kv_num_heads": 3}), ["4 query heads", "3 key heads"]),
    (
        Case("Attention", ((B, 7, 12), (B, 7, 8), (B, 7, 8)), (), {"q_num_heads": 4}),
        ["(batch, m, 12)", "(batch, 7, 8)"],
    ),
    (Case("Attention", ((B, 7, 4), (B, 7, 4), (B, 6, 4)), (), {"q_num_heads": 4}), ["(batch, 6, 4)"]),
    (Case("Gather", ((B, 4), (B, 2)), (), labels=True), ["(batch, 4)", "must be a parameter"]),
    (Case("Gather", ((9, 4), (B, 2)), ()), ["float32", "int64"]),
    (Case("Gather", ((9, 4), (2,)), (), labels=True), ["(2,)", "(batch, …)"]),
    (Case("Split", ((B, 6),), (), {"axis": 1, "split": (2, 3)}), ["(2, 3)", "the 6 at axis 1", "(batch, 6)"]),
    (Case("Where", ((B, 3), (B, 3), (3,)), ()), ["float32", "needs bool", 'dtype="bool"']),
    (Case("Where", ((3,), (3,), (3,)), (), condition=True), ["(3,)", "no batch"]),
    (Case("Where", ((B, 3), (B, 4), (3,)), (), condition=True), ["(batch, 4)", "(3,)"]),
    (Case("Div", ((B, 3), (B, 4)), ()), ["(batch, 3)", "(batch, 4)"]),
    (Case("Squeeze", ((B, 1, 3),), (), {"axes": (2,)}), ["(2,)", "(batch, 1, 3)"]),
    (Case("Relu", ((3, 4),), ()), ["(3, 4)"]),
    (Case("Add", ((B, 3), (B, 4)), ()), ["(batch, 3)", "(batch, 4)"]),
    (Case("Add", ((B, 3), (5, 3)), ()), ["(batch, 3)", "(5, 3)", "batch does not line up"]),
    (Case("Mul", ((B,), (B, 4)), ()), ["(batch,)", "(batch, 4)"]),
    (Case("Mul", ((B, 4), (1, 2, 4)), ()), ["(batch, 4)", "(1, 2, 4)"]),
    (Case("Sub", ((3,), (3,)), ()), ["(3,)", "no batch"]),
    (Case("Concat", ((B, 2, 3), (B, 2, 4)), (), {"axis": 1}), ["(batch, 2, 3)", "(batch, 2, 4)"]),
    (Case("Transpose", ((B, 2, 3),), (), {"perm": (1, 0, 2)}), ["(1, 0, 2)", "(batch, 2, 3)"]),
    (Case("Transpose", ((B, 2, 3),), (), {"perm": (0, 1)}), ["(0, 1)", "(batch, 2, 3)"]),
    (Case("SoftmaxCrossEntropyLoss", ((B, 3), (B, 1)), (), labels=True), ["(batch, 1)", "(batch, 3)"]),
    (Case("SoftmaxCrossEntropyLoss", ((B, 3), (B,)), ()), ["float32", "int64"]),
    (Case("Accuracy", ((B, 7, 3), (B, 7)), (), labels=True), ["(batch, 7)", "(batch, 3)"]),
    (Case("Accuracy", ((B, 7, 3, 2), (B, 7, 3)), (), {"axis": 3}, labels=True), ["axis is 3", "4 axes"]),
    (Case("MeanSquaredError", ((B, 3), (B,)), ()), ["(batch, 3)", "(batch,)"]),
    (Case("TopKAccuracy", ((B, 3), (B,)), (), {"k": 4}, labels=True), ["k is 4", "(batch, 3)"]),
]


@pytest.mark.parametrize(("case", "parts"), WRONG, ids=lambda v: str(v) if isinstance(v, Case) else "")
def test_wrong_shapes_are_refused_with_both_shapes(case: Case, parts: list[str]) -> None:
    with pytest.raises(ModelError) as caught:
        ops.infer(case.op(), case.values())
    assert str(caught.value).startswith(f"op ({case.kind}): ")
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "given", "part"),
    [
        ("Nonsense", {}, "no operator 'Nonsense'"),
        ("MaxPool", {}, "'kernel_shape' is missing"),
        ("MaxPool", {"kernel_shape": (2, 2), "ceil_mode": 1}, "'ceil_mode' is not supported"),
        ("MaxPool", {"kernel_shape": (2,)}, "2 numbers"),
        ("MaxPool", {"kernel_shape": (2, 0)}, "holds 0"),
        ("MaxPool", {"kernel_shape": (2, 2**31)}, "holds 2147483648"),
        ("MaxPool", {"kernel_shape": (2, 2), "strides": (1, 0)}, "holds 0"),
        ("MaxPool", {"kernel_shape": (2, 2), "strides": (1, 1.0)}, "integers"),
        ("MaxPool", {"kernel_shape": "22"}, "integers"),
        ("Dropout", {"ratio": 1.0}, "1.0"),
        ("Dropout", {"ratio": float("nan")}, "nan"),
        ("Dropout", {"ratio": True}, "True"),
        ("Gelu", {"approximate": "erf"}, "'none' or 'tanh'"),
        ("Clip", {"min": float("inf")}, "inf"),
        ("Clip", {"max": 1e39}, "1e+39"),
        ("Slice", {"axes": (1,), "starts": (0,)}, "'ends' is missing"),
        ("Slice", {"axes": (1,), "starts": (2,), "ends": (2,)}, "there is nothing"),
        ("Slice", {"axes": (0,), "starts": (0,), "ends": (1,)}, "0 is the batch"),
        ("Unsqueeze", {"axes": (0,)}, "0 is the batch"),
        ("Gelu", {"approximate": 1}, "'none' or 'tanh'"),
        ("Attention", {}, "'q_num_heads' is missing"),
        ("Attention", {"q_num_heads": 3}, "do not divide into 3 heads"),
        ("Attention", {"q_num_heads": 2, "softcap": 1.0}, "'softcap' is not supported"),
        ("Split", {"axis": 1}, "'split' is missing"),
        ("Split", {"axis": 1, "split": (1,) * 1001}, "at most 1000"),
        ("Gather", {"axis": 1}, "holds 1"),
        ("Softmax", {"axis": 0}, "0 is the batch"),
        ("Softmax", {"axis": 4}, "axes 0 to 3"),
        ("Softmax", {"axis": True}, "integer"),
        ("ReduceMean", {"axes": (1, -3)}, "different axes"),
        ("ReduceMean", {"axes": ()}, "different axes"),
        ("Flatten", {"axis": 2}, "holds 2"),
        ("Reshape", {"shape": (0, 5)}, "(batch, 2, 3, 4)"),
        ("Reshape", {"shape": (-1, -1)}, "(batch, 2, 3, 4)"),
        ("Reshape", {"shape": (0, -1, -1)}, "(batch, 2, 3, 4)"),
        ("Reshape", {"shape": (2, 12)}, "(batch, 2, 3, 4)"),
        ("Reshape", {"shape": ()}, "(batch, 2, 3, 4)"),
        ("Reshape", {"shape": (0, 7, -1)}, "(batch, 2, 3, 4)"),
    ],
)
def test_attributes_out_of_range_are_refused(kind: str, given: dict[str, object], part: str) -> None:
    with pytest.raises(ModelError, match=r"^op") as caught:
        ops.normalise(kind, "op", given, [Value("x", "float32", (B, 2, 3, 4))])
    assert part in str(caught.value)


def test_infer_refuses_attributes_that_are_not_canonical_and_wrong_numbers_of_inputs() -> None:
    x = Value("x", "float32", (B, 3))
    with pytest.raises(ModelError, match="canonical"):
        ops.infer(Op("Softmax", "op", ("x",), ("y",), {"axis": -1}), [x])
    with pytest.raises(ModelError, match="has 2 inputs, but needs 1"):
        ops.infer(Op("Relu", "op", ("x", "x"), ("y",)), [x, x])
    with pytest.raises(ModelError, match="no operator"):
        ops.infer(Op("Exec", "op", ("x",), ("y",)), [x])


def test_gradients_do_not_flow_to_labels_and_statistics() -> None:
    row = ops.TABLE["BatchNormalization"]
    assert [row.differentiable(i) for i in range(5)] == [True, True, True, False, False]
    assert not ops.TABLE["SoftmaxCrossEntropyLoss"].differentiable(1)
    assert not ops.TABLE["Accuracy"].differentiable(0)
